"""Checkers of notebook 05: evaluation."""

import math
from numbers import Real

import torch

from aurora_lib.exercises.checking import exercise, plain


@exercise("05.1", 2, 8, "an interval for a share")
def _interval(interval):
    from aurora_lib.evaluation import wilson

    low, high = interval(9, 10)
    right = wilson(9, 10)
    if math.isclose(low, right[0], abs_tol=2e-3) and math.isclose(high, right[1], abs_tol=2e-3):
        return None
    half = 1.96 * math.sqrt(0.9 * 0.1 / 10)
    if math.isclose(low, 0.9 - half, abs_tol=2e-3):
        return "that is the normal approximation: it reaches above 1 here. Use Wilson's formula."
    if low > high:
        return "the lower end comes first: (low, high)."
    if not 0 <= low <= high <= 1:
        return "a share lies between 0 and 1, and so does its interval."
    return f"for 9 of 10 Wilson's 95 % interval is about {right[0]:.3f} to {right[1]:.3f}, not {low:.3f} to {high:.3f}."


@exercise("05.2", 1, 6, "reading an answer from the logits")
def _pick(pick):
    logits, ids = torch.tensor([9.0, 0.1, 2.0, 1.0, 0.3, 5.0]), [4, 3, 1, 2]
    letter = plain(pick(logits, ids))
    if not isinstance(letter, str | Real):
        return f"one of the letters A, B, C, D is wanted, not a {type(letter).__name__}."
    if letter == "D":
        return None
    if letter in ("A", "B", "C"):
        return (
            f"the token ids {ids} stand for A, B, C, D; {letter} does not have the highest logit among them."
        )
    if letter == 3:
        return "return the letter, not its position."
    if letter == 2:
        return "return the letter, not its token id."
    if letter == 0:
        return "only the four letters' tokens compete, not the whole vocabulary."
    return f"one of the letters A, B, C, D is wanted, not {letter!r}."


@exercise("05.3", 1, 5, "micro and macro average")
def _micro(average):
    value = average({"law": (9, 10), "physics": (30, 100)})
    if math.isclose(value, 39 / 110, abs_tol=1e-6):
        return None
    if math.isclose(value, 0.6, abs_tol=1e-6):
        return "that is the macro average: every subject counts alike. The paper's stack counts every question alike."
    return f"39 of 110 questions are right, which is {39 / 110:.4f}, not {value:.4f}."
