"""The steps that look at one conversation at a time, over parts of a dataset: on several cores, and taken up after an interruption."""

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import xxhash
from joblib import Parallel, delayed

from aurora_lib import contamination, drops, duplicates, edits

PART = 4_096  # conversations cleaned at a time: what a process works on, and what an interruption loses
EDIT = {"step": pa.string(), "turn": pa.int32(), "before": pa.string(), "after": pa.string()}
CLEANED = pa.schema(
    {
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "step": pa.string(),  # why it was dropped; null where it was not
        "reason": pa.string(),
        "edits": pa.list_(pa.struct(EDIT)),
        "fingerprint": pa.binary(),
        "bands": pa.list_(pa.uint64()),
        "size": pa.int32(),  # characters of its answers
    }
)


def cleaned(dataset, settings: tuple, processes: int, folder: Path | None) -> Iterator[pa.Table]:
    """The parts of a Dataset after every step, in order: tables of CLEANED.

    `settings` are the options, benchmark questions or None, and seed of `cleaning.clean`; finished parts are kept in `folder`.
    """
    rows = dataset.select_columns(["messages"]).with_format("arrow")
    pieces = (_as_bytes(rows[at : at + PART]) for at in range(0, len(dataset), PART))
    if processes > 1 and len(dataset) > PART:
        parallel = Parallel(processes, return_as="generator", pre_dispatch="2 * n_jobs")
        done = parallel(delayed(_finished)(piece, settings, folder) for piece in pieces)
    else:
        done = (_finished(piece, settings, folder) for piece in pieces)
    yield from map(_from_bytes, done)


def _finished(piece: bytes, settings: tuple, folder: Path | None) -> bytes:
    """A part of the dataset after all steps that look at one conversation; taken from `folder` where it was done before."""
    options, benchmarks, seed = settings
    if folder is None:
        return _as_bytes(_clean_part(_from_bytes(piece), *settings))
    asked = "\0".join(benchmarks.texts) if benchmarks else ""
    key = xxhash.xxh3_128_hexdigest(
        b"\0".join([piece, repr((options, seed)).encode(), asked.encode(), _code()])
    )
    path = folder / f"{key}.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".unfinished", delete=False) as file:
            file.write(_as_bytes(_clean_part(_from_bytes(piece), *settings)))
        os.replace(file.name, path)  # whole or not at all
    return path.read_bytes()


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


def _as_bytes(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


def _from_bytes(piece: bytes) -> pa.Table:
    return pa.ipc.open_stream(piece).read_all()
