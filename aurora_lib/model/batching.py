"""Texts to token ids to padded batches, and a model made ready to be read from."""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm


def chat_prompt(tokenizer, messages: list[dict]) -> str:
    """The conversation as text. Mixtral's user turns end in [/INST]: there is no generation prompt to add."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)


def encode_all(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text with <s> in front, once."""
    rows, bos = tokenizer(texts, add_special_tokens=False).input_ids, tokenizer.bos_token_id
    return [ids if bos is None or ids[:1] == [bos] else [bos, *ids] for ids in rows]


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text` with <s> in front, once."""
    return encode_all(tokenizer, [text])[0]


def shared_length(rows: list[list[int]]) -> int:
    """How many ids all rows begin with in common."""
    first, last = min(rows), max(rows)  # if these two agree up to a place, so do all between them
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


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
    pad, longest = padding(tokenizer), max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def padding(tokenizer) -> int:
    """An id to fill rows with."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def batches(rows: list, size: int, progress: bool, label: str) -> Iterable[list[int]]:
    """Indices of `rows` in batches, longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with tqdm(total=len(rows), desc=label, unit="prompt", disable=not progress) as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.update(len(order[start : start + size]))
