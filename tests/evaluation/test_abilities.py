"""The rules that judge arithmetic and instructions, and the counting of what a model answered."""

import re

from aurora_lib.evaluation import abilities
from aurora_lib.evaluation.evaluate import Score
from tests.evaluation.conftest import EXAMPLES


def test_every_instruction_accepts_what_follows_it_and_refuses_what_does_not():
    examples = EXAMPLES["instructions"]
    assert examples.keys() == abilities.INSTRUCTIONS.keys()
    for rule, followed in abilities.INSTRUCTIONS.items():
        kept = [bool(followed(text)) for text in (*examples[rule], "")]
        assert kept == [True, True, False, False, False], rule


def test_the_last_number_of_an_answer_is_what_counts():
    values = EXAMPLES["numbers"] | {"forty": None}
    assert {text: abilities.number(text) for text in values} == values


def test_arithmetic_problems_have_the_numbers_they_show_and_whole_solutions():
    sums = [(row, right) for row, right in abilities.problems() if row["skill"] == "arithmetic"]
    assert len(sums) == 40 and len({row["en"] for row, _ in sums}) > 35
    for kind, (row, right) in enumerate(sums):
        a, b = (int(part) for part in re.findall(r"\d+", row["en"]))
        assert [int(part) for part in re.findall(r"\d+", row["zh"])] == [a, b] and right == int(right)
        assert right == (a + b, a * b, (a + b) // 2, a * b + 2 * (a // 2))[kind // 10]


def test_scores_count_by_skill_and_language(monkeypatch):
    solved = {row["en"]: right for row, right in abilities.problems() if row["skill"] == "arithmetic"}

    def answer(model, tokenizer, prompts, **settings):
        return [f"{solved[text]:.0f}" if text in solved else "The sky is blue." for text in prompts]

    monkeypatch.setattr(abilities, "answers", answer)
    scores = abilities.skills(None, None).scores
    assert scores["arithmetic, asked in English"] == Score(40, 40)
    assert scores["arithmetic, asked in Chinese"] == Score(0, 40)
    # it follows two of the ten: no letter z (no 冷), and English; four words are too many for a river
    assert [scores[f"instructions, asked in {side}"] for side in ("English", "Chinese")] == [Score(2, 10)] * 2
