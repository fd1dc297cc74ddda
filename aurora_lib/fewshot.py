"""Few-shot scoring, bottom up: a prompt, its token ids, and the log-probability of what may follow it."""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm

from aurora_lib.benchmarks import LETTERS, Question

SYSTEM = {
    "en": "The following are multiple choice questions (with answers) about {subject}.",
    "zh": "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。",
}
ANSWER = {"en": "\nAnswer: ", "zh": "\n答案："}


def letter_prompt(question: Question, examples: list[Question], subject_name: str, language: str) -> str:
    """The few-shot prompt, ending where the letter must follow: LLaMA-Factory's of December 2023, plain text.

    A line naming the subject, the examples with their letters, the question; blank lines between them.
    """
    blocks = [SYSTEM[language].format(subject=subject_name)]
    for q in [*examples, question]:
        options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, q.choices, strict=True))
        blocks.append(q.text + options + ANSWER[language] + ("" if q is question else q.answer))
    return "\n\n".join(blocks).strip()


def cloze_prompt(tokenizer, question: Question, examples: list[Question]) -> str:
    """The question as a chat's last user turn, after the examples with their right choices as answers."""
    messages = []
    for q in examples:
        right = q.choices[LETTERS.index(q.answer)]
        messages += [{"role": "user", "content": q.text}, {"role": "assistant", "content": right}]
    return chat_prompt(tokenizer, [*messages, {"role": "user", "content": question.text}])


def chat_prompt(tokenizer, messages: list[dict]) -> str:
    """The conversation as text. Mixtral's user turns end in [/INST]: there is no generation prompt to add."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text` with <s> in front, once."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def continuation(tokenizer, context: str, text: str) -> tuple[list[int], list[int]]:
    """The ids of `context + text`, cut where they part from the ids of `context` alone."""
    alone, whole = encode(tokenizer, context), encode(tokenizer, context + text)
    same = [a == b for a, b in zip(alone, whole, strict=False)] + [False]
    return whole[: same.index(False)], whole[same.index(False) :]


def letter_ids(tokenizer, language: str) -> list[list[int]]:
    """The ids of A, B, C, D as they follow the prompt: " A" after "Answer:", "A" unspaced after "答案：".

    With Mixtral's tokenizer one id each: "▁A" and "A" are different pieces, and the wrong one scores noise.
    """
    stem = ANSWER[language].rstrip()
    space = ANSWER[language][len(stem) :]
    return [continuation(tokenizer, stem, space + letter)[1] for letter in LETTERS]


@contextmanager
def ready(model):
    """Evaluation mode, and no router logits (`generate` fails with them); afterwards all is as before."""
    training, router = model.training, getattr(model.config, "output_router_logits", False)
    model.eval()
    model.config.output_router_logits = False
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
        model.config.output_router_logits = router


def left_pad(rows: list[list[int]], tokenizer, device) -> dict[str, torch.Tensor]:
    """int64 `input_ids` and `attention_mask`, `[rows, longest]`: every row ends in the last column."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def batches(rows: list, size: int, progress: bool, label: str) -> Iterable[list[int]]:
    """Indices of `rows` in batches, longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with tqdm(total=len(rows), desc=label, unit="prompt", disable=not progress) as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.update(len(order[start : start + size]))


def logprobs(model, tokenizer, requests, batch_size: int, progress: bool, label: str) -> list[list[float]]:
    """Natural log P(ids | context), summed over the ids, for each request's (context, ids): `[requests][4]`.

    Candidates of one request with the same input, as the four letters have, share a forward pass.
    """
    wanted = {}
    for r, candidates in enumerate(requests):
        for c, (context, ids) in enumerate(candidates):
            wanted.setdefault((r, *context, *ids[:-1]), []).append((c, ids))
    keys = list(wanted)
    rows = [list(key[1:]) for key in keys]
    scores = [[0.0] * len(candidates) for candidates in requests]
    with ready(model):
        for batch in batches(rows, batch_size, progress, label):
            inputs = left_pad([rows[i] for i in batch], tokenizer, model.device)
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            keep = max(len(ids) for i in batch for _, ids in wanted[keys[i]])
            logits = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=keep).logits
            for i, table in zip(batch, logits.float().log_softmax(-1).cpu(), strict=True):
                for c, ids in wanted[keys[i]]:
                    chosen = table[-len(ids) :].gather(-1, torch.tensor(ids)[:, None])
                    scores[keys[i][0]][c] = chosen.sum().item()
    return scores
