"""Checkers of notebook 01: the router."""

import torch

from aurora_lib.exercises.checking import close, compare, exercise, normal


@exercise("01.1", 1, 8, "softmax, top-k, renormalisation")
def top2(route):
    first = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, 0.0, 0.0, 4.0]])
    for logits in (first, normal(5, 8), 3 * normal(7, 4)):
        index, result = logits.topk(2).indices, route(logits)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            yield "return two tensors: the weights and the indices, both [tokens, 2]."
        weights, chosen = map(torch.as_tensor, result)
        if chosen.shape != index.shape:
            yield f"the indices should have shape {tuple(index.shape)}, one row per token."
        if torch.is_floating_point(chosen):
            yield "the second of the two should be the indices: return (weights, indices)."
        chosen = chosen.long()
        if not torch.equal(chosen.sort().values, index.sort().values):
            yield "these are not the two largest logits of each token. Is `dim` the last one?"
        kept, share = logits.gather(-1, chosen), logits.softmax(-1).gather(-1, chosen)
        right, of_logits = (part / part.sum(-1, keepdim=True) for part in (share, kept))
        twice = share.softmax(-1)
        mistakes = {
            "these are the two probabilities out of all experts; their sum is below 1. "
            "Divide each pair by its sum.": share,
            "these are the logits; a softmax is missing.": kept,
            "a second softmax flattens probabilities: divide each pair by its sum instead.": twice,
            "these are logits divided by their sum: take the softmax first.": of_logits,
        }
        otherwise = "the weights belong to other logits. "
        otherwise += "Is your softmax over the experts of one token, the last `dim`?"
        if not close(weights.float().sum(-1), torch.ones(len(logits))):
            otherwise = "the weights of each token should sum to one."
        yield compare(weights, right, mistakes, otherwise)


@exercise("01.3", 3, 12, "the load-balancing loss")
def balance(loss):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = 2 * normal(48, 4)
    never = torch.tensor([[2.0, 1.0, 0.0, -9.0]]).repeat(5, 1)  # nobody chooses the last expert
    for flat, top_k, only_here in (
        (logits, 2, None),
        (logits, 1, "right for two experts a token, and wrong for one: use `top_k`."),
        (never, 2, "an expert that nobody chooses must count too, with a share of 0."),
        (2 * normal(30, 4), 3, None),
    ):
        right = load_balancing_loss_func((flat,), flat.shape[1], top_k)
        made = torch.as_tensor(loss(flat, top_k)).float()
        if made.dim():
            yield "a loss is one number: sum over the experts."
        n, smaller, squares = flat.shape[1], right / top_k, flat.softmax(-1).mean(0).square().sum()
        mistakes = {
            "multiply by the number of experts, so that a perfect balance gives top_k.": right / n,
            "each token gives top_k choices: divide the counts by the tokens, not by the choices.": smaller,
            "one factor must be the share of choices (counted), the other the mean probability.": n * squares,
        }
        problem = compare(made, right, mistakes, f"expected {right:.4f} on the test input, got {made:.4f}.")
        yield problem and (only_here or problem)
