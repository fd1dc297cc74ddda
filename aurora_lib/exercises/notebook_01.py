"""Checkers of notebook 01: the router."""

import math
from numbers import Real

import torch

from aurora_lib.exercises.checking import close, exercise, number, plain


@exercise("01.1", 1, 8, "softmax, top-k, renormalisation")
def _top2(route):
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, 0.0, 0.0, 4.0]])
    probabilities = logits.softmax(-1)
    top, index = probabilities.topk(2, dim=-1)
    result = route(logits.clone())
    if not (isinstance(result, tuple | list) and len(result) == 2):
        return "return two tensors: the weights and the indices, both [tokens, 2]."
    weights, chosen = map(torch.as_tensor, result)
    if chosen.shape != index.shape:
        return f"the indices should have shape {tuple(index.shape)}, one row per token."
    if torch.is_floating_point(chosen):
        return "the second of the two should be the indices: return (weights, indices)."
    chosen = chosen.long()
    if not torch.equal(chosen.sort().values, index.sort().values):
        return "these are not the two largest logits of each token. Is `dim` the last one?"
    if close(weights, probabilities.gather(-1, chosen)):
        return "these are the two probabilities out of all experts; their sum is below 1. Divide each pair by its sum."
    if close(weights, logits.gather(-1, chosen)):
        return "these are the logits; a softmax is missing."
    if close(weights, probabilities.gather(-1, chosen).softmax(-1)):
        return "a second softmax flattens probabilities: divide each pair by its sum instead."
    expected = (probabilities / top.sum(-1, keepdim=True)).gather(-1, chosen)
    if close(weights, expected):
        return None
    kept = logits.gather(-1, chosen)
    if close(weights, kept / kept.sum(-1, keepdim=True)):
        return "these are logits divided by their sum: take the softmax first."
    if not close(weights.float().sum(-1), torch.ones(2)):
        return "the weights of each token should sum to one."
    return (
        "the weights belong to other logits. Is your softmax over the experts of one token, the last `dim`?"
    )


@exercise("01.2", 2, 8, "stored and active parameters")
def _active_parameters(billions):
    billions = plain(billions)
    if isinstance(billions, Real) and billions > 1e6:
        billions = billions / 1e9
    return number(
        billions,
        12.88,
        {
            46.70: "those are all stored parameters; a token passes through 2 of 8 experts.",
            46.70 / 4: "only the experts come in at 2 of 8; attention and embeddings are used whole.",
            7.24: "that is with one expert; each token takes two.",
            14.0: "2 x 7B counts attention and embeddings twice: only the experts are multiplied.",
            11.27: "those are the two experts alone; attention, embeddings and head are missing.",
            12.75: "embedding and head are two matrices of 32,000 x 4096: count both.",
            12.62: "embedding and head are missing.",
            56.0: "8 x 7B is the name, not the size: attention is shared by the experts.",
        },
        tolerance=4e-3,
    )


@exercise("01.3", 3, 12, "the load-balancing loss")
def _balance(loss):
    from aurora_lib.routing import balance_loss

    logits = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0)) * 2
    flat = logits.flatten(0, 1)
    right = balance_loss(logits, 2)
    mine = torch.as_tensor(loss(flat.clone(), 2)).float()
    if mine.dim():
        return "a loss is one number: sum over the experts."
    ratio = (mine / right).item()
    if math.isclose(ratio, 1, rel_tol=1e-4):
        one = torch.as_tensor(loss(flat.clone(), 1)).float()
        if not close(one, balance_loss(logits, 1)):
            return "right for two experts a token, and wrong for one: use `top_k`."
        never = torch.tensor([[2.0, 1.0, 0.0, -9.0]]).repeat(5, 1)  # nobody chooses the last expert
        if not close(torch.as_tensor(loss(never, 2)).float(), balance_loss(never[None], 2)):
            return "an expert that nobody chooses must count too, with a share of 0."
        return None
    if math.isclose(ratio, 1 / 4, rel_tol=1e-4):
        return "multiply by the number of experts, so that a perfect balance gives top_k."
    if math.isclose(ratio, 1 / 2, rel_tol=1e-4):
        return "each token gives top_k choices: divide the counts by the tokens, not by the choices."
    if torch.isclose(mine, 4 * flat.softmax(-1).mean(0).square().sum(), rtol=1e-4):
        return "one factor must be the share of choices (counted), the other the mean probability."
    return f"expected {right:.4f} on the test input, got {mine:.4f}."
