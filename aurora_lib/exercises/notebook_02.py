"""Checkers of notebook 02: the data."""

import math

from aurora_lib.exercises.checking import exercise, number


@exercise("02.1", 1, 6, "telling Chinese from English")
def _han_share(share):
    for text, right in (("你好", 1.0), ("hello", 0.0), ("GPU 是显卡", 0.5), ("第3章：GPT-4", 0.4)):
        value = share(text)
        if not math.isclose(value, right, abs_tol=1e-6):
            if math.isclose(value, sum("一" <= c <= "鿿" for c in text) / len(text), abs_tol=1e-6):
                return f"in {text!r} every character counts as a letter. Divide by the letters, not by the length."
            return f"{text!r} has a Han share of {right} among its letters, not {value}."
    try:
        value = share("？？ 123")
    except ZeroDivisionError:
        return "a text without any letter divides by zero; return 0.0 there."
    return None if value == 0 else "a text without letters has a Han share of 0."


@exercise("02.2", 2, 8, "exact duplicates")
def _unique(unique):
    rows = ["b", "a", "b", "e", "a", "d", "c", "b"]
    kept = list(unique(list(rows)))
    if kept == ["b", "a", "e", "d", "c"]:
        return None
    if kept == ["e", "d", "c"]:
        return "every copy was dropped; the first of each should stay."
    if sorted(kept) == ["a", "b", "c", "d", "e"]:
        return (
            "right rows, other order: keep each where it first stood, so that two runs give the same result."
        )
    return f"of {rows} the rows ['b', 'a', 'e', 'd', 'c'] should stay, not {kept}."


@exercise("02.3", 2, 8, "dropping without losing good rows")
def _keep(keep):
    for answer in ("27", "负面", "是", "Fe", "¥35", "√2", "Yes."):
        if not keep(answer):
            if answer.isdigit() and keep("负面"):
                return f"the answer {answer!r} is right, and has no letter: numbers say something too."
            return f"the answer {answer!r} is short and right. Length alone is no reason to drop a row."
    for answer in ("", "  ", "。。。", "……", "!?", "——", "\n"):
        if keep(answer):
            return f"the answer {answer!r} says nothing, and was kept."
    return None


@exercise("02.4", 3, 10, "choosing bands and rows")
def _half(half):
    bands, rows = 5, 2
    right = (1 - 0.5 ** (1 / bands)) ** (1 / rows)
    mistakes = {
        (1 / bands)
        ** (
            1 / rows
        ): "(1/bands) ** (1/rows) is the rule of thumb for where the curve is steepest. Solve for exactly one half.",
        0.5 ** (1 / rows): "there *one* band agrees with probability one half. Any of the bands will do.",
        (1 - 0.5 ** (1 / rows))
        ** (1 / bands): "bands and rows are swapped: the values within a band must all agree.",
        1
        - 0.5 ** (1 / bands): "this is the probability that one band agrees. It is j ** rows: take the root.",
        0.5 ** (1 / bands): "this is the probability that one band does *not* agree. What is then j ** rows?",
    }
    problem = number(half(bands, rows), right, mistakes)
    return problem or number(half(32, 4), (1 - 0.5 ** (1 / 32)) ** (1 / 4), {})
