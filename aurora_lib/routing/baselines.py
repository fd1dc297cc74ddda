"""What to compare a model's routing with: random routers, random adapters."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from aurora_lib.routing.tracing import routers


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
