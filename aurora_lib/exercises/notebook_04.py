"""Checkers of notebook 04: fine-tuning."""

import random

import torch

from aurora_lib.exercises.checking import compare, exercise, normal


@exercise("04.1", 2, 12, "what the loss sees, with more than one turn")
def labels(labels):
    draw = random.Random(4)
    for turns in (2, 1, 3, 4):
        close, end = draw.sample(range(10, 20), turns % 3 + 1), draw.randrange(2, 9)
        said = [[draw.choices(range(20, 99), k=draw.randint(2, 5)) for _ in "qa"] for _ in range(turns)]
        ids = [1] + [token for question, answer in said for token in [*question, *close, *answer, end]]

        def learned(which=range(turns), late=0, early=0, asked=False, said=said, close=close, end=end):
            """The labels of the answers `which`, without some tokens; with `asked`, later questions too."""
            made = [-100]
            for number, (question, answer) in enumerate(said):
                question, answer = [*question, *close], [*answer, end]
                kept = answer[late : len(answer) - early] if number in which else []
                skipped = [-100] * late if kept else [-100] * len(answer)
                made += question if asked and number else [-100] * len(question)
                made += skipped + kept + [-100] * early * bool(kept)
            return made

        right = learned()
        mistakes = {
            "the end token belongs to the answer: without it the model never learns to stop.": learned(
                early=1
            ),
            "the first token of each answer is missing: the answer begins behind `close`.": learned(late=1),
            "0 is a token like any other; the loss skips the label -100.": [max(0, i) for i in right],
        }
        if turns > 1:
            mistakes |= {
                "only the first answer is learned. What comes when the next question ends?": learned([0]),
                "only the last answer is learned; each one counts.": learned([turns - 1]),
                "from the second question on, questions are learned too.": learned(asked=True),
            }
        made = torch.as_tensor(labels(ids, close, end)).tolist()
        if len(made) != len(ids):
            yield "labels are as long as the ids, and not shifted: the loss does that by itself."
        otherwise = f"for ids {ids}, close {close} and end {end} this gave {made}."
        yield compare(made, right, mistakes, otherwise, list.__eq__)


@exercise("04.2", 2, 10, "finding why a gradient is zero")
def fresh(fresh):
    for rank, width, out in ((4, 12, 7), (2, 9, 9), (8, 16, 3)):
        a, b = (torch.as_tensor(x).float().detach().requires_grad_() for x in fresh(rank, width, out))
        if (a.shape, b.shape) != ((rank, width), (out, rank)):
            yield f"A is [rank, in] and B is [out, rank]; these are {[*a.shape]} and {[*b.shape]}."
        if (b @ a).any():
            yield "before the first step the model must be the base: B A has to be 0."
        (normal(20, width) @ a.T @ b.T - normal(20, out)).square().mean().backward()
        if not a.grad.any() and not b.grad.any():
            yield "the gradient still is zero. The chain rule multiplies that of A by B, and that of B by A."
        if torch.linalg.matrix_rank(torch.cat([a, b.T], dim=1)) < min(rank, width, out):
            yield "all rows are alike, and stay alike: the detour is of rank 1. Draw them at random."


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


@exercise("04.4", 2, 10, "an open question: a variant of your own")
def variant(tried):
    guess, shares = tried
    measured, english = (100 * shares[f"{it} prompts right in {it}"] for it in ("Chinese", "English"))
    if not 0 <= guess <= 100:
        yield "the guess is a number from 0 to 100: of 100 Chinese questions, how many are answered right?"
    print(
        f"Guessed {guess:.0f} of 100, measured {measured:.0f}. Of 100 English ones {english:.0f} are right."
    )
    if abs(guess - measured) > 10:
        yield "more than ten away. What did you overlook? Try another variant."
