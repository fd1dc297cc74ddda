"""The rows of a file: JSON Lines, arrays, objects one after the other (perhaps packed by gzip), Parquet.

A broken row costs itself and no other. A file that cannot be read at all is refused.
"""

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

import pyarrow

STOPS = "the file stops in the middle of this row"
AGAIN = "Download it again, or point AURORA_DATA at a complete copy."
JSON = json.JSONDecoder(strict=False)  # strict would refuse raw tabs and line breaks inside a text
CLOSES = {"[": "]", "{": "}"}
TEXT = r'"(?:[^"\\]|\\.)*"'
BETWEEN, FOLLOWS = re.compile(r"[ \t\r\n,\0\ufeff]*"), re.compile(r"[ \t\r\n]*(?:[,\]{[]|\Z)")
FIELD, FIRST_KEY = re.compile(rf"{TEXT}\s*:\s*"), re.compile(rf"\{{\s*({TEXT})\s*:")
ROWS = re.compile(r"\[\s*[{\]]")
# An object around all rows, perhaps behind fields of plain values: {"version": 1, "data": [
AROUND = '"(?:data|rows|train|test|validation|examples)"'
WRAPPER = re.compile(rf"\{{\s*(?:{TEXT}\s*:\s*(?:{TEXT}|[\w.+-]+)\s*,\s*)*{AROUND}\s*:\s*\[")


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row and the remedy."""


class Unreadable(ValueError):
    """Why one row is no conversation; in `Row.value`, why it is no JSON value."""


class Row(NamedTuple):
    """A row of a file: its first line (from 1), the beginning of its text (200 characters), its value."""

    line: int
    text: str
    value: object


def read_rows(file: Path) -> Iterator[Row]:
    """Each row of `file`. JSON Lines are read a line at a time; other JSON is read whole.

    The value is an Unreadable where the row is broken or cut off; rows behind it are still found. Bytes that
    are not UTF-8 become lone surrogates, which spoil their own row alone. Of Parquet, `line` counts the rows.
    Raises DataError for a file that is missing, empty or damaged.
    """
    try:
        yield from _parquet(file) if file.suffix == ".parquet" else _text(file)
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist. Check the path, or AURORA_DATA.") from error
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read: damaged or cut off ({error}). {AGAIN}") from error


def _parquet(file: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    batches = ParquetFile(file).iter_batches(1_000)
    for number, value in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
        yield Row(number, str(value)[:200], value)


def open_text(file: Path) -> TextIO:
    """A file's text, unpacked; lines end at `\\n` only, as a text may hold other separators of lines."""
    with file.open("rb") as packed:
        unpack = gzip.open if packed.read(2) == b"\x1f\x8b" else open
    return unpack(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _text(file: Path) -> Iterator[Row]:
    with open_text(file) as opened:
        if not (begins := opened.read(1 << 16).lstrip()):
            raise DataError(f"{file} is empty. {AGAIN}")
        opened.seek(0)
        if begins[0] == "[":  # in JSON Lines a row could be a list; it would be no conversation
            is_whole = ".jsonl" not in file.suffixes or re.match(r"\[\s*(?:\{|\Z)", begins)
        else:  # a line that opens something and does not close it is the first of an indented row
            is_whole = begins.split("\n", 1)[0].rstrip()[-1] in "{[," or WRAPPER.match(begins)
        yield from _values(opened.read(), file) if is_whole else _lines(opened, file)


def _lines(opened: Iterable[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(opened, 1):
        if not (text := line.strip()):
            continue
        try:
            yield Row(number, text[:200], JSON.decode(text))
        except (ValueError, RecursionError):  # broken, or several rows in a line
            yield from _values(line, file, number, ended=line.endswith("\n"))


def _values(text: str, file: Path, line: int = 1, ended: bool | None = None) -> Iterator[Row]:
    """Rows one after the other, in arrays, in a WRAPPER. `line` is that of the text's beginning.

    `ended` is None for a whole file; of a line it says whether it is whole. `within`: brackets still open.
    """
    at, counted, end_of_text, within, first_keys, cut = 0, 0, len(text.rstrip()), "", set(), False
    while (at := BETWEEN.match(text, at).end()) < end_of_text:
        sign, inmost = text[at], within[-1:]
        if inmost and sign == CLOSES[inmost]:
            within, at = within[:-1], at + 1
            continue
        if inmost != "[" and (sign == "[" or (not inmost and WRAPPER.match(text, at))):
            within, at = within + sign, at + 1
            continue
        if inmost == "{" and (field := FIELD.match(text, at)):
            at = field.end()
            if not ROWS.match(text, at):  # a field beside the rows
                with suppress(ValueError, RecursionError):
                    at = JSON.raw_decode(text, at)[1]
            continue
        own = {re.escape(key[1])} if (key := FIRST_KEY.match(text, at)) else set()
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = JSON.raw_decode(text, at)
            if not FOLLOWS.match(text, end):
                raise ValueError("Expecting ',' delimiter")
            first_keys |= own if len(first_keys) < 50 else set()
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)  # objects nested without end may all start with one key
            end = _next_row(text, at, first_keys if deep else first_keys | own)
            cut = sign in CLOSES and not (end < len(text) or ended)
            cut = cut and text[end_of_text - 1] != CLOSES[within[:1] or "{"]
            within = within if end < len(text) or cut else ""
            why = f"not valid JSON ({getattr(error, 'msg', error)})"
            value = Unreadable(STOPS if cut else "nested too deeply" if deep else why)
        yield Row(line, text[at:end].strip()[:200], value)
        at = end
    if (within or cut) and not ended:
        told = f"{file} stops in the middle, at line {line}; what came before is used. {AGAIN}"
        warnings.warn(told, stacklevel=2)


def _next_row(text: str, at: int, first_keys: set[str]) -> int:
    """Where the row behind the broken one at `at` starts; the length of the text where there is none.

    It is indented as the broken row, or begins with a key with which other rows begin (turns, the objects
    within a row, begin with others).
    """
    indent = text[text.rfind("\n", 0, at) + 1 : at]
    starts = [rf"\{{\s*(?:{'|'.join(first_keys)})\s*:"] * bool(first_keys)
    starts += [rf"(?<=\n{indent})\{{"] * (not indent.strip())
    found = starts and re.compile("|".join(starts)).search(text, at + 1)
    return found.start() if found else len(text)
