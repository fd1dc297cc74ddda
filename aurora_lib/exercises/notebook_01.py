"""Checkers of notebook 01: the router."""

import math

import torch

from aurora_lib.exercises.checking import close, compare, exercise, normal


def mixed(x, stacks, share, swapped=False):
    """All experts, each times its share `[tokens, experts]`: slow, and nothing is gathered."""
    gate, up = torch.einsum("th,eih->tei", x, stacks[0]).chunk(2, dim=-1)
    gate, up = (up, gate) if swapped else (gate, up)
    return torch.einsum("te,tei,ehi->th", share, torch.nn.functional.silu(gate) * up, stacks[1])


def best(probabilities, top_k):
    """The `top_k` largest of each token; the others are zero."""
    top, chosen = probabilities.topk(top_k)
    return torch.zeros_like(probabilities).scatter(1, chosen, top)


@exercise("01.1", 3, 20, "the sparse block: route, gather, run, scatter")
def block(answer):
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    for tokens, experts, top_k in ((10, 8, 2), (7, 4, 1), (12, 6, 3)):
        sizes = dict(hidden_size=16, intermediate_size=24, num_local_experts=experts)
        config = MixtralConfig(**sizes, num_experts_per_tok=top_k, experts_implementation="eager")
        library = MixtralSparseMoeBlock(config)
        parts = [library.gate.weight, library.experts.gate_up_proj, library.experts.down_proj]
        for part in parts:
            part.data = 0.3 * normal(*part.shape)
        x = normal(tokens, 16).requires_grad_()
        right, goal = library(x[None])[0], normal(tokens, 16)
        made = torch.as_tensor(answer(x, *parts, top_k))
        if made.shape != right.shape:
            yield f"the output should have the shape of x, {tuple(x.shape)}, not {tuple(made.shape)}."
        probabilities = (x @ parts[0].T).softmax(-1)
        kept, two = best(probabilities, top_k), best(probabilities, 2)
        share = kept / kept.sum(-1, keepdim=True)
        shares = {
            "the weights of a token should sum to one: divide by the sum of those kept.": kept,
            "all experts run here. Keep only the best `top_k` of each token.": probabilities,
            "every chosen expert counts the same: multiply its output by its weight.": (kept > 0).float(),
            "right for two experts a token only: use `top_k`.": two / two.sum(-1, keepdim=True),
        }
        mistakes = {why: mixed(x, parts[1:], wrong) for why, wrong in shares.items()}
        mistakes["gate and up are swapped: SiLU is for the first half."] = mixed(x, parts[1:], share, True)
        otherwise = "the output is another one. Look at one token and one expert first: gather, run, scatter."
        yield compare(made, right, mistakes, otherwise, lambda a, b: close(a, b, 1e-4))
        pairs = [
            torch.autograd.grad((y * goal).sum(), [x, *parts], allow_unused=True)
            for y in (answer.function(x, *parts, top_k), right)
        ]
        for name, one, other in zip(("x", "router", "gate_up", "down"), *pairs, strict=True):
            if one is None or not close(one, other, 1e-3):
                yield f"the output is right, and the gradient of {name} is not: is something detached?"


@exercise("01.4", 2, 10, "capacity and dropped tokens")
def dropped(answer):
    cases = (41, 4, 2, 1.0), (31, 8, 2, 1.25), (50, 6, 1, 1.5), (64, 8, 3, 1.0)
    for tokens, experts, top_k, factor in cases:
        chosen = (normal(tokens, experts) + normal(experts)).topk(top_k).indices
        counts, slots = torch.bincount(chosen.flatten(), minlength=experts), chosen.numel()

        def lost(size, floor=0, counts=counts, experts=experts, factor=factor):
            return (counts - math.ceil(factor * size / experts)).clamp(min=floor).sum().item()

        mistakes = {
            "the two bugs, still there.": lost(tokens, -slots) / slots,
            "room to spare is no help to a full expert: nothing below zero.": lost(slots, -slots) / slots,
            "the buffers are for slots. How many slots do the tokens fill?": lost(tokens) / slots,
            "those are the slots that were dropped. Give their share.": lost(slots),
        }
        if top_k == 1:  # one slot a token: only the second bug shows
            mistakes = {why: wrong for why, wrong in mistakes.items() if "zero" in why}
        right, made = lost(slots) / slots, float(answer(chosen, experts, factor))
        yield compare(made, right, mistakes, f"of {slots} slots {right:.1%} are dropped, not {made:.1%}.")


@exercise("01.5", 2, 15, "an open question: what does a router tell apart?")
def kind(belongs):
    tokens = ["<s>", "▁the", "▁", "的", "7", "▁12", "。", ",", "<0xE9>", "Paris", "巴黎", "[INST]"]
    found = [token for token in tokens if belongs(token)]
    if len(found) in (0, len(tokens)):
        yield f"of {tokens} {'all' if found else 'none'} are of your kind. Some must be, and some must not."
