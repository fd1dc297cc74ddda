"""The clean conversations to train on, handed from notebook 02 to those that follow."""

import json
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from aurora_lib.course.scale import Scale
from aurora_lib.data import cleaning, splitting
from aurora_lib.data.sources import SOURCES, load, table
from aurora_lib.model.tokenizer import load_tokenizer


def clean_conversations(scale: Scale) -> Dataset:
    """Those notebook 02 saved, else cleaned and split here and now from the same sources; prints in one line which.

    What was saved from other data than `scale.data` is not used.
    """
    path = scale.runs / "conversations.jsonl"
    if path.is_file():
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(head) == _origin(scale):
            print(f"conversations: {len(lines):,}, cleaned by notebook 02")
            return table([json.loads(line) for line in lines])
    read = concatenate_datasets([load(name, scale.data or "hub") for name in SOURCES])
    kept = cleaning.clean(read, folder=scale.runs / "cleaning").kept
    own = load_tokenizer(scale.base_model, revision=scale.revision)
    pieces = splitting.split(kept, own, scale.length)
    print(f"conversations: {len(pieces):,}, cleaned just now (notebook 02 has not run on this data here)")
    return pieces


def save(dataset: Dataset, scale: Scale) -> Path:
    """Write `dataset` as JSON Lines for the notebooks that follow; the first line says which data it came from."""
    path = scale.runs / "conversations.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file:
        for row in [_origin(scale), *dataset]:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    unfinished.replace(path)  # whole or not at all
    return path


def _origin(scale: Scale) -> dict:
    return {"data": str(scale.data or "hub")}
