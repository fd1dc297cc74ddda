"""Checkers of notebook 05: evaluation."""

import math
from numbers import Real

import torch

from aurora_lib.exercises.checking import close, compare, exercise, normal


@exercise("05.1", 2, 8, "an interval for a share")
def interval(interval):
    from scipy.stats import binomtest

    for k, n in ((9, 10), (10, 10), (3, 45), (24, 61), (40, 139)):
        low, high = (float(end) for end in interval(k, n))
        right = binomtest(k, n).proportion_ci(method="wilson")
        if close((low, high), right, 2e-3):
            continue
        if math.isclose(low, k / n - 1.96 * math.sqrt(k / n * (1 - k / n) / n), abs_tol=2e-3):
            yield "that is the normal approximation: it reaches above 1 here. Use Wilson's formula."
        if low > high:
            yield "the lower end comes first: (low, high)."
        if not 0 <= low <= high <= 1:
            yield "a share lies between 0 and 1, and so does its interval."
        about = f"about {right.low:.3f} to {right.high:.3f}, not {low:.3f} to {high:.3f}."
        yield f"for {k} of {n} Wilson's 95 % interval is {about}"


@exercise("05.2", 1, 6, "reading an answer from the logits")
def pick(pick):
    first = torch.tensor([9.0, 0.1, 2.0, 1.0, 0.3, 5.0]), [4, 3, 1, 2]
    others = [(normal(n), normal(n, 2)[:, 0].topk(4).indices.tolist()) for n in range(20, 26)]
    for logits, ids in (first, *others):
        place, letter = int(logits[ids].argmax()), pick(logits, ids)
        if not isinstance(letter, str | Real):
            yield f"one of the letters A, B, C, D is wanted, not a {type(letter).__name__}."
        if letter in set("ABCD") - {"ABCD"[place]}:
            other = f"{letter} does not have the highest logit among them."
            yield f"the token ids {ids} stand for A, B, C, D; {other}"
        mistakes = {
            "return the letter, not its position.": place,
            "return the letter, not its token id.": ids[place],
            "only the four letters' tokens compete, not the whole vocabulary.": int(logits.argmax()),
        }
        otherwise = f"one of the letters A, B, C, D is wanted, not {letter!r}."
        yield compare(letter, "ABCD"[place], mistakes, otherwise, lambda a, b: a == b)


@exercise("05.3", 1, 5, "micro and macro average")
def micro(average):
    others = {"law": (1, 50), "art": (9, 9), "music": (4, 31)}, {"history": (7, 8), "physics": (2, 90)}
    for subjects in ({"law": (9, 10), "physics": (30, 100)}, *others):
        value = average(subjects)
        correct, n = map(sum, zip(*subjects.values(), strict=True))
        macro = "that is the macro average: every subject counts alike. "
        macro += "The paper's stack counts every question alike."
        mistakes = {macro: sum(k / of for k, of in subjects.values()) / len(subjects)}
        otherwise = f"{correct} of {n} questions are right, which is {correct / n:.4f}, not {value:.4f}."
        yield compare(value, correct / n, mistakes, otherwise)
