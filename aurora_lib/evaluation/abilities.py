"""Small probes of what tuning on another language may cost: arithmetic, and doing exactly what is asked.

Every question is written for this course and exists in English and in Chinese; every answer is judged by a rule, not
by another model. Some dozens of questions show a collapse, not a difference of a few points: see the intervals.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from aurora_lib.data.languages import language
from aurora_lib.evaluation.probes import answers
from aurora_lib.evaluation.scores import Score

# English, Chinese, and the right number: two of one step, two of two steps.
ARITHMETIC = [
    (
        "What is {a} plus {b}? Answer with the number only.",
        "{a}加{b}等于多少？只回答数字。",
        lambda a, b: a + b,
    ),
    (
        "What is {a} times {b}? Answer with the number only.",
        "{a}乘以{b}等于多少？只回答数字。",
        lambda a, b: a * b,
    ),
    (
        "A shelf holds {a} books. {b} more are put on it, and then half of all the books are sold. How many are left?",
        "书架上有{a}本书，又放上{b}本，然后卖掉了全部书的一半。还剩多少本？",
        lambda a, b: (a + b) / 2,
    ),
    (
        "A ticket costs {a} yuan for an adult and half of that for a child. What do {b} adults and two children pay together?",
        "成人票每张{a}元，儿童票半价。{b}个成人和两个儿童一共要付多少元？",
        lambda a, b: a * b + a,
    ),
]


def _json_list(text: str) -> bool:
    try:
        made = json.loads(text)
    except ValueError:
        return False
    return isinstance(made, list) and len(made) == 3 and all(isinstance(x, int) for x in made)


def _units(text: str) -> int:
    """Han characters and Latin words."""
    return len(re.findall(r"[\u4e00-\u9fff]|[A-Za-z]+(?:['’-][A-Za-z]+)*", text))


INSTRUCTIONS: list[tuple[str, str, Callable[[str], bool]]] = [
    (
        "Name a river. Answer in at most three words.",
        "说出一条河的名字。回答不超过五个字。",
        lambda text: 0 < _units(text) <= (3 if language(text) == "en" else 5),
    ),
    (
        "Is water wet? Answer with exactly one word: yes or no.",
        "水是湿的吗？只用一个字回答：是或否。",
        lambda text: text.strip(" .。!！").casefold() in ("yes", "no", "是", "否"),
    ),
    (
        "Write a JSON list of three whole numbers, and nothing else.",
        "写出一个由三个整数组成的JSON列表，不要写其他内容。",
        _json_list,
    ),
    (
        "Describe the sea in one sentence that ends with the word END.",
        "用一句话描述大海，并以“完毕”两个字结尾。",
        lambda text: text.rstrip(" .。!！").endswith(("END", "完毕")),
    ),
    (
        "List three fruits, separated by commas, on a single line.",
        "列出三种水果，用逗号隔开，写在一行里。",
        lambda text: len(re.split("[,，]", text)) == 3 and "\n" not in text,
    ),
    (
        "Describe a winter day without using the letter z.",
        "描述一个冬天的日子，不要使用“冷”字。",
        lambda text: _units(text) > 3 and "z" not in text.casefold() and "冷" not in text,
    ),
    (
        "Give two reasons to read books, as a numbered list with 1. and 2.",
        "给出两个读书的理由，用1.和2.编号。",
        lambda text: re.findall(r"^\s*(\d)[.、．]", text, re.M) == ["1", "2"],
    ),
    (
        "Write the word tiger three times, with nothing in between but spaces.",
        "把“老虎”这个词写三遍，中间只用空格隔开。",
        lambda text: text.casefold().strip(" .。").split() in (["tiger"] * 3, ["老虎"] * 3),
    ),
    (
        "Answer in Chinese: what colour is grass?",
        "请用中文回答：草是什么颜色？",
        lambda text: language(text) == "zh",
    ),
    (
        "Answer in English: what colour is the sky?",
        "请用英文回答：天空是什么颜色？",
        lambda text: language(text) == "en",
    ),
]


@dataclass(frozen=True)
class SkillResult:
    """What a model answered: `rows` has skill, asked ("en" or "zh"), question, answer, correct."""

    rows: list[dict]

    @property
    def scores(self) -> dict[str, Score]:
        """By skill and the language asked in."""
        kinds = dict.fromkeys((row["skill"], row["asked"]) for row in self.rows)
        return {
            f"{skill}, asked in {dict(en='English', zh='Chinese')[asked]}": Score.of(
                row["correct"] for row in self.rows if (row["skill"], row["asked"]) == (skill, asked)
            )
            for skill, asked in kinds
        }


def number(text: str) -> float | None:
    """The last number of an answer, with thousands separators or a Chinese full stop after it; None without one."""
    found = re.findall(r"-?\d+(?:[,，]\d{3})*(?:\.\d+)?", text)
    return float(re.sub("[,，]", "", found[-1])) if found else None


def arithmetic(each: int = 10, seed: int = 0) -> list[tuple[str, str, float]]:
    """`each` problems of every kind: the question in English and in Chinese, and the number that is right."""
    draw, problems = random.Random(seed), []
    for en, zh, solve in ARITHMETIC:
        for _ in range(each):
            a, b = (
                2 * draw.randint(2, 30),
                2 * draw.randint(1, 9),
            )  # even, so that every half is a whole number
            problems.append((en.format(a=a, b=b), zh.format(a=a, b=b), float(solve(a, b))))
    return problems


def skills(model, tokenizer, *, max_new_tokens: int = 64, batch_size: int = 16, progress=True) -> SkillResult:
    """Greedy answers to all probes in both languages, judged: the number right, the instruction followed."""
    rows, rules = [], []
    for k, asked in enumerate(("en", "zh")):
        for problem in arithmetic():
            rows.append(dict(skill="arithmetic", asked=asked, question=problem[k]))
            rules.append(lambda text, right=problem[2]: number(text) == right)
        for instruction in INSTRUCTIONS:
            rows.append(dict(skill="instructions", asked=asked, question=instruction[k]))
            rules.append(instruction[2])
    settings = dict(max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    said = answers(model, tokenizer, [row["question"] for row in rows], **settings)
    judged = zip(rows, said, rules, strict=True)
    return SkillResult([row | dict(answer=text, correct=bool(rule(text))) for row, text, rule in judged])
