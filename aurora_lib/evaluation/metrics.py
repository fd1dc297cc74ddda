"""How near answers come to reference answers (BLEU-4, ROUGE), how well a model foresees them (perplexity)."""

import math

import torch

from aurora_lib.model import batching

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


class Words:
    """Words for ROUGE: Chinese has no spaces, so jieba cuts it; else every sentence would be one word."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        import rjieba

        return [word for word in rjieba.cut(text.lower()) if not word.isspace()]


def overlap(said: list[str], references: list[str]) -> dict[str, float]:
    """BLEU-4 and ROUGE-1, -2, -L (F1) of answers against references, each the mean over answers, 0 to 100.

    As in the table of the paper's repository (LLaMA-Factory): each answer's own smoothed BLEU of Chinese
    characters and Latin words, ROUGE of words cut by jieba. Two differences: that stack's BLEU splits Latin
    words into letters, and it counts four-grams against answers of fewer than four characters. An empty
    answer scores 0. Raises ValueError where answers and references are not as many, or none.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

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


def perplexity(model, tokenizer, conversations: list[list[dict]], *, batch_size: int = 4) -> float:
    """exp of the mean negative log-likelihood (nats) of what the assistant says, with its closing </s>.

    `conversations` are lists of messages, each read as far as the model's context goes. Every token weighs
    the same. The chat template's markers tell which are the assistant's; raises ValueError if there are none.
    """
    limit, rows, total, tokens = model.config.max_position_embeddings, [], 0.0, 0
    settings = dict(return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False)
    for messages in conversations:
        encoded = tokenizer.apply_chat_template(messages, **settings)
        rows.append(list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))[:limit])
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
    if not tokens:
        raise ValueError(f"No conversation has an assistant token within the context of {limit} tokens.")
    return math.exp(total / tokens)
