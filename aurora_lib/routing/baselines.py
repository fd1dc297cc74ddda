"""What to compare a model's routing with: random routers, random adapters, the base; what tuning moved."""

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
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in fresh}
    for module in model.modules():  # what 4-bit experts hold beside their parameters (aurora_lib.model.nf4)
        shared |= {id(state): state for state in getattr(module, "quant_states", {}).values()}
    twin = copy.deepcopy(model, shared)
    generator = torch.Generator().manual_seed(seed)
    for router in routers(twin).values():
        for p in router.parameters():
            p.detach().copy_(torch.randn(p.shape, generator=generator) * p.detach().float().std().cpu())
    return twin


class WithoutAdapter(nn.Module):
    """A PEFT model as its base: the same weights, with the adapter off while it runs."""

    def __init__(self, tuned: nn.Module):
        super().__init__()
        self.tuned, self.config = tuned, tuned.config

    def forward(self, *args, **kwargs):
        with self.tuned.disable_adapter():
            return self.tuned(*args, **kwargs)


@contextmanager
def random_adapter(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Put a random LoRA update of the same rank and Frobenius norm in the place of every trained one.

    What it changes is what any change of that size changes. The trained ones are back when the `with` ends.
    Raises ValueError for a model without a LoRA adapter.
    """
    layers = [(layer.lora_A, layer.lora_B) for layer in model.modules() if hasattr(layer, "lora_A")]
    pairs = [(a[name].weight.detach(), b[name].weight.detach()) for a, b in layers for name in a]
    if not pairs:
        raise ValueError(f"{type(model).__name__} has no LoRA adapter to make random.")
    trained = [(a.clone(), b.clone()) for a, b in pairs]
    generator = torch.Generator().manual_seed(seed)
    try:
        for a, b in pairs:
            size = (b.float() @ a.float()).norm()
            for part in (a, b):
                part.copy_(torch.randn(part.shape, generator=generator))
            b.mul_(size / (b.float() @ a.float()).norm())
        yield
    finally:
        for (a, b), (trained_a, trained_b) in zip(pairs, trained, strict=True):
            a.copy_(trained_a)
            b.copy_(trained_b)


def shift(
    before: RoutingTrace, after: RoutingTrace, floors: Mapping[str, Sequence[RoutingTrace]]
) -> dict[str, Statistic]:
    """What share of the routing of the same tokens changed from `before` to `after`, with 95 % intervals.

    slots: token slots whose expert no longer works on the token. first: tokens with another first expert.
    weights: routing weight that went to other experts (total variation of a token's weights, 0 to 1).
    floors: name -> traces of the same tokens after a change that is not tuning (a `random_adapter`, the base
    in another precision): only what is above all is due to tuning. Raises ValueError if tokens differ.
    """
    moved = _moved(before, after)
    noise = {name: torch.stack([_moved(before, one)[0] for one in others]) for name, others in floors.items()}
    names = ("slots with another expert", "tokens with another first expert", "routing weight moved")
    found = {}
    for i, (key, name) in enumerate(zip(("slots", "first", "weights"), names, strict=True)):
        draws = {floor: each[:, i] for floor, each in noise.items()}
        found[key] = Statistic(f"{name} [share]", moved[0, i], before.layers, draws, moved[1:, i])
    return found


def _moved(before: RoutingTrace, after: RoutingTrace) -> Tensor:
    """The three shares and the ends of their intervals: float32 `[share and ends, measure, layer]`."""
    same = before.tokens == after.tokens and before.layers == after.layers
    if not same or not torch.equal(before.texts, after.texts):
        raise ValueError("The traces differ in tokens or layers: trace the same texts with both models.")
    kept = (before.experts[..., :, None] == after.experts[..., None, :]).any(-1)
    slots = 1 - kept.double().mean(-1)
    first = (before.experts[..., 0] != after.experts[..., 0]).double()
    zeros = torch.zeros_like(before.logits, dtype=torch.float64)
    old, new = (zeros.scatter(2, one.experts, one.weights.double()) for one in (before, after))
    by_token = torch.stack([slots, first, (old - new).abs().sum(-1) / 2]).permute(2, 0, 1)
    sizes = torch.bincount(before.texts).double()
    totals = by_token.new_zeros(len(sizes), *by_token.shape[1:]).index_add_(0, before.texts, by_token)
    return ratio_interval(totals, sizes)
