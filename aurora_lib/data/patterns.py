"""What the cleaning steps look for, by name: `patterns.toml` holds every word and pattern, with examples."""

import re
import tomllib
from functools import cache
from pathlib import Path


@cache
def read() -> dict:
    """`patterns.toml`: a table for each pattern, and its `parts` and `words`."""
    return tomllib.loads(Path(__file__).with_name("patterns.toml").read_text(encoding="utf-8"))


@cache
def pattern(name: str) -> re.Pattern:
    """The pattern of this name, with its parts put in."""
    return re.compile(re.sub(r"\(\?&(\w+)\)", lambda part: read()["parts"][part[1]], read()[name]["pattern"]))


@cache
def words(name: str) -> frozenset[str]:
    """The words of this name."""
    return frozenset(read()["words"][name])
