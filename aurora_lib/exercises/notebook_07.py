"""Checkers of notebook 07: preference tuning."""

import math

import torch

from aurora_lib.exercises.checking import close, exercise, plain

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0], [0.5, 0.0, 2.0]])
IDS, MASK = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1])


@exercise("07.1", 2, 10, "the log-probability of an answer")
def _answer(logp):
    logs = LOGITS.log_softmax(-1)
    each = logs[:-1].gather(1, IDS[1:, None])[:, 0]
    value = torch.as_tensor(plain(logp(LOGITS.clone(), IDS.clone(), MASK.clone())), dtype=torch.float32)
    if value.shape != ():
        return (
            f"one number is wanted, not a tensor of shape {tuple(value.shape)}: sum over the answer's tokens."
        )
    same_place = logs.gather(1, IDS[:, None])[:, 0]
    raw = LOGITS[:-1].gather(1, IDS[1:, None])[:, 0]
    mistakes = (
        ((same_place * MASK).sum(), "the logits at a place predict the token *after* it: shift by one."),
        (each.sum(), "the question's tokens are in it too. Only those where the mask is 1 count."),
        ((each * MASK[1:]).sum() / 2, "that is the mean of the answer's tokens. DPO takes their sum."),
        ((each * MASK[:-1]).sum(), "the mask belongs to the tokens, so it is shifted with them: `mask[1:]`."),
        (
            (raw * MASK[1:]).sum(),
            "logits are no log-probabilities yet: `log_softmax` over the vocabulary first.",
        ),
        (-(each * MASK[1:]).sum(), "the sign: a log-probability is never above 0."),
        ((each.exp() * MASK[1:]).sum(), "those are probabilities. Take their logarithms, then add."),
    )
    right = (each * MASK[1:]).sum()
    if close(value, right):
        return None
    return next((why for wrong, why in mistakes if close(value, wrong)), f"got {value:.4f}, not {right:.4f}.")


# log-probabilities [pairs, 2] (chosen, rejected): the first pair is liked more than before, the second only at first sight
POLICY = torch.tensor([[-9.0, -5.0], [-2.0, -6.0], [-3.0, -4.0], [-1.0, -7.0]])
REFERENCE = torch.tensor([[-10.0, -3.0], [-1.0, -7.0], [-3.0, -4.0], [-2.0, -5.0]])


@exercise("07.2", 2, 8, "reward accuracy")
def _accuracy(accuracy):
    share = plain(accuracy(POLICY.clone(), REFERENCE.clone()))
    if not isinstance(share, int | float) or isinstance(share, bool):
        return f"one share between 0 and 1 is wanted, not a {type(share).__name__}."
    if math.isclose(share, 0.5, abs_tol=1e-6):
        # both answers of the first and third pair have fallen, the rejected ones further
        fallen = torch.tensor([[-1.0, -3.0], [2.0, 3.0], [-1.0, -2.0], [1.0, 0.0]])
        if math.isclose(float(plain(accuracy(REFERENCE + fallen, REFERENCE.clone()))), 0.75, abs_tol=1e-6):
            return None
        return "compare the two rewards of a pair: chosen may fall, as long as rejected falls further."
    if math.isclose(share, 0.75, abs_tol=1e-6):
        again = plain(accuracy(POLICY.clone(), REFERENCE.clone() + torch.tensor([100.0, 0.0])))
        if math.isclose(float(again), 0.75, abs_tol=1e-6):
            return "the reference plays no part in it. A reward is policy *minus* reference."
        return "a pair whose two rewards are equal was not decided: it is no hit."
    if math.isclose(share, 0.25, abs_tol=1e-6):
        return "the other way round: a hit is a chosen answer whose reward is *higher*."
    if math.isclose(share, 2.0, abs_tol=1e-6):
        return "those are the hits. Divide by the number of pairs."
    return f"2 of the 4 pairs are hits, which is 0.5, not {share:g}."


@exercise("07.3", 3, 10, "which pairs still teach")
def _pull(pull):
    for margin, beta in ((10.0, 0.1), (0.0, 0.1), (-10.0, 0.1), (10.0, 1.0)):
        value, right = float(pull(margin, beta)), beta / (1 + math.exp(beta * margin))
        if math.isclose(value, right, rel_tol=1e-3):
            continue
        for wrong, why in (
            (right / beta, "the outer derivative alone: by the chain rule beta comes out in front."),
            (
                -right,
                "the slope is negative, its size is not: the pull is how *strongly* the loss wants a larger margin.",
            ),
            (
                beta / (1 + math.exp(-beta * margin)),
                "this grows with the margin. A pair already well apart pulls least.",
            ),
            (1 / (1 + math.exp(margin)), "beta is missing, inside the sigmoid and in front of it."),
            (beta / (1 + math.exp(margin)), "beta also stands inside the sigmoid."),
            (math.log1p(math.exp(-beta * margin)), "that is the loss; its slope is wanted."),
        ):
            if math.isclose(value, wrong, rel_tol=1e-3):
                return why
        return f"at margin {margin:g} and beta {beta:g} the pull is {right:.4g}, not {value:.4g}."
    return None
