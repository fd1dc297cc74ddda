"""The clean conversations to train on, handed from notebook 02 to those that follow."""

import json
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from aurora_lib.course import Scale, write_whole
from aurora_lib.data.cleaning import clean
from aurora_lib.data.sources import SOURCES, load, table
from aurora_lib.data.splitting import split


def clean_conversations(scale: Scale) -> Dataset:
    """Those that notebook 02 saved, else cleaned and split here and now; prints in one line which.

    What was saved from other data than `scale.data` is not used.
    """
    if (path := _path(scale)).is_file():
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(head) == _origin(scale):
            print(f"conversations: {len(lines):,}, cleaned by notebook 02")
            return table([json.loads(line) for line in lines])
    from aurora_lib.model import load_tokenizer  # here: torch takes seconds to import, cleaning needs none

    read = concatenate_datasets([load(name, scale.data or "hub") for name in SOURCES])
    kept = clean(read, folder=scale.runs / "cleaning").kept
    pieces = split(kept, load_tokenizer(scale.base_model, revision=scale.revision), scale.length)
    print(f"conversations: {len(pieces):,}, cleaned just now (notebook 02 has not run on this data here)")
    return pieces


def save_conversations(dataset: Dataset, scale: Scale) -> Path:
    """Write `dataset` as JSON Lines for the notebooks that follow; the first line says where it came from."""
    rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in [_origin(scale), *dataset])
    return write_whole(_path(scale), "".join(rows))


def _path(scale: Scale) -> Path:
    return scale.runs / "conversations.jsonl"


def _origin(scale: Scale) -> dict:
    return {"data": str(scale.data or "hub")}
