"""Checkers of notebook 02: the data."""

import json
import random

from aurora_lib.course import DATA
from aurora_lib.exercises.checking import compare, exercise


@exercise("02.1", 2, 15, "a cleaning step of your own, scored on labelled rows")
def claims(step):
    text = (DATA / "identity.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    dropped, bad = [bool(step(row["messages"])) for row in rows], [row["bad"] for row in rows]
    if len(set(dropped)) == 1:
        what = "drops" if dropped[0] else "keeps"
        yield f"it {what} every row. Return a reason for a bad row, and None for a good one."
    hits = sum(map(min, dropped, bad))
    precision, recall = hits / sum(dropped), hits / sum(bad)
    print(f"Precision {precision:.2f}: of {sum(dropped)} dropped rows, {hits} are bad.")
    print(f"Recall {recall:.2f}: of {sum(bad)} bad rows, {hits} are dropped.")
    for what, gone in (("dropped wrongly", True), ("missed", False)):
        fault = next((row for row, d in zip(rows, dropped, strict=True) if d == gone != row["bad"]), None)
        if fault:
            print(f"First {what}:", " | ".join(message["content"] for message in fault["messages"]))
    if precision < 0.9:
        yield "good rows go that only speak *about* a product. Who says 我? Did the user ask for it?"
    if recall < 0.8:
        yield "too many bad rows stay. Look for other products, other verbs than 是, and every answer."


@exercise("02.3", 2, 12, "finding what is wrong in a filter")
def stay(stay):
    def alike(a, b):
        return abs(len(a) - len(b)) <= 3

    def kept(texts, longest=True, gone_too=False):
        order, left = sorted(texts, key=len, reverse=longest), []
        for place, text in enumerate(order):
            if not any(alike(text, other) for other in (order[:place] if gone_too else left)):
                left = [*left, text]
        return sorted(left)

    draw = random.Random(2)
    for _ in range(20):
        texts = ["长" * n for n in draw.sample(range(4, 40), 12)]
        mistakes = {
            "these are the two bugs, still there.": kept(texts, longest=False, gone_too=True),
            "one bug is left: which of two texts that are alike should stay?": kept(texts, longest=False),
            "one bug is left: a text goes only if it is like one that *stays*.": kept(texts, gone_too=True),
        }
        made, right = sorted(stay(texts, alike)), kept(texts)
        lengths = f"texts of {[*map(len, texts)]} characters, alike if at most 3 apart"
        otherwise = f"of {lengths}, those of {[*map(len, right)]} should stay, not {[*map(len, made)]}."
        if right not in mistakes.values():  # else nobody can tell the bugs apart
            yield compare(made, right, mistakes, otherwise, list.__eq__)


@exercise("02.4", 2, 10, "an open question: how to cut 128 numbers into bands")
def cut(cut):
    bands, rows = cut
    if not (bands == int(bands) > 0 and rows == int(rows) > 0 and bands * rows <= 128):
        yield f"{bands} bands of {rows} do not fit into 128 numbers."
    found, strangers = (1 - (1 - j**rows) ** bands for j in (0.8, 0.3))
    print(f"{bands} x {rows}: {found:.1%} of the pairs with J = 0.8 are compared, {strangers:.1%} with 0.3.")
    if found < 0.98:
        yield "it misses more than one near duplicate in fifty: take shorter bands, or more of them."
    if strangers >= 0.05:
        yield "one pair of strangers in twenty is compared: take longer bands, or fewer of them."
