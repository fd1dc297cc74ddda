"""What a router's choices amount to, each figure beside what chance and random routers give.

Two baselines. *Shuffled*: the same numbers with labels exchanged at random, in units that are really independent:
whole texts where the label is one of texts, whole token types where it is one of pieces. *Random routers*: the same
model with random routers. The same token always goes nearly the same way, so a random router too seems to know about
languages; only what lies above both is about what this router has learnt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from aurora_lib.routing.counts import slots_by_text
from aurora_lib.routing.tracing import RoutingTrace

LEVEL = 0.95
PERMUTATIONS = 200
BURN_IN = 20


@dataclass(frozen=True)
class Statistic:
    """One number per layer and what chance makes of it.

    value: `[layers]`; baselines: name -> `[draws, layers]`, the same number from every shuffle or random router;
    interval: `[2, layers]`, where there is one: the 95 % interval over texts.
    """

    name: str
    value: Tensor
    layers: list[str]
    baselines: dict[str, Tensor] = field(default_factory=dict)
    interval: Tensor | None = None

    @property
    def bits(self) -> Tensor:
        """The value, where it is one in bits."""
        return self.value

    @property
    def baseline(self) -> Tensor:
        """Mean of the first baseline: `[layers]`."""
        return next(iter(self.baselines.values())).double().mean(0).float()

    @property
    def upper(self) -> Tensor:
        """What the first baseline stays under in 95 % of its draws, in all layers at once: `[layers]`."""
        return bound(next(iter(self.baselines.values())))

    @property
    def above(self) -> Tensor:
        """Whether a layer lies above the bounds of every baseline: bool `[layers]`. Raises ValueError without one."""
        if not self.baselines:
            raise ValueError(f"{self.name} has no baseline yet: pass it through routing.compare.")
        return torch.stack([self.value > bound(draws) for draws in self.baselines.values()]).all(0)

    def table(self):
        """A DataFrame, a row per layer: value, mean and bound of each baseline, and whether it is above all of them."""
        import pandas as pd

        columns = {self.name: self.value.tolist()}
        for name, draws in self.baselines.items():
            columns |= {
                f"{name}: mean": draws.double().mean(0).tolist(),
                f"{name}: bound": bound(draws).tolist(),
            }
        return pd.DataFrame(
            columns | {"above": self.above.tolist()}, index=pd.Index(self.layers, name="layer")
        )

    def __str__(self) -> str:
        draws = " and ".join(f"{len(each)} {name}" for name, each in self.baselines.items())
        which = [layer for layer, above in zip(self.layers, self.above.tolist(), strict=True) if above]
        values = [f"{value:.3g}" for value in self.value.tolist()]
        shown = (
            ", ".join(values) if len(values) < 7 else f"{min(values, key=float)} to {max(values, key=float)}"
        )
        return f"{self.name}: {shown}; above what {draws} give in {'layer ' + ', '.join(which) if which else 'no layer'}"


def bound(draws: Tensor, level: float = LEVEL) -> Tensor:
    """The value per layer, `[layers]`, that all layers of a draw stay under with probability `level`.

    draws `[draws, layers]`. Many layers give chance many tries, so the bound is that of the most extreme layer, in
    standard deviations. Source: Westfall and Young, 1993 (max-T). Few draws: the largest of them decides.
    """
    draws = draws.double()
    mean, spread = draws.mean(0), draws.std(0, correction=0)
    z = torch.where(spread > 0, (draws - mean) / spread, 0.0)
    return (mean + spread * z.amax(1).quantile(level, interpolation="higher")).float()


def compare(
    measure: Callable[..., Statistic], trace: RoutingTrace, random: Sequence[RoutingTrace], **options
) -> Statistic:
    """`measure(trace, **options)` with the random routers' values, from `random_traces`, as one more baseline."""
    own = measure(trace, **options)
    drawn = torch.stack([measure(other, **options | {"permutations": 0}).value for other in random])
    return replace(own, baselines=own.baselines | {"random routers": drawn})


# ---- load


def load(trace: RoutingTrace) -> Tensor:
    """Share of a layer's token slots that each expert serves: `[layers, experts]`, rows sum to one."""
    counts = chosen_by(trace).sum(1)
    return counts / counts.sum(-1, keepdim=True)


def entropy(load: Tensor) -> Tensor:
    """Entropy of each layer's load in bits: `[layers]`; log2(experts) (3 for eight) if all work equally."""
    return -torch.special.xlogy(load, load).sum(-1) / torch.log(torch.tensor(2.0))


def load_entropy(trace: RoutingTrace, *, permutations: int = 0) -> Statistic:
    """`entropy(load(trace))`, to `compare` with random routers: shuffling cannot change a load."""
    return Statistic("entropy of the load [bits]", entropy(load(trace)), names(trace))


def balance_loss(logits: Tensor, top_k: int, *, per_layer: bool = False) -> Tensor:
    """The load-balancing loss: experts * sum over e of f_e * P_e (Switch Transformer, 2101.03961, eq. 4).

    f_e: share of tokens that chose e among their top_k (so f sums to top_k); P_e: mean probability of e.
    Perfect balance gives top_k, all tokens on the same experts with certainty gives `experts`.

    logits: `[layers, tokens, experts]`. Like transformers, pools the tokens of all layers before multiplying,
    which can hide unbalanced layers; `per_layer=True` gives `[layers]` instead of one number.
    """
    probabilities = logits.float().softmax(-1)
    chosen = torch.zeros_like(probabilities).scatter_(2, probabilities.topk(top_k, dim=-1).indices, 1.0)
    pooled = 1 if per_layer else (0, 1)
    return logits.shape[-1] * (chosen.mean(pooled) * probabilities.mean(pooled)).sum(-1)


