"""Rows on disk, mapped into memory when they are looked at: a dataset larger than memory costs none."""

import atexit
import os
import tempfile
from collections.abc import Iterable
from functools import cache
from itertools import count
from pathlib import Path

import pyarrow as pa

COUNTER = count()


@cache
def room() -> Path:
    """A folder for this process's Arrow files; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="aurora-rows-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def write(tables: Iterable[pa.Table], schema: pa.Schema, path: Path | None = None) -> Path:
    """`tables` one after the other in one file (by default a new one in the room): whole, or not there at all."""
    path = path or room() / f"{next(COUNTER)}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = tempfile.NamedTemporaryFile(dir=path.parent, suffix=".unfinished", delete=False)  # noqa: SIM115, closed below, before it moves
    try:
        with file, pa.ipc.new_stream(file, schema) as stream:
            for table in tables:
                stream.write_table(table)
        os.replace(file.name, path)
    finally:
        Path(file.name).unlink(missing_ok=True)
    return path


def read(path: Path, columns: list[int] | None = None) -> pa.Table:
    """The table in `path`, or the columns at these positions; mapped, so that only what is touched is read."""
    options = pa.ipc.IpcReadOptions(included_fields=columns)
    return pa.ipc.open_stream(pa.memory_map(str(path)), options=options).read_all()


def to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
