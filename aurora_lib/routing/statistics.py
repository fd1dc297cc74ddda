"""What a router's choices amount to: loads, how they differ between kinds of tokens, how many moved."""

import torch
from scipy import stats
from torch import Tensor

from aurora_lib.routing.tracing import RoutingTrace

LEVEL = 0.95


def expert_load(trace: RoutingTrace, which: Tensor | slice = slice(None)) -> Tensor:
    """Share of a layer's token slots that each expert serves: `[layers, experts]`, rows sum to one.

    which: the tokens that count, bool `[tokens]`; all unless given.
    """
    counts = chosen(trace)[:, which].sum(1)
    return counts / counts.sum(-1, keepdim=True)


def load_gap(trace: RoutingTrace, which: Tensor) -> Tensor:
    """Share of slots that would have to move to make the load of these tokens that of all others: `[layers]`.

    which: bool `[tokens]`; ValueError for none and for all. In statistics: total variation distance.
    """
    if which.all() or not which.any():
        raise ValueError(f"{int(which.sum())} of {len(which)} tokens: there is nothing to compare with.")
    return (expert_load(trace, which) - expert_load(trace, ~which)).abs().sum(-1) / 2


def bound(draws: Tensor) -> Tensor:
    """The value per layer, `[layers]`, that in about 95 % of further draws all layers stay under.

    draws: `[draws, layers]`. Many layers give chance many tries: the bound is that of the most extreme layer,
    in standard deviations, each draw measured by the others. Source: Westfall and Young, 1993 (max-T).
    """
    draws = draws.double()
    n, mean, spread = len(draws), draws.mean(0), draws.std(0, correction=0)
    z = torch.where(spread > 0, (draws - mean) / spread, 0.0)
    z = z.amax(1).quantile(LEVEL, interpolation="higher")
    return (mean + spread * z * (n / (n - 1 - z**2).clamp(min=1e-9)) ** 0.5).float()


def interval(values: Tensor) -> Tensor:
    """Mean over texts `[texts, ...]` and the ends of its 95 % interval, nan for one text: float32 `[3, ...]`.

    Texts are the units: tokens of one text are alike, and to count them as independent makes intervals
    several times too narrow. Source: Student's t.
    """
    texts, mean = len(values), values.mean(0)
    error = values.std(0, correction=min(1, texts - 1)) / texts**0.5
    margin = error * float(stats.t.ppf((1 + LEVEL) / 2, texts - 1))
    return torch.stack([mean, (mean - margin).clamp(min=0), (mean + margin).clamp(max=1)]).float()


def moved(before: RoutingTrace, after: RoutingTrace) -> Tensor:
    """Share of a text's slots whose expert no longer works on the token, as `interval`: `[3, layers]`.

    Any change moves some slots: what tuning moved is to be compared with a change of the same size
    (`baselines.random_adapter`). Raises ValueError if tokens or layers differ.
    """
    same = torch.equal(before.ids, after.ids) and torch.equal(before.texts, after.texts)
    if not same or before.layers != after.layers:
        raise ValueError("The traces differ in tokens or layers: trace the same texts with both models.")
    lost = chosen(before) * (1 - chosen(after))
    return interval(by_text(before, lost).sum(-1) / before.experts.shape[-1])


def chosen(trace: RoutingTrace) -> Tensor:
    """Whether each token uses each expert (0 or 1): float32 `[layers, tokens, experts]`."""
    return torch.zeros_like(trace.logits).scatter_(2, trace.experts, 1.0)


def by_text(trace: RoutingTrace, values: Tensor) -> Tensor:
    """Means of `[layers, tokens, experts]` over every text's tokens: float64 `[texts, layers, experts]`."""
    sizes = trace.texts.bincount()
    by_token = values.double().transpose(0, 1)
    sums = by_token.new_zeros(len(sizes), *by_token.shape[1:]).index_add_(0, trace.texts, by_token)
    return sums / sizes[:, None, None]
