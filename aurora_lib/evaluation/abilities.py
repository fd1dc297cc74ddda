"""Small probes of what tuning on another language may cost: arithmetic, and doing exactly what is asked.

The questions are in `abilities.tsv`, in English and in Chinese; a rule judges every answer, not a model. Some
dozens of questions show a collapse, not a difference of a few points: see the intervals.
"""

import csv
import random
import re
from dataclasses import dataclass
from pathlib import Path

from aurora_lib.data import language
from aurora_lib.evaluation.evaluate import Score
from aurora_lib.evaluation.probes import ASKED, answers


def units(text: str) -> int:
    """Han characters and Latin words."""
    return len(re.findall(r"[\u4e00-\u9fff]|[A-Za-z]+(?:['’-][A-Za-z]+)*", text))


ARITHMETIC = {  # the right number: two rules of one step, two of two steps
    "plus": lambda a, b: a + b,
    "times": lambda a, b: a * b,
    "shelf": lambda a, b: (a + b) / 2,
    "tickets": lambda a, b: a * b + a,
}
INSTRUCTIONS = {  # whether an answer does what the row of this name asks, in either language
    "river": lambda text: 0 < units(text) <= (3 if language(text) == "en" else 5),
    "yes or no": lambda text: text.strip(" .。!！").casefold() in ("yes", "no", "是", "否"),
    "json": lambda text: re.fullmatch(r"\s*\[\s*(-?\d+\s*,\s*){2}-?\d+\s*\]\s*", text),
    "ending": lambda text: text.rstrip(" .。!！").endswith(("END", "完毕")),
    "commas": lambda text: len(re.split("[,，]", text)) == 3 and "\n" not in text,
    "no z": lambda text: units(text) > 3 and "z" not in text.casefold() and "冷" not in text,
    "numbered": lambda text: re.findall(r"^\s*(\d)[.、．]", text, re.M) == ["1", "2"],
    "tiger": lambda text: text.casefold().strip(" .。").split() in (["tiger"] * 3, ["老虎"] * 3),
    "in Chinese": lambda text: language(text) == "zh",
    "in English": lambda text: language(text) == "en",
}


@dataclass(frozen=True)
class SkillResult:
    """What a model answered: `rows` has skill, asked ("en" or "zh"), question, answer, correct."""

    rows: list[dict]

    @property
    def scores(self) -> dict[str, Score]:
        """By skill and the language asked in."""
        names = (f"{row['skill']}, asked in {ASKED[row['asked']]}" for row in self.rows)
        return Score.by(zip(names, (row["correct"] for row in self.rows), strict=True))


def number(text: str) -> float | None:
    """The last number of an answer, perhaps with thousands separators; None without one."""
    found = re.findall(r"-?\d+(?:[,，]\d{3})*(?:\.\d+)?", text)
    return float(re.sub("[,，]", "", found[-1])) if found else None


def problems() -> list[tuple[dict, object]]:
    """(question, what is right): ten sums of every kind with a number, every instruction with a rule."""
    draw, made = random.Random(0), []
    with Path(__file__).with_name("abilities.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["skill"] == "instructions":
                made.append((row, INSTRUCTIONS[row["rule"]]))
                continue
            for _ in range(10):  # even numbers, so that every half is a whole number
                a, b = 2 * draw.randint(2, 30), 2 * draw.randint(1, 9)
                asked = {side: row[side].format(a=a, b=b) for side in ("en", "zh")}
                made.append((row | asked, ARITHMETIC[row["rule"]](a, b)))
    return made


def skills(model, tokenizer) -> SkillResult:
    """Greedy answers to all problems in both languages: is the number right, the instruction followed?"""
    asked = [(row, right, side) for side in ("en", "zh") for row, right in problems()]
    said = answers(model, tokenizer, [row[side] for row, _, side in asked], progress=True)
    rows = []
    for (row, right, side), text in zip(asked, said, strict=True):
        correct = bool(right(text)) if callable(right) else number(text) == right
        rows.append(dict(skill=row["skill"], asked=side, question=row[side], answer=text, correct=correct))
    return SkillResult(rows)
