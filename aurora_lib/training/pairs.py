"""Preference pairs: a question, a better and a worse answer, from a file or about the held-out facts."""

import os
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from aurora_lib.course.scale import DATA
from aurora_lib.data import sources
from aurora_lib.data.sources import DataError
from aurora_lib.evaluation.probes import load_probes
from aurora_lib.model.batching import shared_length

BUNDLED = DATA / "preferences.jsonl"
COLUMNS = ["prompt", "chosen", "rejected"]
KINDS = ("another fact", "English to a Chinese question", "Chinese to an English question")


class Pairs(NamedTuple):
    """`kept`: columns kind, prompt, chosen, rejected (messages); `dropped`: {line, reason} of every other row."""

    kept: Dataset
    dropped: list[dict]


def load_pairs(path: str | Path | None = None) -> Pairs:
    """The pairs of a JSON or JSON Lines file with the text columns prompt, chosen, rejected (kind may be there, too).

    `path`: by default AURORA_PREFERENCES, else the bundled file. A row that is no pair is dropped with its reason. Raises
    DataError for a file that is missing, empty or without any pair.
    """
    path = Path(path or os.environ.get("AURORA_PREFERENCES") or BUNDLED).expanduser()
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. Check AURORA_PREFERENCES, or unset it for the bundled pairs."
        )
    kept, dropped = [], []
    for line, _, row in sources.read_rows(path):
        if reason := _trouble(row):
            dropped.append(dict(line=line, reason=reason))
        else:
            kept.append(_pair(row.get("kind", ""), *(row[name].strip() for name in COLUMNS)))
    if not kept:
        first = "line {line}: {reason}".format(**dropped[0]) if dropped else "it is empty"
        raise DataError(f"{path} holds no pair ({first}). Check AURORA_PREFERENCES.")
    return Pairs(Dataset.from_list(kept), dropped)


def held_out_pairs() -> Dataset:
    """Pairs about the probes' held-out facts, one of each kind a fact: to measure on, never to train on."""
    probes, found = load_probes(held_out=True), []
    for zh, en in ((probe["zh"], probe["en"]) for probe in probes):
        # a model that errs begins right and slides, so the wrong answer to fear is the one that begins alike
        others = [other["zh"]["answer"] for other in probes if other["zh"]["key"] != zh["key"]]
        wrong = max(others, key=lambda other, right=zh["answer"]: shared_length([other, right]))
        found.append(_pair(KINDS[0], zh["question"], zh["answer"], wrong))
        found.append(_pair(KINDS[1], zh["question"], zh["answer"], en["answer"]))
        found.append(_pair(KINDS[2], en["question"], en["answer"], zh["answer"]))
    return Dataset.from_list(found)


def _pair(kind: str, prompt: str, chosen: str, rejected: str) -> dict:
    texts = dict(prompt=("user", prompt), chosen=("assistant", chosen), rejected=("assistant", rejected))
    messages = {name: [dict(role=role, content=text)] for name, (role, text) in texts.items()}
    return dict(kind=str(kind)) | messages


def _trouble(row) -> str | None:
    """Why `row` is no pair, or None."""
    if isinstance(row, sources.Unreadable):
        return str(row)
    if not isinstance(row, dict):
        return f"a {type(row).__name__} where an object with prompt, chosen and rejected is wanted"
    for name in COLUMNS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"{name} is not text" if row.get(name) else f"{name} is missing or empty"
    return "chosen and rejected are the same" if row["chosen"].strip() == row["rejected"].strip() else None
