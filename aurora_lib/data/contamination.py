"""Benchmark questions among the training rows: an n-gram in common (GPT-3, appendix C), or all of a
question."""

import re
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from aurora_lib.data.duplicates import SHINGLE, chained, shingles
from aurora_lib.data.edits import Messages
from aurora_lib.data.languages import HAN

# Letters and digits in a row that no two texts share by chance: 20 of Chinese (at least half of them Han),
# and of other scripts 50, about the 13 words of GPT-3's paper. "presidential election" has 20: a stock
# phrase.
HAN_GRAM, LATIN_GRAM = 20, 50
SIGNS = re.compile(r"[\W_]+")  # table rules and underlines are in many texts


class Questions:
    """The texts of benchmark questions, ready to be looked for: by n-gram, and as a whole the shorter
    ones."""

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)
        said = [_letters(text) for text in self.texts]
        self._whole = {text: i for i, text in enumerate(said) if text}
        self._grams = {}  # size: sorted hashes, and the question each is of
        for size in (HAN_GRAM, LATIN_GRAM):
            found = [_grams(shingles(text), size) for text in said]
            found = [grams[_kind(text, size)] for text, grams in zip(said, found, strict=True)]
            owners = np.repeat(np.arange(len(found)), [len(grams) for grams in found])
            grams = np.concatenate([*found, np.zeros(0, np.uint64)])
            order = np.argsort(grams, kind="stable")
            self._grams[size] = grams[order], owners[order]

    def __reduce__(self):  # another process gets the texts alone, and makes the rest once
        return _of, (self.texts,)

    def found_in(self, messages: Messages) -> str | None:
        """The first benchmark question that a conversation shares an n-gram with, or asks word for word."""
        hashed = shingles(_letters("\n".join(message["content"] for message in messages)))
        for size, (known, owners) in self._grams.items():
            grams = _grams(hashed, size)
            if not len(known):
                continue
            at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            hit = at[known[at] == grams]
            if len(hit):
                return self.texts[owners[hit[0]]]
        asked = (_letters(message["content"]) for message in messages if message["role"] == "user")
        return next((self.texts[self._whole[text]] for text in asked if text in self._whole), None)


@cache
def _of(texts: tuple[str, ...]) -> Questions:
    return Questions(texts)


def _letters(text: str) -> str:
    return SIGNS.sub("", text).lower()


def _kind(text: str, size: int) -> np.ndarray:
    """For each n-gram of `text` whether it is of the kind that has this size: mostly Han is short, others
    long."""
    han = np.cumsum([0, *(HAN.match(character) is not None for character in text)])
    inside = han[size:] - han[:-size]  # [characters - size + 1], none for a shorter text
    return inside >= size / 2 if size == HAN_GRAM else inside < size / 2


def _grams(hashed: np.ndarray, size: int) -> np.ndarray:
    """Hashes of `size` characters in a row, from those of SHINGLE: [characters - size + 1]."""
    count = len(hashed) - (size - SHINGLE)
    if count <= 0:
        return np.zeros(0, np.uint64)
    return chained((hashed[i : i + count] for i in range(0, size, SHINGLE)), count)


def overlaps(rows: Iterable[dict], found: Questions) -> list[dict]:
    """The conversations that hold a benchmark question: dicts of `id`, `question`. Nothing is dropped."""
    asked = ((row["id"], found.found_in(row["messages"])) for row in rows)
    return [{"id": row, "question": question} for row, question in asked if question]
