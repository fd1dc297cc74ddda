"""How near answers come to reference answers (BLEU-4, ROUGE), how well a model foresees them (perplexity)."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import rjieba
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from aurora_lib.model import batching

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


class Words:
    """Words for ROUGE: Chinese has no spaces, so jieba cuts it; else every sentence would be one word."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return [word for word in rjieba.cut(text.lower()) if not word.isspace()]


def overlap(said: list[str], references: list[str]) -> dict[str, float]:
    """BLEU-4 and ROUGE-1, -2, -L (F1) of answers against references, each the mean over answers, 0 to 100.

    As in the table of the paper's repository (LLaMA-Factory): each answer's own smoothed BLEU of Chinese
    characters and Latin words, ROUGE of words cut by jieba. Two differences: that stack's BLEU splits Latin
    words into letters, and it counts four-grams against answers of fewer than four characters. An empty
    answer scores 0. Raises ValueError where answers and references are not as many, or none.
    """
    if not said or len(said) != len(references):
        raise ValueError(f"{len(said)} answers, {len(references)} references: each answer needs a reference.")
    bleu = BLEU(tokenize="zh", smooth_method="exp", effective_order=True)
    rouge = RougeScorer(list(ROUGE.values()), tokenizer=Words)
    totals = dict.fromkeys(("BLEU-4", *ROUGE), 0.0)
    for answer, reference in zip(said, references, strict=True):
        totals["BLEU-4"] += bleu.sentence_score(answer, [reference]).score
        scored = rouge.score(reference, answer)
        for name, key in ROUGE.items():
            totals[name] += 100 * scored[key].fmeasure
    return {name: total / len(said) for name, total in totals.items()}


class Perplexity(NamedTuple):
    """`value` on `tokens` assistant tokens; `cut` conversations were too long, `skipped` had none."""

    value: float
    tokens: int
    cut: int
    skipped: int


def perplexity(model, tokenizer, conversations: Iterable[list[dict]], *, batch_size: int = 4) -> Perplexity:
    """exp of the mean negative log-likelihood (nats) of what the assistant says, with its closing </s>.

    `conversations` are lists of messages. Every token weighs the same. Which tokens are the assistant's, the
    chat template's generation markers tell, as in training. Raises ValueError where no token can be scored.
    """
    limit, rows, cut, skipped = model.config.max_position_embeddings, [], 0, 0
    for messages in conversations:
        encoded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
        )
        ids, answer = encoded["input_ids"], encoded["assistant_masks"]
        cut += len(ids) > limit
        skipped += not any(answer[1:limit])
        if any(answer[1:limit]):
            rows.append(list(zip(ids[:limit], answer[:limit], strict=True)))
    if not rows:
        raise ValueError(f"None of {skipped} conversations has an assistant token within {limit} tokens.")
    total, tokens = 0.0, 0
    with batching.ready(model):
        for batch in batching.batches(rows, batch_size, False, "perplexity"):
            longest = max(len(rows[i]) for i in batch)
            filled = [rows[i] + [(batching.padding(tokenizer), 0)] * (longest - len(rows[i])) for i in batch]
            ids, answer = torch.tensor(filled, device=model.device).unbind(-1)
            logits = model(input_ids=ids, use_cache=False).logits
            for table, row, mask in zip(logits, ids, answer.bool(), strict=True):  # one row in fp32 at a time
                given, right = table[:-1][mask[1:]].float(), row[1:][mask[1:]]
                total += torch.nn.functional.cross_entropy(given, right, reduction="sum").item()
                tokens += len(right)
    return Perplexity(math.exp(total / tokens), tokens, cut, skipped)
