"""What to compare a model's routing with: random routers, the base under an adapter, and what tuning moved."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aurora_lib.routing.statistics import Statistic, ratio_interval
from aurora_lib.routing.tracing import RoutingTrace, routers


def random_router(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose routers are random, at the trained ones' scale: the baseline for claims about routing.

    It shares all other weights with `model`: it costs almost no memory, and is for looking, not training.
    Raises ValueError for a model without routers.
    """
    fresh = {id(p) for router in routers(model).values() for p in router.parameters()}
    if not fresh:
        raise ValueError(f"{type(model).__name__} has no top-k router to make random.")
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in fresh}
    for module in model.modules():  # what 4-bit experts hold beside their parameters (aurora_lib.model.nf4)
        shared |= {id(state): state for state in getattr(module, "quant_states", {}).values()}
    twin = copy.deepcopy(model, shared)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for router in routers(twin).values():
            for p in router.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * p.float().std().cpu())
    return twin


class WithoutAdapter(nn.Module):
    """A PEFT model as its base: the same weights, with the adapter off while it runs."""

    def __init__(self, tuned: nn.Module):
        super().__init__()
        self.tuned = tuned

    @property
    def config(self):
        return self.tuned.config

    def forward(self, *args, **kwargs):
        with self.tuned.disable_adapter():
            return self.tuned(*args, **kwargs)


@contextmanager
def random_adapter(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Puts a random LoRA update of the same rank and Frobenius norm in the place of every trained one.

    What it changes is what any change of that size changes. The trained ones are back when the `with` ends.
    Raises ValueError for a model without a LoRA adapter.
    """
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    pairs = [
        (layer.lora_A[name].weight, layer.lora_B[name].weight) for layer in layers for name in layer.lora_A
    ]
    if not pairs:
        raise ValueError(f"{type(model).__name__} has no LoRA adapter to make random.")
    trained = [(a.detach().clone(), b.detach().clone()) for a, b in pairs]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for a, b in pairs:
                size = _norm(a, b)
                for part in (a, b):
                    part.copy_(torch.randn(part.shape, generator=generator))
                b.mul_(size / _norm(a, b))
        yield
    finally:
        with torch.no_grad():
            for (a, b), (was_a, was_b) in zip(pairs, trained, strict=True):
                a.copy_(was_a)
                b.copy_(was_b)


def _norm(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius norm of `b @ a`, without building that matrix."""
    return ((a.float() @ a.float().T) * (b.float().T @ b.float())).sum().sqrt()


def shift(
    before: RoutingTrace, after: RoutingTrace, floors: Mapping[str, Sequence[RoutingTrace]]
) -> dict[str, Statistic]:
    """What share of the routing of the same tokens changed from `before` to `after`, with 95 % intervals over texts.

    slots: token slots whose expert no longer works on the token. first: tokens with another first expert. weights:
    routing weight that went to other experts (total variation of a token's weights, 0 to 1).
    floors: name -> traces of the same tokens after a change that is not tuning (`random_adapter`, the base
    computed in another precision). Only what lies above all of them is about tuning.
    Raises ValueError for traces of different tokens.
    """
    found = _moved(before, after)
    noise = {
        name: torch.stack([_moved(before, other)[0] for other in others]) for name, others in floors.items()
    }
    titles = {
        "slots": "slots with another expert [share]",
        "first": "tokens with another first expert [share]",
        "weights": "routing weight moved [share]",
    }
    return {
        key: Statistic(
            name=title,
            value=found[0, i],
            layers=before.layers,
            baselines={name: draws[:, i] for name, draws in noise.items()},
            interval=found[1:, i],
        )
        for i, (key, title) in enumerate(titles.items())
    }


def _moved(before: RoutingTrace, after: RoutingTrace) -> Tensor:
    """The three shares with the ends of their intervals over texts: `[share and ends, measure, layer]`."""
    same = before.tokens == after.tokens and before.layers == after.layers
    if not same or not torch.equal(before.texts, after.texts):
        raise ValueError(
            "These traces are not of the same tokens and layers: trace the same texts with both models."
        )
    kept = (before.experts[..., :, None] == after.experts[..., None, :]).any(-1)
    slots = 1 - kept.double().mean(-1)
    first = (before.experts[..., 0] != after.experts[..., 0]).double()
    was, is_now = (
        torch.zeros_like(one.logits).double().scatter_(2, one.experts, one.weights.double())
        for one in (before, after)
    )
    weights = (was - is_now).abs().sum(-1) / 2
    by_token = torch.stack([slots, first, weights]).permute(2, 0, 1)
    sizes = torch.bincount(before.texts).double()
    totals = torch.zeros(len(sizes), *by_token.shape[1:]).double().index_add_(0, before.texts, by_token)
    return ratio_interval(totals, sizes)
