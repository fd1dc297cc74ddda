"""Texts to token ids to padded batches, and a model made ready to be read from."""

import re
from collections.abc import Iterable
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = {sign: byte for byte, sign in bytes_to_unicode().items()}  # as GPT-2 writes each byte


def chat_prompt(tokenizer, messages: list[dict]) -> str:
    """The conversation as text, after a user's turn up to where the answer begins."""
    asked = messages[-1]["role"] == "user"  # Mixtral's user turns end in [/INST]: there it adds nothing
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)


def encode_all(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text with <s> in front, once."""
    rows, bos = tokenizer(texts, add_special_tokens=False).input_ids, tokenizer.bos_token_id
    return [ids if bos is None or ids[:1] == [bos] else [bos, *ids] for ids in rows]


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text` with <s> in front, once."""
    return encode_all(tokenizer, [text])[0]


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """Their pieces as SentencePiece writes them ("▁" a space, "<0xE9>" a byte), "" for an id without one."""
    found = [piece or "" for piece in tokenizer.convert_ids_to_tokens(ids)]
    of_bytes = "ByteLevel(" in repr(tokenizer.backend_tokenizer.decoder)  # as GPT-2's
    kept = tokenizer.get_added_vocab() if of_bytes else set(found)
    return [piece if piece in kept else _of_bytes(piece) for piece in found]


def _of_bytes(piece: str) -> str:
    text = bytes(BYTES.get(sign, ord("?")) for sign in piece).decode(errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", text.replace(" ", "▁"))


def raw_bytes(piece: str) -> bytes:
    """The UTF-8 bytes of one of `pieces`."""
    signs = re.split("<0x([0-9A-F]{2})>", piece.replace("▁", " "))  # text and bytes in turn
    return b"".join(bytes.fromhex(sign) if i % 2 else sign.encode() for i, sign in enumerate(signs))


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


def batches(rows: list, size: int, progress: bool, label: str) -> Iterable[list[int]]:
    """Indices of `rows` in batches, longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with tqdm(total=len(rows), desc=label, unit="prompt", disable=not progress) as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.update(len(order[start : start + size]))