def load_gap(
    trace: RoutingTrace,
    labels: Sequence[str],
    *,
    groups=("zh", "en"),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Statistic:
    """Share of slots that would have to move to make the loads of two groups of texts equal (total variation).

    `labels` has the group of each text; shuffling exchanges the labels of whole texts. Raises ValueError for a group
    without texts.
    """
    slots, _ = slots_by_text(trace, labels)
    member = torch.tensor([[label == group for label in labels] for group in groups], dtype=torch.float64)
    if not member.any(1).all():
        raise ValueError(f"Each of the groups {groups} needs a text; the labels are {sorted(set(labels))}.")
    keep = member.any(0)
    slots, member = slots[keep], member[:, keep]

    def gap(member):
        one, other = torch.einsum("gt,tle->gle", member, slots)
        return (one / one.sum(-1, keepdim=True) - other / other.sum(-1, keepdim=True)).abs().sum(-1) / 2

    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(member.shape[1], generator=generator) for _ in range(permutations))
    draws = [gap(member[:, order]) for order in orders]
    name = f"difference of load, {groups[0]} against {groups[1]} [share of slots]"
    return statistic(name, gap(member), names(trace), {"shuffled texts": draws})


# ---- co-activation


@dataclass(frozen=True)
class Coactivation(Statistic):
    """Which experts work together: a Statistic of the whole layer, and its pairs, each `[layers, experts, experts]`.

    pairs: tokens on which both worked; expected: the same if experts were picked independently, at their loads; low
    and high: what chance stays between, for all pairs of a layer at once. The diagonals are 0.
    """

    pairs: Tensor | None = None
    expected: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None

    @property
    def lift(self) -> Tensor:
        """Pairs over expected pairs: 1 is independence, 2 twice as often as that, nan where none can be expected."""
        return self.pairs / self.expected


def coactivation(trace: RoutingTrace, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Coactivation:
    """How far the experts that share a token are from independent picks, in bits per pair of experts: `[layers]`.

    The shuffle re-deals experts between tokens: every token keeps as many, every expert keeps its load. Source: the
    curveball algorithm (Strona et al., 2014). The number is a Kullback-Leibler divergence from the re-dealt pairs.
    """
    chosen = chosen_by(trace).bool()
    generator = torch.Generator().manual_seed(seed)
    dealt = chosen
    for _ in range(BURN_IN):
        dealt = _redeal(dealt, generator)
    # a divergence needs something to diverge from, also where no shuffles are asked for
    draws = []
    for _ in range(max(permutations, BURN_IN)):
        dealt = _redeal(_redeal(dealt, generator), generator)
        draws.append(_pairs(dealt))
    draws, pairs = torch.stack(draws), _pairs(chosen)
    expected = draws.mean(0)

    def divergence(pairs):
        p, q = pairs.flatten(-2), expected.flatten(-2) + 0.5 / len(draws)
        p, q = p / p.sum(-1, keepdim=True).clamp(min=1), q / q.sum(-1, keepdim=True)
        return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1) / torch.log(torch.tensor(2.0))

    spread = draws.std(0, correction=0)
    z = ((draws - expected).abs() / spread.clamp(min=1e-9)).flatten(-2).amax(-1)
    margin = z.quantile(LEVEL, dim=0, interpolation="higher")[:, None, None] * spread
    baselines = {"re-dealt experts": divergence(draws)} if permutations else {}
    return Coactivation(
        name="co-activation of experts [bits]",
        value=divergence(pairs),
        layers=names(trace),
        baselines=baselines,
        pairs=pairs,
        expected=expected,
        low=expected - margin,
        high=expected + margin,
    )


def _pairs(chosen: Tensor) -> Tensor:
    """bool `[layers, tokens, experts]` -> how often two different experts share a token, `[layers, experts, experts]`."""
    counts = chosen.float()
    together = counts.transpose(1, 2) @ counts
    return together * (1 - torch.eye(together.shape[-1]))


def _redeal(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Pair tokens at random; each pair shuffles the experts that only one of them has."""
    half = chosen.shape[1] // 2
    order = torch.randperm(chosen.shape[1], generator=generator)[: 2 * half]
    one, other = chosen[:, order[:half]], chosen[:, order[half:]]
    both, differ = one & other, one ^ other
    keys = torch.rand(differ.shape, generator=generator).masked_fill_(~differ, 2.0)
    share = (one & differ).sum(-1, keepdim=True)
    # the `share` smallest keys: as many as the first token had
    limit = keys.sort(-1).values.gather(-1, share)
    taken = (keys < limit) & differ
    dealt = chosen.clone()
    dealt[:, order[:half]], dealt[:, order[half:]] = both | taken, both | (differ & ~taken)
    return dealt


def chosen_by(trace: RoutingTrace) -> Tensor:
    """How often each token uses each expert (0 or 1): float32 `[layers, tokens, experts]`."""
    return torch.zeros_like(trace.logits).scatter_(2, trace.experts, 1.0)


def names(trace: RoutingTrace) -> list[str]:
    return [str(layer) for layer in trace.layers]


def statistic(name: str, value: Tensor, layers: list[str], draws: dict[str, list[Tensor]]) -> Statistic:
    baselines = {kind: torch.stack(each).float() for kind, each in draws.items() if each}
    return Statistic(name, value.float(), layers, baselines)
