"""What tuning moved: two models' routing of the same tokens, token by token, beside changes that are not tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_lib.routing.counts import ratio_interval
from aurora_lib.routing.statistics import Statistic, names
from aurora_lib.routing.tracing import RoutingTrace


@dataclass(frozen=True)
class Shift:
    """Shares of what moved, each a Statistic per layer with its 95 % interval over texts and its noise floors.

    slots: token slots whose expert no longer works on the token. first: tokens with another first expert. weights:
    routing weight that went to other experts (total variation of a token's weights, 0 to 1).
    """

    slots: Statistic
    first: Statistic
    weights: Statistic

    def table(self):
        """A DataFrame, a row per layer and measure: value, 95 % interval, bound of each floor, above all of them."""
        import pandas as pd

        parts = []
        for one in (self.slots, self.first, self.weights):
            table = (
                one.table()
                if one.baselines
                else pd.DataFrame({one.name: one.value.tolist()}, index=one.layers)
            )
            table = table.rename(columns={one.name: "share"})
            table.insert(0, "measure", one.name)
            table.insert(2, "low", one.interval[0].tolist())
            table.insert(3, "high", one.interval[1].tolist())
            parts.append(table)
        return pd.concat(parts)

    def __str__(self) -> str:
        return "\n".join(str(one) for one in (self.slots, self.first, self.weights))


def shift(
    before: RoutingTrace, after: RoutingTrace, floors: Mapping[str, Sequence[RoutingTrace]] | None = None
) -> Shift:
    """What share of the routing of the same tokens changed from `before` to `after`, per layer.

    floors: name -> traces of the same tokens after a change that is not tuning (`random_adapter_traces`, the base
    computed in another precision). Only what lies above all of them is about tuning. Raises ValueError for traces of
    different tokens.
    """
    value, low, high = _moved(before, after)
    noise = {
        name: torch.stack([_moved(before, other)[0] for other in others])
        for name, others in (floors or {}).items()
    }
    titles = (
        "slots with another expert [share]",
        "tokens with another first expert [share]",
        "routing weight moved [share]",
    )
    return Shift(
        *(
            Statistic(
                name=title,
                value=value[i],
                layers=names(before),
                baselines={name: draws[:, i] for name, draws in noise.items()},
                interval=torch.stack([low[i], high[i]]),
            )
            for i, title in enumerate(titles)
        )
    )


def _moved(before: RoutingTrace, after: RoutingTrace) -> tuple[Tensor, Tensor, Tensor]:
    """The three shares `[3, layers]` with the ends of their intervals over texts."""
    if (
        before.tokens != after.tokens
        or not torch.equal(before.texts, after.texts)
        or before.layers != after.layers
    ):
        raise ValueError(
            "These are not traces of the same tokens and layers: trace the same texts with both models."
        )
    kept = (before.experts[..., :, None] == after.experts[..., None, :]).any(-1)
    slots = 1 - kept.double().mean(-1)
    first = (before.experts[..., 0] != after.experts[..., 0]).double()
    weights = (_spread(before) - _spread(after)).abs().sum(-1) / 2
    each = torch.stack([slots, first, weights]).permute(2, 0, 1)  # tokens, measure, layer
    texts = int(before.texts.max()) + 1
    sums = torch.zeros(texts, *each.shape[1:], dtype=torch.float64).index_add_(0, before.texts, each)
    mean, low, high = ratio_interval(sums, torch.bincount(before.texts, minlength=texts).double())
    return mean, low.clamp(min=0), high.clamp(max=1)


def _spread(trace: RoutingTrace) -> Tensor:
    """The weight of every expert for every token: float64 `[layers, tokens, experts]`."""
    return torch.zeros_like(trace.logits, dtype=torch.float64).scatter_(
        2, trace.experts, trace.weights.double()
    )
