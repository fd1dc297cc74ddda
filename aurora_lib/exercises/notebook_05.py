"""Checkers of notebook 05: evaluation."""

import math
import random
from functools import partial
from statistics import stdev

from aurora_lib.course import DATA
from aurora_lib.exercises.checking import close, compare, exercise, normal
from aurora_lib.model import load_tokenizer

roughly = partial(close, tolerance=1e-3)


@exercise("05.2", 2, 10, "cloze scoring")
def answer_logprob(score):
    for tokens, start in ((6, 3), (9, 8), (12, 5), (20, 2)):
        logits, ids = 3 * normal(tokens, 15), normal(15, tokens).argmax(0)
        before, answer = range(start - 1, tokens - 1), ids[start:]
        each = logits.log_softmax(-1)[before, answer]
        late = logits.log_softmax(-1)[range(start, tokens), answer]
        mistakes = {
            "the output at a place foresees the *next* token: take the row before.": late.sum().item(),
            "logits are no log-probabilities yet: log_softmax.": logits[before, answer].sum().item(),
            "that is the mean; the whole answer's log-probability is the sum.": each.mean().item(),
        }
        right = each.sum().item()
        yield compare(float(score(logits, ids, start)), right, mistakes, f"expected {right:.3f}.", roughly)


@exercise("05.3", 2, 10, "the paired test")
def mcnemar(test):
    from scipy.stats import binomtest

    draw = random.Random(5)
    for n in (40, 12, 90, 25, 1):
        before, after = ([draw.random() < share for _ in range(n)] for share in (0.8, 0.6))
        gained = sum(b > a for a, b in zip(before, after, strict=True))
        lost = sum(a > b for a, b in zip(before, after, strict=True))
        split = gained, gained + lost
        right = binomtest(*split).pvalue if any(split) else 1.0
        mistakes = {
            "questions on which both agree tell nothing: leave them out.": binomtest(gained, n).pvalue
        }
        if any(split):
            sided = [binomtest(*split, alternative=side).pvalue for side in ("less", "greater")]
            mistakes["that is one-sided; either model may be the better one."] = min(sided)
        otherwise = f"{gained} right only after, {lost} only before: p is {right:.4g}."
        yield compare(float(test(before, after)), right, mistakes, otherwise, roughly)


@exercise("05.4", 3, 12, "which token is compared")
def letter_ids(find):
    for tokenizer in (load_tokenizer(), load_tokenizer(DATA / "tiny")):
        for before, gap in (("Answer:", " "), ("答案：", ""), ("[INST] x [/INST]", " ")):
            whole = [
                tokenizer(before + gap + letter, add_special_tokens=False).input_ids for letter in "ABCD"
            ]
            made, right = list(find(tokenizer, before, gap)), [ids[-1] for ids in whole]
            mine, piece = tokenizer.convert_ids_to_tokens([made[0], right[0]])
            if made != right:
                yield f"one of the prompts gets {mine!r} where the letter is the piece {piece!r}."


@exercise("05.5", 2, 15, "an open question: the order of examples")
def draw(score):
    made = [score(number) for number in range(1, 6)]
    asked = {tuple((row["subject"], row["index"]) for row in each.predictions) for each in made}
    if len(asked) > 1 or len({tuple(row["prediction"] for row in each.predictions) for each in made}) == 1:
        yield "hand the number on as `shuffle`, and change nothing else: all draws ask the same questions."
    shares, n = [each.overall.accuracy for each in made], made[0].overall.n
    luck = math.sqrt(shares[0] * (1 - shares[0]) / n)
    print(f"Five draws: {min(shares):.3f} to {max(shares):.3f}, standard deviation {stdev(shares):.3f}.")
    print(f"Other questions, n = {n}, would move the score by {luck:.3f} (one standard error).")
