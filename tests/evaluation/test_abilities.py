"""The rules that judge arithmetic and instructions, and the counting of what a model answered."""

import re

from aurora_lib.evaluation import abilities
from aurora_lib.evaluation.evaluate import Score

RULES = {  # what follows the instruction, in English and in Chinese, and what does not
    "river": ("The Nile.", "长江。", "One of the rivers is the Nile.", "中国有一条河叫长江。"),
    "yes or no": ("Yes.", "是。", "Yes, it is.", "水是湿的。"),
    "json": ("[1, 2, 3]", "[4,5,6]", "Here: [1, 2, 3]", "[1, 2]"),
    "ending": ("The sea is blue END.", "大海又宽又蓝，完毕。", "END of the sea is far.", "完毕以后大海很蓝"),
    "commas": ("apple, pear, plum", "苹果，梨，李子", "apple\npear\nplum", "苹果、梨、李子"),
    "no z": ("Snow lies on the roofs.", "屋顶上有厚厚的雪。", "A freezing day in town.", "今天天气很冷。"),
    "numbered": (
        "1. To learn.\n2. To rest.",
        "1. 学习。\n2. 休息。",
        "- To learn.\n- To rest.",
        "一、学习。",
    ),
    "tiger": ("tiger tiger tiger", "老虎 老虎 老虎", "tiger, tiger, tiger", "老虎老虎老虎"),
    "in Chinese": ("草是绿色的。", "草是绿色的。", "Grass is green.", "Grass is green."),
    "in English": ("The sky is blue.", "The sky is blue.", "天空是蓝色的。", "天空是蓝色的。"),
}


def test_every_instruction_accepts_what_follows_it_and_refuses_what_does_not():
    assert RULES.keys() == abilities.INSTRUCTIONS.keys()
    for rule, followed in abilities.INSTRUCTIONS.items():
        kept = [bool(followed(text)) for text in (*RULES[rule], "")]
        assert kept == [True, True, False, False, False], rule


def test_the_last_number_of_an_answer_is_what_counts():
    values = {"It is 42.": 42, "3 + 4 = 7": 7, "一共1，234元。": 1234, "-5": -5, "12,5": 5, "forty": None}
    values["答案是36，完毕"] = 36
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
