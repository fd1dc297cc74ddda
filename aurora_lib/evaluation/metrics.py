"""How near free answers come to reference answers (BLEU-4, ROUGE), and how well a model foresees them (perplexity)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import rjieba
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from aurora_lib.model.batching import batches, padding, ready

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


class Words:
    """Words for ROUGE: Chinese has no spaces, so jieba cuts it; without that every sentence would be one word."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return [word for word in rjieba.cut(text.lower()) if not word.isspace()]


def compare(said: list[str], references: list[str]) -> dict[str, float]:
    """BLEU-4 and ROUGE-1, -2, -L (F1) of answers against references, each the mean over answers, 0 to 100.

    As in the table of the paper's repository (LLaMA-Factory): each answer's own smoothed BLEU of Chinese characters and
    Latin words, ROUGE of words cut by jieba. Two differences: that stack's BLEU splits Latin words into letters, and it
    counts four-grams against answers of fewer than four characters. An empty answer scores 0. Raises ValueError
    without answers, or where answers and references are not as many.
    """
    if not said or len(said) != len(references):
        raise ValueError(
            f"{len(said)} answers and {len(references)} references: one reference per answer is needed."
        )
    bleu = BLEU(tokenize="zh", smooth_method="exp", effective_order=True)
    rouge = RougeScorer(list(ROUGE.values()), tokenizer=Words)
    totals = dict.fromkeys(("BLEU-4", *ROUGE), 0.0)
    for answer, reference in zip(said, references, strict=True):
        totals["BLEU-4"] += bleu.sentence_score(answer, [reference]).score
        scored = rouge.score(reference, answer)
        for name, key in ROUGE.items():
            totals[name] += 100 * scored[key].fmeasure
    return {name: total / len(said) for name, total in totals.items()}


@dataclass(frozen=True)
class Perplexity:
    """exp of `loss`, the mean negative log-likelihood (nats) of `tokens` assistant tokens in `conversations`.

    `cut` conversations were longer than the context and counted up to there; `skipped` had no assistant token in it.
    """

    loss: float
    tokens: int
    conversations: int
    cut: int
    skipped: int

    @property
    def value(self) -> float:
        return math.exp(self.loss)

    def __str__(self) -> str:
        notes = f"; {self.cut} cut at the context's end" if self.cut else ""
        notes += f"; {self.skipped} without an answer in it skipped" if self.skipped else ""
        return f"perplexity {self.value:.3f} on {self.tokens} tokens of {self.conversations} conversations{notes}"


def perplexity(
    model, tokenizer, conversations: Iterable[list[dict]], *, batch_size: int = 4, progress: bool = False
) -> Perplexity:
    """The perplexity of what the assistant says (with its closing </s>) in held-out conversations (lists of messages).

    Every token weighs the same. Which tokens are the assistant's, the chat template's generation markers tell, as in
    training. Raises ValueError where no token can be scored.
    """
    limit, rows, given, cut = model.config.max_position_embeddings, [], 0, 0
    for messages in conversations:
        encoded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
        )
        ids, answer = encoded["input_ids"], encoded["assistant_masks"]
        given, cut = given + 1, cut + (len(ids) > limit)
        if any(answer[1:limit]):
            rows.append(list(zip(ids[:limit], answer[:limit], strict=True)))
    if not rows:
        raise ValueError(f"None of {given} conversations has an assistant token within {limit} tokens.")
    total, tokens = 0.0, 0
    with ready(model):
        for batch in batches(rows, batch_size, progress, "perplexity"):
            longest = max(len(rows[i]) for i in batch)
            filled = [rows[i] + [(padding(tokenizer), 0)] * (longest - len(rows[i])) for i in batch]
            ids, answer = torch.tensor(filled, device=model.device).unbind(-1)
            logits = model(input_ids=ids, use_cache=False).logits
            for table, row, mask in zip(logits, ids, answer.bool(), strict=True):  # one row in fp32 at a time
                loss = torch.nn.functional.cross_entropy(
                    table[:-1][mask[1:]].float(), row[1:][mask[1:]], reduction="sum"
                )
                total, tokens = total + loss.item(), tokens + int(mask[1:].sum())
    return Perplexity(total / tokens, tokens, len(rows), cut, given - len(rows))
