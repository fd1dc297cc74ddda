"""Models to compare a model with: random routers, its base under an adapter, a random change as large as tuning."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aurora_lib.routing.tracing import RoutingTrace, join, routers, trace_many


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


def random_traces(model: nn.Module, tokenizer, texts: Sequence[str], draws: int = 19) -> list[RoutingTrace]:
    """One joined trace of the same texts for each of so many random routers, seeds 0, 1, ...

    Above all of 19 is what chance does in 5 % of cases.
    """
    twins = (random_router(model, seed) for seed in range(draws))
    return [join(trace_many(twin, tokenizer, texts)) for twin in twins]


@contextmanager
def random_adapter(model: nn.Module, seed: int = 0) -> Iterator[nn.Module]:
    """Puts a random LoRA update in the place of every trained one while the `with` lasts: same rank, same Frobenius norm.

    What it changes is what any change of that size changes. Raises ValueError for a model without a LoRA adapter.
    """
    pairs = [
        (module.lora_A[name].weight, module.lora_B[name].weight)
        for module in model.modules()
        if hasattr(module, "lora_A")
        for name in module.lora_A
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
        yield model
    finally:
        with torch.no_grad():
            for pair, kept in zip(pairs, trained, strict=True):
                for part, was in zip(pair, kept, strict=True):
                    part.copy_(was)


def _norm(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius norm of `b @ a`, without building that matrix."""
    return ((a.float() @ a.float().T) * (b.float().T @ b.float())).sum().sqrt()


def random_adapter_traces(
    model: nn.Module, tokenizer, texts: Sequence[str], draws: int = 19
) -> list[RoutingTrace]:
    """One joined trace of the texts for each of so many random changes as large as the adapter: `shift`'s floor."""
    traces = []
    for seed in range(draws):
        with random_adapter(model, seed):
            traces.append(join(trace_many(model, tokenizer, texts)))
    return traces


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

    def generate(self, *args, **kwargs):
        with self.tuned.disable_adapter():
            return self.tuned.generate(*args, **kwargs)
