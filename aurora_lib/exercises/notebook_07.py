"""Checkers of notebook 07: preference tuning."""

import torch

from aurora_lib.exercises.checking import compare, exercise, normal


@exercise("07.2", 2, 8, "reward accuracy")
def reward_accuracy(accuracy):
    # log-probabilities [pairs, 2] (chosen, rejected), rounded, so that some rewards are equal
    for pairs in (22, 31):
        policy, reference = (3 * normal(pairs, 2)).round() - 9, (3 * normal(2, pairs).T).round() - 9
        (chosen, rejected), unguided = (policy - reference).T, policy[:, 0] > policy[:, 1]
        made, right = accuracy(policy, reference), (chosen > rejected).float().mean().item()
        if not isinstance(made, int | float) or isinstance(made, bool):
            yield f"one share between 0 and 1 is wanted, not a {type(made).__name__}."
        rises = chosen > 0
        hits = {
            "compare the two rewards of a pair: chosen may fall, as long as rejected falls further.": rises,
            "the reference plays no part in it. A reward is policy *minus* reference.": unguided,
            "a pair whose two rewards are equal was not decided: it is no hit.": chosen >= rejected,
            "the other way round: a hit is a chosen answer whose reward is *higher*.": chosen < rejected,
        }
        mistakes = {why: hit.float().mean() for why, hit in hits.items()}
        mistakes["those are the hits. Divide by the number of pairs."] = right * pairs
        otherwise = f"{right * pairs:g} of the {pairs} pairs are hits, which is {right:.4g}, not {made:g}."
        yield compare(made, right, mistakes, otherwise)


@exercise("07.3", 3, 10, "the right reference, the right way round")
def loss(loss):
    for pairs, beta in ((5, 0.1), (7, 0.5), (4, 2.0)):
        policy, base, start = (3 * normal(pairs, 2, 3) - 9).unbind(-1)
        right, value = _loss(policy - start, beta), torch.as_tensor(loss(policy, base, start, beta))
        if value.shape != ():
            yield f"one number is wanted, the mean over the pairs, not shape {tuple(value.shape)}."
        mistakes = {
            "those are the two bugs, still there.": _loss((policy - base).flip(1), beta),
            "the reference is still the wrong model: where did this stage start?": _loss(policy - base, beta),
            "which answer is to win? One bug is left.": _loss((policy - start).flip(1), beta),
            "without a reference nothing holds the policy where it started.": _loss(policy, beta),
            "that is the sum over the pairs. TRL takes the mean.": right * pairs,
            "the mean comes last: first a loss for each pair.": _loss((policy - start).mean(0)[None], beta),
        }
        yield compare(value, right, mistakes, f"got {value:.4f}, not {right:.4f}.")


def _loss(ratios, beta):
    return torch.nn.functional.softplus(-beta * (ratios[:, 0] - ratios[:, 1])).mean()
