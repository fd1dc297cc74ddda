"""Benchmark questions among the training rows: n-gram overlap with C-Eval, CMMLU and MMLU (GPT-3, appendix C, with characters)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from aurora_lib.benchmarks import TASKS, load_questions, load_subjects
from aurora_lib.duplicates import MULTIPLIER, SHINGLE, plain, shingles
from aurora_lib.edits import Messages

GRAM = 20  # characters in a row, without spaces and punctuation
FILTER_BITS = 24


@dataclass
class Questions:
    """Benchmark questions, ready to be looked for: every GRAM characters of each, and the whole of shorter ones."""

    texts: Sequence[str]
    _whole: dict[str, int] = field(init=False, repr=False)  # short question: its position
    _grams: np.ndarray = field(init=False, repr=False)  # sorted hashes, uint64
    _owners: np.ndarray = field(init=False, repr=False)  # which question each is of
    _filter: np.ndarray = field(
        init=False, repr=False
    )  # whether any gram starts with these bits: most lookups end here

    def __post_init__(self):
        said = [plain([{"role": "user", "content": text}]) for text in self.texts]
        self._whole = {text: i for i, text in enumerate(said) if text and len(text) < GRAM}
        hashed = [(i, _grams(shingles(text))) for i, text in enumerate(said) if len(text) >= GRAM]
        grams = np.concatenate([grams for _, grams in hashed] or [np.zeros(0, np.uint64)])
        owners = np.repeat([i for i, _ in hashed], [len(grams) for _, grams in hashed])
        order = np.argsort(grams, kind="stable")
        self._grams, self._owners = grams[order], owners[order]
        self._filter = np.zeros(1 << FILTER_BITS, bool)
        self._filter[self._grams >> np.uint64(64 - FILTER_BITS)] = True

    def __reduce__(self):  # another process gets the texts alone, and makes the rest once
        return _of, (tuple(self.texts),)

    def found_in(self, messages: Messages, hashed: np.ndarray) -> str | None:
        """The first benchmark question that a conversation holds GRAM characters of, or asks word for word.

        `hashed` are the shingles of its plain text.
        """
        grams = _grams(hashed)
        grams = grams[self._filter[grams >> np.uint64(64 - FILTER_BITS)]]
        if len(grams) and len(self._grams):
            at = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
            hit = at[self._grams[at] == grams]
            if len(hit):
                return self.texts[self._owners[hit[0]]]
        asked = (plain([message]) for message in messages if message["role"] == "user" and self._whole)
        return next((self.texts[self._whole[text]] for text in asked if text in self._whole), None)


@cache
def _of(texts: tuple[str, ...]) -> Questions:
    return Questions(texts)


def _grams(hashed: np.ndarray) -> np.ndarray:
    """Hashes of GRAM characters from those of SHINGLE: [characters - 19], empty for a shorter text."""
    count = len(hashed) - (GRAM - SHINGLE)
    if count <= 0:
        return np.zeros(0, np.uint64)
    joined = np.zeros(count, np.uint64)
    for i in range(0, GRAM, SHINGLE):
        joined = (joined + hashed[i : i + count]) * MULTIPLIER
        joined ^= joined >> np.uint64(29)
    return joined


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
        if (question := found.found_in(row["messages"], shingles(plain(row["messages"]))))
    ]
