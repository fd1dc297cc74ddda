"""Checkers of notebook 02: the data."""

from aurora_lib.exercises.checking import compare, exercise, number


@exercise("02.1", 1, 6, "telling Chinese from English")
def han_share(share):
    for text in ("你好", "hello", "GPU 是显卡", "第3章：GPT-4", "MoE 的专家，7 个？", "ok，路由器", "A-的-B"):
        han, letters = sum("一" <= c <= "鿿" for c in text), sum(map(str.isalpha, text))
        made, right = share(text), han / letters
        every = f"in {text!r} every character counts as a letter. Divide by the letters, not by the length."
        otherwise = f"{text!r} has a Han share of {right} among its letters, not {made}."
        yield compare(made, right, {every: han / len(text)}, otherwise)
    try:
        yield None if share("？？ 123") == 0 else "a text without letters has a Han share of 0."
    except ZeroDivisionError:
        yield "a text without any letter divides by zero; return 0.0 there."


@exercise("02.2", 2, 8, "exact duplicates")
def unique(unique):
    for rows in map(list, ("babeadcb", "hgfhgeab", "ccaabbca", "edgedg")):
        made, right = list(unique(rows)), list(dict.fromkeys(rows))
        otherwise = f"of {rows} the rows {right} should stay, not {made}."
        if sorted(made) == sorted(right):
            otherwise = "right rows, other order: keep each where it first stood, "
            otherwise += "so that two runs give the same result."
        once = [row for row in rows if rows.count(row) == 1]
        mistakes = {"every copy was dropped; the first of each should stay.": once}
        yield compare(made, right, mistakes, otherwise, list.__eq__)


@exercise("02.3", 2, 8, "dropping without losing good rows")
def keep(keep):
    for answer in ("27", "负面", "是", "Fe", "¥35", "√2", "Yes."):
        if not keep(answer):
            if answer.isdigit() and keep("负面"):
                yield f"the answer {answer!r} is right, and has no letter: numbers say something too."
            yield f"the answer {answer!r} is short and right. Length alone is no reason to drop a row."
    for answer in ("", "  ", "。。。", "……", "!?", "——", "\n"):
        if keep(answer):
            yield f"the answer {answer!r} says nothing, and was kept."


@exercise("02.4", 3, 10, "choosing bands and rows")
def half(half):
    for bands, rows in ((5, 2), (32, 4), (7, 9), (25, 3), (40, 6)):
        one, none, rule = 1 - 0.5 ** (1 / bands), 0.5 ** (1 / bands), (1 / bands) ** (1 / rows)
        swapped = (1 - 0.5 ** (1 / rows)) ** (1 / bands)
        mistakes = {
            "(1/bands) ** (1/rows) is the rule of thumb for where the curve is steepest. "
            "Solve for exactly one half.": rule,
            "there *one* band agrees with probability one half. Any of the bands will do.": 0.5 ** (1 / rows),
            "bands and rows are swapped: the values within a band must all agree.": swapped,
            "this is the probability that one band agrees. It is j ** rows: take the root.": one,
            "this is the probability that one band does *not* agree. What is then j ** rows?": none,
        }
        yield number(half(bands, rows), one ** (1 / rows), mistakes)
