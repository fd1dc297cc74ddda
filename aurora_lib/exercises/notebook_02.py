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
    if max(precision, recall) < 0.5:
        yield "most bad rows stay, and good ones go. Is it the other way round?"
    if precision < 0.9:
        yield "good rows go that only speak *about* a product. Who says 我? Did the user ask for it?"
    if recall < 0.8:
        yield "too many bad rows stay. Look for other products, other verbs than 是, and every answer."


@exercise("02.3", 2, 12, "finding what is wrong in a filter")
def stay(stay):
    def alike(a, b):
        return abs(len(a) - len(b)) <= 3

    def kept(texts, by_length=True, longest=True, gone_too=False):
        order, left = sorted(texts, key=len, reverse=longest) if by_length else texts, []
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
            "one bug is left: a text should go only if it is like one that *stays*.": kept(
                texts, gone_too=True
            ),
            "the order in which they came decides here; the longest should.": kept(texts, by_length=False),
        }
        made, right = sorted(stay(texts, alike)), kept(texts)
        lengths = f"texts of {[*map(len, texts)]} characters, alike if at most 3 apart"
        otherwise = f"of {lengths}, those of {[*map(len, right)]} should stay, not {[*map(len, made)]}."
        if right not in mistakes.values():  # else nobody can tell the bugs apart
            yield compare(made, right, mistakes, otherwise, list.__eq__)


@exercise("02.4", 2, 10, "an open question: how to cut 128 numbers into bands")
def cut(cut):
    from aurora_lib.data import duplicates, sources

    bands, rows = cut
    if min(bands, rows) < 1 or bands * rows > duplicates.PERMUTATIONS:
        yield f"{bands} bands of {rows} do not fit into {duplicates.PERMUTATIONS} numbers."
    texts = map(duplicates.plain, sources.read().conversations["messages"])
    texts = [text for text in texts if len(text) >= 25]
    copies = [text[: len(text) // 2] + "〇" + text[len(text) // 2 + 1 :] for text in texts]
    signed, copied = (duplicates.signatures([*map(duplicates.shingles, of)]) for of in (texts, copies))

    def tried(bands, rows):
        """The share of planted copies that share a band with their text, and how many pairs of texts do."""
        parts, others = (of[:, : bands * rows].reshape(-1, bands, rows) for of in (signed, copied))
        pairs = sum((parts[i] == parts[:i]).all(2).any(1).sum() for i in range(len(parts)))
        return (parts == others).all(2).any(1).mean(), pairs

    (found, pairs), (_, ours) = tried(bands, rows), tried(duplicates.BANDS, duplicates.ROWS)
    print(f"{bands} x {rows}: {found:.1%} of the copies found, {pairs} pairs compared (ours: {ours}).")
    if found < 0.95:
        yield "more than one copy in twenty is missed: take shorter bands, or more of them."
    if pairs >= 60:
        yield "it compares 60 pairs or more: take longer bands, or fewer of them."
