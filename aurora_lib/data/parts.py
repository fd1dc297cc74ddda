"""The steps that look at one conversation at a time, over parts of a dataset: on several cores, and taken up after an interruption."""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import xxhash
from joblib import Parallel, delayed

from aurora_lib.data import contamination, drops, duplicates, edits
from aurora_lib.data.arrow_files import from_bytes, to_bytes, write

PART = 2_048  # conversations cleaned at a time: what a process works on, and what an interruption loses
EDIT = {"step": pa.string(), "turn": pa.int32(), "before": pa.string(), "after": pa.string()}
CLEANED = pa.schema(
    {
        "step": pa.string(),  # why it was dropped; null where it was not
        "reason": pa.string(),
        "fingerprint": pa.binary(),
        "bands": pa.list_(pa.uint64()),
        "size": pa.int32(),  # characters of its answers
        "edits": pa.list_(pa.struct(EDIT)),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    }
)
LIGHT = CLEANED.names.index("edits")  # the columns before that are small, and kept in memory for all rows


def cleaned(dataset, settings: tuple, processes: int, folder: Path) -> Iterator[Path]:
    """The parts of a Dataset after every step, in order: files in `folder`, tables of CLEANED (see `arrow_files`).

    `settings` are the options, benchmark questions or None, and seed of `cleaning.clean`. What was finished before is not
    done again: a part's name is made of its rows, the settings and the code of the steps.
    """
    rows = dataset.select_columns(["messages"]).with_format("arrow")
    pieces = (to_bytes(rows[at : at + PART]) for at in range(0, len(dataset), PART))
    if processes > 1 and len(dataset) > PART:
        parallel = Parallel(processes, return_as="generator", pre_dispatch="2 * n_jobs")
        yield from parallel(delayed(_finished)(piece, settings, folder) for piece in pieces)
    else:
        yield from (_finished(piece, settings, folder) for piece in pieces)


def _finished(piece: bytes, settings: tuple, folder: Path) -> Path:
    options, benchmarks, seed = settings
    asked = "\0".join(benchmarks.texts) if benchmarks else ""
    marks = [piece, repr((options, seed)).encode(), asked.encode(), _code()]
    path = folder / f"{xxhash.xxh3_128_hexdigest(b''.join(marks))}.arrow"
    if not path.is_file():
        write([_clean_part(from_bytes(piece), *settings)], CLEANED, path)
    return path


@cache
def _code() -> bytes:
    """What the steps are: a part cleaned by other code is not the same part."""
    return b"".join(
        Path(module.__file__).read_bytes()
        for module in (edits, drops, duplicates, contamination, sys.modules[__name__])
    )


def _clean_part(part: pa.Table, options: tuple[str, ...], benchmarks, seed: int) -> pa.Table:
    rows, texts = [], []
    for messages in part["messages"].to_pylist():
        messages, changes = edits.edit(messages, options)
        step, reason = next(((s.__name__, why) for s in drops.DROPS if (why := s(messages))), (None, None))
        if not step:
            shingles = duplicates.shingles(duplicates.plain(messages))
            if benchmarks and (question := benchmarks.found_in(messages)):
                step, reason = "contamination", f"holds the benchmark question {question[:40]!r}"
        rows.append(dict(step=step, reason=reason, edits=changes))
        if not step:
            texts.append(shingles)
            size = sum(len(message["content"]) for message in messages if message["role"] == "assistant")
            rows[-1] |= dict(messages=messages, fingerprint=duplicates.fingerprint(messages), size=size)
    bands = iter(duplicates.bands(duplicates.signatures(texts, seed)).tolist())
    return pa.Table.from_pylist(
        [row if row["step"] else row | {"bands": next(bands)} for row in rows], CLEANED
    )
