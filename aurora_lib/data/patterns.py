"""What the steps look for, by name (all in `patterns.toml`, with examples), and the language of a text."""

import re
import tomllib
from functools import cache
from pathlib import Path

# a table for each pattern, and their `parts` and `words`
TABLES = tomllib.loads(Path(__file__).with_name("patterns.toml").read_text(encoding="utf-8"))
WORDS = {name: frozenset(words) for name, words in TABLES["words"].items()}


@cache
def pattern(name: str) -> re.Pattern:
    """The pattern of this name, with its parts put in."""
    return re.compile(re.sub(r"\(\?&(\w+)\)", lambda part: TABLES["parts"][part[1]], TABLES[name]["pattern"]))


def language(text: str) -> str:
    """The language of `text`: "zh", "en" (any Latin script), "mixed" or "other" (other scripts, no letters).

    A Han character counts as one unit and so does a whole Latin word, as a name or symbol (`Fe`, `GPU`) makes
    Chinese no less Chinese: "zh" from 60 % Han units on, "en" from 90 % Latin ones on, "mixed" between.
    Code, formulas and addresses are not counted unless there is nothing else.
    """
    prose = pattern("not_prose").sub(" ", text)
    if not pattern("letter").search(prose):
        prose = text
    count = {script: len(pattern(script).findall(prose)) for script in ("han", "kana", "letter")}
    latin = pattern("latin").findall(prose)
    others = count["letter"] - count["han"] - sum(len(pattern("letter").findall(word)) for word in latin)
    if not count["letter"] or others > count["letter"] / 2 or count["kana"] > count["han"] / 4:
        return "other"
    share = count["han"] / (count["han"] + len(latin))
    return "zh" if share >= 0.6 else "mixed" if share > 0.1 else "en"
