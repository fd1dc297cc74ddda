"""What a router's choices amount to: loads, how they differ between languages, what share of them moved.

A difference between languages is a `Statistic`: one number per layer beside what chance makes of it. Only
what lies above the bounds of both baselines is about what this router has learnt.

- *Shuffled texts*: the languages exchanged at random between whole texts, as tokens of one text are alike.
- *Random routers*: the same model with random routers. The same token goes nearly the same way in any router,
  so a random one too seems to know about languages. It also changes what later layers read: only in the first
  layer does it read what the trained router reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from aurora_lib.routing.tracing import RoutingTrace

LEVEL = 0.95


@dataclass(frozen=True)
class Statistic:
    """One number per layer and what chance makes of it; printed, it says in which layers it is above that.

    value: `[layers]`; baselines: name -> `[draws, layers]`, the same from every shuffle or random router.
    """

    name: str
    value: Tensor
    layers: list[int]
    baselines: dict[str, Tensor]

    @property
    def above(self) -> dict[str, list[int]]:
        """For every baseline the layers whose value lies above its bound."""
        higher = {name: self.value > bound(draws) for name, draws in self.baselines.items()}
        return {name: list(compress(self.layers, found.tolist())) for name, found in higher.items()}

    def table(self) -> pd.DataFrame:
        """A row per layer: the value, and mean and bound of each baseline."""
        columns = {"this router": self.value}
        for name, draws in self.baselines.items():
            columns |= {f"{name}: mean": draws.double().mean(0), f"{name}: bound": bound(draws)}
        layers = pd.Index(self.layers, name="layer")
        return pd.DataFrame({name: column.tolist() for name, column in columns.items()}, index=layers)

    def __str__(self) -> str:
        lines = [f"{self.name}: {', '.join(f'{value:.3g}' for value in self.value.tolist())}"]
        for name, layers in self.above.items():
            where = f"layers {', '.join(map(str, layers))}" if layers else "no layer"
            lines.append(f"above the bound of {name} ({len(self.baselines[name])} draws): {where}")
        return "\n".join(lines)


def bound(draws: Tensor) -> Tensor:
    """The value per layer, `[layers]`, that all layers stay under in 95 % of the draws `[draws, layers]`.

    Many layers give chance many tries: the bound is that of the most extreme layer, in standard deviations.
    Few draws: the largest decides. Source: Westfall and Young, 1993 (max-T).
    """
    draws = draws.double()
    mean, spread = draws.mean(0), draws.std(0, correction=0)
    z = torch.where(spread > 0, (draws - mean) / spread, 0.0)
    return (mean + spread * z.amax(1).quantile(LEVEL, interpolation="higher")).float()


def expert_load(trace: RoutingTrace) -> Tensor:
    """Share of a layer's token slots that each expert serves: `[layers, experts]`, rows sum to one."""
    counts = _chosen(trace).sum(1)
    return counts / counts.sum(-1, keepdim=True)


def load_by_group(trace: RoutingTrace, labels: Sequence[str]) -> dict[str, Tensor]:
    """Load of each group of texts and the ends of its 95 % interval: `[load and ends, layers, experts]`.

    labels: the group of each text. Raises ValueError if there is not one per text.
    """
    slots, loads = _slots_by_text(trace, labels), {}
    for group in dict.fromkeys(labels):
        own = slots[torch.tensor([label == group for label in labels])]
        loads[group] = ratio_interval(own, own[:, 0].sum(-1))
    return loads


def ratio_interval(totals: Tensor, sizes: Tensor) -> Tensor:
    """Sum of totals / sum of sizes and the ends of its 95 % interval, nan for one text: float32 `[3, ...]`.

    totals `[texts, ...]`, sizes `[texts]`, float64. Texts are the units: tokens of one text are alike, and to
    count them as independent makes intervals several times too narrow. Source: the linearised variance of a
    ratio of cluster totals (Cochran, 1977, 6.4).
    """
    texts, share = len(sizes), totals.sum(0) / sizes.sum()
    rest = (totals - torch.einsum("t,...->t...", sizes, share)).square().sum(0)
    error = (rest * texts / max(texts - 1, 1)).sqrt() / sizes.sum()
    margin = error * float(stats.t.ppf((1 + LEVEL) / 2, texts - 1))
    return torch.stack([share, (share - margin).clamp(min=0), (share + margin).clamp(max=1)]).float()


def load_gap(
    trace: RoutingTrace, labels: Sequence[str], random: Sequence[RoutingTrace] = (), permutations: int = 200
) -> Statistic:
    """Share of slots that would have to move to make the loads of zh and en texts equal (total variation).

    labels: the language of each text; random: the same texts traced with random routers, if any. Raises
    ValueError if there is not one label per text, or no text in one of the two languages.
    """
    member = torch.tensor([[label == group for label in labels] for group in ("zh", "en")])
    if not member.any(1).all():
        raise ValueError(f"zh and en need a text each; the labels are {sorted(set(labels))}.")
    keep = member.any(0)
    own, *others = (_slots_by_text(one, labels)[keep] for one in (trace, *random))
    member = member[:, keep].double()

    def gap(slots, member):
        one, other = torch.einsum("gt,tle->gle", member, slots)
        gaps = one / one.sum(-1, keepdim=True) - other / other.sum(-1, keepdim=True)
        return (gaps.abs().sum(-1) / 2).float()

    generator = torch.Generator().manual_seed(0)
    orders = (torch.randperm(member.shape[1], generator=generator) for _ in range(permutations))
    baselines = {"shuffled texts": torch.stack([gap(own, member[:, order]) for order in orders])}
    if others:
        baselines["random routers"] = torch.stack([gap(slots, member) for slots in others])
    name = "load gap, zh against en [share of slots]"
    return Statistic(name, gap(own, member), trace.layers, baselines)


def moved(before: RoutingTrace, after: RoutingTrace) -> Tensor:
    """Share of token slots whose expert no longer works on the token, and the ends of its 95 % interval.

    float32 `[share and ends, layers]`. Any change moves some slots: what tuning moved is to be compared with
    a change of the same size (`baselines.random_adapter`). Raises ValueError if tokens or layers differ.
    """
    same = torch.equal(before.ids, after.ids) and torch.equal(before.texts, after.texts)
    if not same or before.layers != after.layers:
        raise ValueError("The traces differ in tokens or layers: trace the same texts with both models.")
    slots, lost = _chosen(before), _chosen(before) > _chosen(after)
    return ratio_interval(_by_text(before, lost).sum(-1), _by_text(before, slots)[:, 0].sum(-1))


def _chosen(trace: RoutingTrace) -> Tensor:
    """Whether each token uses each expert (0 or 1): float32 `[layers, tokens, experts]`."""
    return torch.zeros_like(trace.logits).scatter_(2, trace.experts, 1.0)


def _by_text(trace: RoutingTrace, values: Tensor) -> Tensor:
    """Sums of `[layers, tokens, experts]` over every text's tokens: float64 `[texts, layers, experts]`."""
    by_token = values.double().transpose(0, 1)
    texts = int(trace.texts.max()) + 1
    return by_token.new_zeros(texts, *by_token.shape[1:]).index_add_(0, trace.texts, by_token)


def _slots_by_text(trace: RoutingTrace, labels: Sequence[str]) -> Tensor:
    """Token slots of every text by expert: float64 `[texts, layers, experts]`."""
    slots = _by_text(trace, _chosen(trace))
    if len(labels) != len(slots):
        raise ValueError(f"{len(labels)} labels for {len(slots)} texts: pass one label per text.")
    return slots
