"""Checkers of notebook 04: fine-tuning."""

import math

import torch

from aurora_lib.exercises.checking import compare, exercise, normal


@exercise("04.1", 1, 6, "what the loss sees")
def labels(labels):
    first = torch.tensor([1, 5, 6, 7, 2]), torch.tensor([0, 0, 0, 1, 1])
    talks = [(normal(n).mul(99).abs().int().long() + 3, (normal(n, 2)[:, 0] > 0).long()) for n in (8, 13)]
    for ids, mask in (first, *talks):
        mask[0], mask[-1] = 0, 1
        made, right = torch.as_tensor(labels(ids, mask)), torch.where(mask.bool(), ids, -100)
        if made.shape != ids.shape:
            yield "labels are as long as the ids."
        mistakes = {
            "0 is a token like any other; the loss skips the label -100.": ids * mask,
            "the other way round: the mask is 1 where the assistant speaks, "
            "and that is what is learned.": torch.where(mask.bool(), -100, ids),
            "do not shift: the model's loss compares each label with the prediction before it "
            "by itself.": torch.cat([right[1:], torch.tensor([-100])]),
        }
        otherwise = f"for ids {ids.tolist()} and mask {mask.tolist()} this gave {made.tolist()}."
        if made[-1] == -100:
            otherwise = "the end token belongs to the answer: without it the model never learns to stop."
        yield compare(made, right, mistakes, otherwise, torch.equal)


@exercise("04.2", 2, 6, "the cosine schedule")
def cosine(rate):
    runs = [(0, 100, 0.1), (50, 100, 0.1), (100, 100, 0.1), (25, 100, 0.1), (37, 500, 1e-3), (410, 500, 5e-5)]
    for step, total, peak in runs:
        value, right = float(rate(step, total, peak)) / peak, (1 + math.cos(math.pi * step / total)) / 2
        half_a_period = (1 + math.cos(math.pi / 2 * step / total)) / 2
        mistakes = {
            "that runs from 1; multiply by the peak.": right / peak,
            "1 + cos starts at 2: halve it.": 2 * right,
            "the whole run spans half a period: the angle goes from 0 to pi.": half_a_period,
            "that is a straight line; the cosine falls slowly at both ends.": 1 - step / total,
        }
        otherwise = f"at step {step} of {total} the rate should be {right:.4f} of its peak, not {value:.4f}."
        yield compare(value, right, mistakes, otherwise)


@exercise("04.3", 3, 8, "why adapters stay in 32 bits")
def survives(survives):
    # 1.9 + 0.005 is kept: the spacing goes by powers of two, it is no fixed share of the weight
    kept, lost = [(1.0, 0.01), (1e-4, 5e-5), (1.9, 0.005)], [(1.0, 5e-5), (0.02, 5e-5), (1.0, 0.003)]
    for weight, update in kept + lost:
        right = (weight, update) in kept
        if bool(survives(weight, update)) != right:
            if survives(1.0, 5e-5) and not survives(1.0, 0.01):
                yield "the other way round: True where the weight changes."
            if survives(1.0, 5e-5):
                yield "with 32 or 64 bits everything survives. Make both numbers torch.bfloat16 first."
            same = "another number" if right else "the same number again"
            yield f"in bfloat16 {weight} + {update} is {same}."
