"""Rows out of JSON arrays and JSON Lines, a piece at a time: memory does not grow with the file, and a broken row hides no other."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

CHUNK = 1 << 20  # bytes read at a time
LONGEST_ROW = 8 << 20  # bytes; a longer row is no conversation, and must not fill the memory
JSON = json.JSONDecoder(strict=False)  # strict would refuse raw tabs and line breaks inside a text
SPACE, NEXT_ROW = re.compile(r"\s*"), re.compile(r"\}\s*(,)\s*\{")
BOM = codecs.BOM_UTF8


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row and the remedy."""


class Unreadable(ValueError):
    """Stands in the place of a row that is no JSON value, and says why."""


STOPS = "the file stops in the middle of this row"
TOO_LONG = f"the row is longer than {LONGEST_ROW >> 20} MiB"


def read(file: Path) -> Iterator[tuple[int, str, object]]:
    """Each row of `file`: its first line (from 1), the beginning of its text (100 characters), its value.

    The value is an Unreadable where the row is broken, cut off or over LONGEST_ROW. Bytes that are not UTF-8 become
    lone surrogates: they spoil their own row and no other. Raises DataError where the file is missing or empty.
    """
    if not file.exists():
        raise DataError(f"{file} does not exist. Check the path, or AURORA_DATA.")
    with file.open("rb") as bytes_:
        head = bytes_.read(1 << 16).removeprefix(BOM).lstrip()
        if not head:
            raise DataError(f"{file} is empty. Download it again, or point AURORA_DATA at a complete copy.")
        bytes_.seek(0)
        is_array = head.startswith(b"[") and file.suffix != ".jsonl"
        yield from _array(bytes_) if is_array else _lines(bytes_)


def _lines(file: BinaryIO) -> Iterator[tuple[int, str, object]]:
    number = 0
    while line := file.readline(LONGEST_ROW):
        number += 1
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            while (rest := file.readline(CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield number, _text(line[:1000])[:100], Unreadable(TOO_LONG)
        elif content := line.removeprefix(BOM if number == 1 else b"").strip():
            value = _line(content)
            if isinstance(value, Unreadable) and not line.endswith(b"\n") and content.startswith(b"{"):
                value = Unreadable(STOPS)
            yield number, _text(content)[:100], value


def _line(content: bytes) -> object:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:  # strict; what Python's decoder forgives, we forgive
        try:
            return JSON.decode(_text(content))
        except (ValueError, RecursionError) as error:
            return _unreadable(error)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _unreadable(error: Exception) -> Unreadable:
    deep = isinstance(error, RecursionError)
    return Unreadable("nested too deeply" if deep else f"not valid JSON ({getattr(error, 'msg', error)})")


class _Window:
    """The part of a text file in memory: from before the present row, at `at` on line `line`, to where reading has come."""

    def __init__(self, file: BinaryIO):
        self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def more(self) -> bool:
        """Read on, as much again as there is, so that a long row takes few attempts. False at the end of the file."""
        chunk = b"" if self.ended else self.file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not chunk
        self.text += self.decoder.decode(chunk, final=self.ended)
        return not self.ended

    def advance(self, to: int) -> None:
        """Go on to position `to`, and forget what lies before it now and then."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to
        if to > CHUNK:
            self.text, self.at = self.text[to:], 0

    def beyond_space(self, at: int) -> int:
        """The position of the first character from `at` on that is no space; the text's length at the end of the file."""
        while (at := SPACE.match(self.text, at).end()) == len(self.text) and self.more():
            pass
        return at

    def closes(self, at: int) -> bool:
        """Whether the bracket at `at` is the file's last character."""
        return self.text[at : at + 1] == "]" and self.beyond_space(at + 1) == len(self.text)


def _array(file: BinaryIO) -> Iterator[tuple[int, str, object]]:
    """Walk the array row by row, with true line numbers."""
    window = _Window(file)
    window.advance(window.beyond_space(0) + 1)  # the opening bracket
    while True:
        window.advance(window.beyond_space(window.at))
        if window.closes(window.at):
            return
        if window.at == len(window.text):
            yield window.line, "", Unreadable(STOPS)
            return
        line, at, start = window.line, window.at, window.text[window.at : window.at + 100]
        value, stop = _value(window)
        yield line, start[: stop - at] if window.at == at else start, value
        window.advance(stop + (window.text[stop : stop + 1] == ","))
        if isinstance(value, Unreadable) and window.ended and window.at == len(window.text):
            return


def _value(window: _Window) -> tuple[object, int]:
    """The value the window stands at, and the position of the comma or bracket behind it."""
    while True:
        try:
            value, stop = JSON.raw_decode(window.text, window.at)
            stop = window.beyond_space(stop)
            if stop == len(window.text) or window.text[stop] == "," or window.closes(stop):
                return value, stop
            found = Unreadable("not valid JSON (Expecting ',' delimiter)")
        except (ValueError, RecursionError) as error:
            found = _unreadable(error)
        # Cut off by the window's edge, or broken? Only more text can tell, up to the longest row there may be.
        if len(window.text) - window.at >= LONGEST_ROW or not window.more():
            return _skip(window, found)


def _skip(window: _Window, why: Unreadable) -> tuple[Unreadable, int]:
    """Past a broken row: to the comma before the next `{`, or to the end of the file."""
    while not (following := NEXT_ROW.search(window.text, window.at)):
        if len(window.text) - window.at >= LONGEST_ROW:
            why = Unreadable(TOO_LONG)
            window.advance(len(window.text) - CHUNK)  # what goes by need not be kept
        if not window.more():
            whole = window.text.rstrip().endswith("]")
            return why if whole else Unreadable(STOPS), len(window.text)
    return why, following.start(1)
