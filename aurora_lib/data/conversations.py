"""Clean conversations to train on: in pieces that fit the training length, handed on by notebook 02."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from aurora_lib.course import Scale, write_whole
from aurora_lib.data.cleaning import account, clean
from aurora_lib.data.sources import read, state, table

BATCH = 1_000  # conversations
SAVED, SPLIT = "conversations.jsonl", "after splitting the long ones"


def split(dataset: Dataset, tokenizer, length: int) -> Dataset:
    """Conversations of more than `length` tokens (chat template included) as several, cut before a user turn.

    Each piece keeps the system turn; the second piece of row `7` has the id `7#2`. A single exchange that is
    too long stays whole (training cuts its end off). Splitting again changes nothing.
    """

    def pieces() -> Iterator[dict]:
        for start in range(0, len(dataset), BATCH):
            rows = dataset.select(range(start, min(start + BATCH, len(dataset)))).to_list()
            long = [row for row in rows if len(row["messages"]) >= 4]  # only several exchanges can be cut
            counts = exchange_tokens([row["messages"] for row in long], tokenizer)
            sizes = {row["id"]: count for row, count in zip(long, counts, strict=True)}
            for row in rows:
                yield from _pieces(row, sizes[row["id"]], length) if row["id"] in sizes else [row]

    return table(pieces())


def exchange_tokens(conversations: list[list[dict]], tokenizer) -> list[list[int]]:
    """Tokens of each conversation's beginning (<s>, the system turn) and of each exchange."""
    marks = [dict(role=r, content=c) for r, c in (("system", "⓪"), ("user", "①"), ("assistant", "②"))]
    probes = [marks, marks[1:], 2 * marks[1:]]  # to render every conversation would take twice as long
    headed, alone, two = tokenizer.apply_chat_template(probes, tokenize=False)
    before, between, after = re.split("[①②]", pair := two.removeprefix(alone))
    texts = [[pair]]
    for messages in conversations:
        said, system = [turn["content"] for turn in messages], messages[0]["role"] == "system"
        for token in tokenizer.all_special_tokens:  # the template breaks them up
            said = [text.replace(token, f"{token[:-2]} {token[-2:]}") for text in said]
        pairs = zip(said[system::2], said[system + 1 :: 2], strict=True)
        head = headed.replace("⓪", said[0]) if system else alone
        texts.append([head, *(before + question + between + answer + after for question, answer in pairs)])
    # the fast tokenizer's own batch: all cores, and no offsets, which nobody needs here
    flat = [text for parts in texts for text in parts]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    (of_marks,), *sizes = [[len(next(encoded)) for _ in parts] for parts in texts]
    return [[head - of_marks, *exchanges] for head, *exchanges in sizes]


def _pieces(row: dict, sizes: list[int], length: int) -> Iterator[dict]:
    messages, (begins, *exchanges) = row["messages"], sizes
    system = messages[:1] if messages[0]["role"] == "system" else []
    pieces, total = [list(system)], begins
    for first, size in zip(range(len(system), len(messages), 2), exchanges, strict=True):
        if len(pieces[-1]) > len(system) and total + size > length:
            pieces.append(list(system))
            total = begins
        pieces[-1] += messages[first : first + 2]
        total += size
    for n, piece in enumerate(pieces, 1):
        yield row | {"id": row["id"] if n == 1 else f"{row['id']}#{n}", "messages": piece}


def hold_out(conversations: Dataset, share: float = 0.06, most: int = 300) -> tuple[Dataset, Dataset]:
    """(to train on, to validate with): about `share` of the conversations, or `most`, are never trained on.

    Those that open alike, and the pieces of one conversation, stay together. A digest of the opening decides,
    so the choice is the same everywhere. With one opening only, nothing is held out.
    """
    ids, said = conversations["id"][:], conversations["messages"]
    firsts = [next(turn["content"] for turn in messages if turn["role"] == "user") for messages in said]
    opening = {each: " ".join(first.split()) for each, first in zip(ids, firsts, strict=True)}
    begins = [opening.get(re.sub(r"#\d+$", "", each), opening[each]) for each in ids]  # of 7#2, as 7 begins
    different = sorted(set(begins), key=lambda text: hashlib.blake2b(text.encode()).digest())
    held = min(share, most / max(1, len(begins))) * len(different)
    chosen = set(different[: min(max(1, round(held)), len(different) - 1)])
    sides = ([i for i, text in enumerate(begins) if (text in chosen) == side] for side in (False, True))
    return tuple(conversations.select(side) for side in sides)


def clean_conversations(scale: Scale) -> Dataset:
    """Those that notebook 02 saved, else cleaned and split here and now; prints which, and the account.

    What was saved from other data than `scale.data`, or before its files changed, is not used.
    """
    path, data = scale.runs / SAVED, scale.data or "hub"
    if path.is_file():
        head, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # a text may hold U+2028
        if (head := json.loads(head)).get("data") == state(data) and "account" in head:
            print(head["account"], f"conversations: {len(lines):,} {SPLIT}, cleaned by notebook 02", sep="\n")
            return table([json.loads(line) for line in lines])
    from aurora_lib.model import load_tokenizer  # here: torch takes seconds to import, cleaning needs none

    reading = read(data, every=scale.every)
    result = clean(reading.conversations, folder=scale.runs / "cleaning")
    print(account(reading, result))
    pieces = split(result.kept, load_tokenizer(scale.base_model, revision=scale.revision), scale.length)
    print(f"conversations: {len(pieces):,} {SPLIT}, cleaned just now (not by notebook 02)")
    return pieces


def save_conversations(dataset: Dataset, scale: Scale, account: str = "") -> Path:
    """Write `dataset` as JSON Lines for the notebooks that follow; the first line: its origin, `account`."""
    rows = [{"data": state(scale.data or "hub"), "account": account}, *dataset]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write_whole(scale.runs / SAVED, "".join(lines))
