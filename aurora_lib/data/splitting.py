"""Long conversations in pieces that fit the training length, cut between turns, so that no answer is cut (paper: cutoff 1024)."""

import pyarrow as pa
from datasets import Dataset

from aurora_lib.data import arrow_files
from aurora_lib.data.edits import Messages
from aurora_lib.data.sources import FEATURES

EXCHANGE = "[INST] {} [/INST] {}</s>"  # as the chat template renders a question and its answer
BATCH = 1_000  # conversations


def split(dataset: Dataset, tokenizer, length: int) -> Dataset:
    """Conversations of more than `length` tokens (chat template included) as several, cut before a user turn.

    Each piece keeps the system turn; the second piece of row `7` has the id `7#2`. A single exchange that is too long
    stays whole (training cuts its end off). Splitting again changes nothing.
    """
    schema = FEATURES.arrow_schema
    batches = (range(start, min(start + BATCH, len(dataset))) for start in range(0, len(dataset), BATCH))
    tables = (
        pa.Table.from_pylist(_split(dataset.select(rows).to_list(), tokenizer, length), schema)
        for rows in batches
    )
    return Dataset.from_file(str(arrow_files.write(tables, schema)))


def _split(rows: list[dict], tokenizer, length: int) -> list[dict]:
    long = [row for row in rows if _may_be_longer(row["messages"], length)]
    sizes = dict(
        zip(
            (row["id"] for row in long),
            exchange_tokens([row["messages"] for row in long], tokenizer),
            strict=True,
        )
    )
    return [
        piece
        for row in rows
        for piece in (_pieces(row, sizes[row["id"]], length) if row["id"] in sizes else [row])
    ]


def exchange_tokens(conversations: list[Messages], tokenizer) -> list[list[int]]:
    """Tokens of each conversation's beginning (<s> and the system turn) and of each exchange (a question and its answer)."""
    parts = [_parts(messages) for messages in conversations]
    # the fast tokenizer's own batch: all cores, and no offsets, which nobody needs here
    texts = [text for part in parts for text in part]
    counts = (
        len(found) for found in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    )
    return [[next(counts) for _ in part] for part in parts]


def _parts(messages: Messages) -> list[str]:
    system = messages[0]["role"] == "system"
    pairs = zip(messages[system::2], messages[system + 1 :: 2], strict=True)
    first = "<s>" + messages[0]["content"] + "\n\n" if system else "<s>"
    return [first, *(EXCHANGE.format(asked["content"], said["content"]) for asked, said in pairs)]


def _may_be_longer(messages: Messages, length: int) -> bool:
    """Only several exchanges can be cut, and a token is at least a byte: most conversations need no tokenizer."""
    if len(messages) < 4:
        return False
    around = len(EXCHANGE) * len(messages)
    return sum(len(message["content"].encode()) for message in messages) + around > length


def _pieces(row: dict, sizes: list[int], length: int) -> list[dict]:
    messages = row["messages"]
    begins, *exchanges = sizes
    system = messages[:1] if messages[0]["role"] == "system" else []
    pieces, total = [list(system)], begins
    for i, size in enumerate(exchanges):
        if len(pieces[-1]) > len(system) and total + size > length:
            pieces.append(list(system))
            total = begins
        first = len(system) + 2 * i
        pieces[-1] += messages[first : first + 2]
        total += size
    return [
        row | {"id": row["id"] if n == 1 else f"{row['id']}#{n}", "messages": piece}
        for n, piece in enumerate(pieces, 1)
    ]
