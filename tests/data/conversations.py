"""Conversations for the tests of this folder."""

import json
import tomllib
from pathlib import Path

from aurora_lib.data import sources

EXAMPLES = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))
GOOD_FILES = [Path(__file__).parent / name for name in ("good_rows.jsonl", "good_rows_held_out.jsonl")]


def talk(*texts):
    """A conversation of these texts, user and assistant in turn."""
    return [dict(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]


def dataset(*conversations, source="alpaca_zh"):
    """Conversations as `sources.read` gives them; their ids count from 0."""
    of = dict(source=source, category="")
    return sources.table(of | dict(id=str(i), messages=found) for i, found in enumerate(conversations))


def good_conversations(*files):
    """Self-written good conversations near the border of every step."""
    lines = [line for file in files or GOOD_FILES for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["messages"] for line in lines]
