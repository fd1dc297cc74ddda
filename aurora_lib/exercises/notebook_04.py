"""Checkers of notebook 04: fine-tuning."""

import math

import torch

from aurora_lib.exercises.checking import exercise


@exercise("04.1", 1, 6, "what the loss sees")
def _labels(labels):
    ids, mask = torch.tensor([1, 5, 6, 7, 2]), torch.tensor([0, 0, 0, 1, 1])
    made = torch.as_tensor(labels(ids.clone(), mask.clone()))
    if made.shape != ids.shape:
        return "labels are as long as the ids."
    if torch.equal(made, torch.tensor([-100, -100, -100, 7, 2])):
        return None
    if torch.equal(made, ids * mask):
        return "0 is a token like any other; the loss skips the label -100."
    if torch.equal(made, torch.tensor([1, 5, 6, -100, -100])):
        return "the other way round: the mask is 1 where the assistant speaks, and that is what is learned."
    if torch.equal(made, torch.tensor([-100, -100, 7, 2, -100])):
        return "do not shift: the model's loss compares each label with the prediction before it by itself."
    if made[-1] == -100:
        return "the end token belongs to the answer: without it the model never learns to stop."
    return f"for ids {ids.tolist()} and mask {mask.tolist()} this gave {made.tolist()}."


@exercise("04.2", 2, 6, "the cosine schedule")
def _cosine(rate):
    for step, right in ((0, 1.0), (50, 0.5), (100, 0.0), (25, 0.5 * (1 + math.cos(math.pi / 4)))):
        value = float(rate(step, 100, 0.1)) / 0.1
        if not math.isclose(value, right, abs_tol=1e-6):
            if math.isclose(value * 0.1, right, abs_tol=1e-6):
                return "that runs from 1; multiply by the peak."
            if step == 0 and math.isclose(value, 2.0):
                return "1 + cos starts at 2: halve it."
            if step == 50 and math.isclose(value, math.cos(math.pi / 4) / 2 + 0.5, abs_tol=1e-6):
                return "the whole run spans half a period: the angle goes from 0 to pi."
            if step == 25 and math.isclose(value, 0.75, abs_tol=1e-6):
                return "that is a straight line; the cosine falls slowly at both ends."
            return f"at step {step} of 100 the rate should be {right:.4f} of its peak, not {value:.4f}."
    return None


@exercise("04.3", 3, 8, "why adapters stay in 32 bits")
def _survives(survives):
    for weight, update, right in (
        (1.0, 5e-5, False),
        (1.0, 0.01, True),
        (1e-4, 5e-5, True),
        (0.02, 5e-5, False),
        (1.0, 0.003, False),
        (
            1.9,
            0.005,
            True,
        ),  # the same weight's size decides, by powers of two: no fixed share of the weight does
    ):
        if bool(survives(weight, update)) != right:
            if survives(1.0, 5e-5) and not survives(1.0, 0.01):
                return "the other way round: True where the weight changes."
            if survives(1.0, 5e-5):
                return "with 32 or 64 bits everything survives. Make both numbers torch.bfloat16 first."
            return f"in bfloat16 {weight} + {update} is {'another number' if right else 'the same number again'}."
    return None
