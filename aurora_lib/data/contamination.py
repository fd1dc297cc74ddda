"""Benchmark questions among the training rows: n-gram overlap with C-Eval, CMMLU and MMLU (GPT-3, appendix C), or the whole question."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from aurora_lib.data.duplicates import SHINGLE, chained, shingles
from aurora_lib.data.edits import Messages
from aurora_lib.data.languages import HAN
from aurora_lib.evaluation.benchmarks import TASKS, load_questions, load_subjects

# Letters and digits in a row that no two texts share by chance: 20 of Chinese (at least half of them Han), and of other
# scripts 50, about the 13 words of GPT-3's paper. 20 Latin letters are a stock phrase, "presidential election".
HAN_GRAM, LATIN_GRAM = 20, 50
FILTER_BITS = 24
SIGNS = re.compile(r"[\W_]+")  # table rules and underlines are in many texts


@dataclass
class Questions:
    """Benchmark questions, ready to be looked for: their n-grams, and as a whole for those that are shorter."""

    texts: Sequence[str]
    _whole: dict[str, int] = field(init=False, repr=False)  # a question's letters: its position
    _grams: dict[int, tuple[np.ndarray, np.ndarray]] = field(
        init=False, repr=False
    )  # size: sorted hashes, owners

    def __post_init__(self):
        said = [_letters(text) for text in self.texts]
        self._whole = {text: i for i, text in enumerate(said) if text}
        self._grams = {}
        for size in (HAN_GRAM, LATIN_GRAM):
            found = [
                (i, _grams(shingles(text), size)[_kind(text, size)])
                for i, text in enumerate(said)
                if len(text) >= size
            ]
            grams = np.concatenate([grams for _, grams in found] or [np.zeros(0, np.uint64)])
            owners = np.repeat([i for i, _ in found], [len(grams) for _, grams in found]).astype(int)
            order = np.argsort(grams, kind="stable")
            # whether any gram begins with these bits: where most lookups end, without a search
            begins = np.zeros(1 << FILTER_BITS, bool)
            begins[grams >> np.uint64(64 - FILTER_BITS)] = True
            self._grams[size] = grams[order], owners[order], begins

    def __reduce__(self):  # another process gets the texts alone, and makes the rest once
        return _of, (tuple(self.texts),)

    def found_in(self, messages: Messages) -> str | None:
        """The first benchmark question that a conversation shares an n-gram with, or asks word for word."""
        hashed = shingles(_letters("\n".join(message["content"] for message in messages)))
        for size, (known, owners, begins) in self._grams.items():
            grams = _grams(hashed, size)
            grams = grams[begins[grams >> np.uint64(64 - FILTER_BITS)]]
            if len(grams) and len(known):
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
    """For each n-gram of `text` whether it is one of this size: mostly Han for the short ones, the others long."""
    han = np.cumsum([0, *(HAN.match(character) is not None for character in text)])
    inside = han[size:] - han[:-size]
    return inside >= size / 2 if size == HAN_GRAM else inside < size / 2


def _grams(hashed: np.ndarray, size: int) -> np.ndarray:
    """Hashes of `size` characters in a row from those of SHINGLE: [characters - size + 1], empty for a shorter text."""
    count = len(hashed) - (size - SHINGLE)
    if count <= 0:
        return np.zeros(0, np.uint64)
    return chained((hashed[i : i + count] for i in range(0, size, SHINGLE)), count)


def questions(root: str | Path | None = None, tasks: Iterable[str] = tuple(TASKS)) -> Questions:
    """The questions that the benchmarks below `root` (None: the bundled ones) score. Raises EvalError as their readers do."""
    return Questions(
        [
            question.text
            for task in tasks
            for subject in load_subjects(task, root)
            for question in load_questions(task, subject, TASKS[task]["split"], root)[0]
        ]
    )


def overlaps(rows: Iterable[dict], found: Questions) -> list[dict]:
    """The conversations that hold a benchmark question: dicts of `id`, `question`. Nothing is dropped (see `cleaning.clean`)."""
    return [
        {"id": row["id"], "question": question}
        for row in rows
        if (question := found.found_in(row["messages"]))
    ]
