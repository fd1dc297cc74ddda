"""What a router's choices amount to, each figure beside what chance and random routers give.

A measure takes a trace and returns a `Statistic`: one number per layer, and two baselines. Only what lies
above both is about what this router has learnt.

- *Shuffled*: the labels exchanged at random, in units that are really independent: whole texts for a label of
  texts, whole token types for a label of pieces.
- *Random routers*: the same model with random routers; `compare` adds them. The same token goes nearly the
  same way in any router, so a random one too seems to know about languages.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from aurora_lib.routing.tracing import RoutingTrace

LEVEL = 0.95
PERMUTATIONS = 200
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Statistic:
    """One number per layer and what chance makes of it.

    value: `[layers]`; baselines: name -> `[draws, layers]`, the same from every shuffle or random router;
    interval: `[2, layers]`, where there is one: the 95 % interval over texts.
    """

    name: str
    value: Tensor
    layers: list
    baselines: dict[str, Tensor] = field(default_factory=dict)
    interval: Tensor | None = None

    @property
    def above(self) -> Tensor:
        """Whether a layer lies above the bounds of all baselines: bool `[layers]`. ValueError without one."""
        if not self.baselines:
            raise ValueError(f"{self.name} has no baseline yet: pass it through `compare`.")
        return torch.stack([self.value > bound(draws) for draws in self.baselines.values()]).all(0)

    def table(self) -> pd.DataFrame:
        """A row per layer: value, interval, mean and bound of each baseline, and whether it is above all."""
        columns = {self.name: self.value}
        if self.interval is not None:
            columns |= {"low": self.interval[0], "high": self.interval[1]}
        for name, draws in self.baselines.items():
            columns |= {f"{name}: mean": draws.double().mean(0), f"{name}: bound": bound(draws)}
        columns["above"] = self.above
        layers = pd.Index(self.layers, name="layer")
        return pd.DataFrame({name: column.tolist() for name, column in columns.items()}, index=layers)

    def __str__(self) -> str:
        values = ", ".join(f"{value:.3g}" for value in self.value.tolist())
        draws = " and ".join(f"{len(each)} {name}" for name, each in self.baselines.items())
        layers = ", ".join(str(layer) for layer, above in zip(self.layers, self.above, strict=True) if above)
        where = f"layer {layers}" if layers else "no layer"
        return f"{self.name}: {values}; above what {draws} give in {where}"


def bound(draws: Tensor) -> Tensor:
    """The value per layer, `[layers]`, that all layers stay under in 95 % of the draws `[draws, layers]`.

    Many layers give chance many tries: the bound is that of the most extreme layer, in standard deviations.
    Few draws: the largest decides. Source: Westfall and Young, 1993 (max-T).
    """
    draws = draws.double()
    mean, spread = draws.mean(0), draws.std(0, correction=0)
    z = torch.where(spread > 0, (draws - mean) / spread, 0.0)
    return (mean + spread * z.amax(1).quantile(LEVEL, interpolation="higher")).float()


def compare(measure: Callable, trace: RoutingTrace, random: Sequence[RoutingTrace], **options) -> Statistic:
    """`measure(trace, **options)` with its values for traces by random routers as one more baseline."""
    own = measure(trace, **options)
    drawn = torch.stack([measure(other, **options | {"permutations": 0}).value for other in random])
    return replace(own, baselines=own.baselines | {"random routers": drawn})


# ---- load


def expert_load(trace: RoutingTrace) -> Tensor:
    """Share of a layer's token slots that each expert serves: `[layers, experts]`, rows sum to one."""
    counts = _chosen(trace).sum(1)
    return counts / counts.sum(-1, keepdim=True)


def entropy(load: Tensor) -> Tensor:
    """Entropy of each layer's load in bits: `[layers]`; log2(experts) (3 for eight) if all work equally."""
    return torch.special.entr(load).sum(-1) / math.log(2)


def load_entropy(trace: RoutingTrace, *, permutations: int = 0) -> Statistic:
    """Entropy of the load, to `compare` with random routers: no permutation can change a load."""
    return Statistic("entropy of the load [bits]", entropy(expert_load(trace)), trace.layers)


def balance_loss(logits: Tensor, top_k: int) -> Tensor:
    """The load-balancing loss: experts * sum over e of f_e * P_e (Switch Transformer, 2101.03961, eq. 4).

    f_e: share of tokens that chose e among their top_k; P_e: mean probability of e. Balance gives top_k.
    logits: `[layers, tokens, experts]`. Like transformers, pools the tokens of all layers first.
    """
    probabilities = logits.float().softmax(-1)
    chosen = torch.zeros_like(probabilities).scatter_(2, probabilities.topk(top_k, dim=-1).indices, 1.0)
    return logits.shape[-1] * (chosen.mean((0, 1)) * probabilities.mean((0, 1))).sum()


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


def load_gap(trace: RoutingTrace, labels: Sequence[str], *, permutations: int = PERMUTATIONS) -> Statistic:
    """Share of slots that would have to move to make the loads of zh and en texts equal (total variation).

    labels: the language of each text; whole texts are shuffled. Raises ValueError if there is not one per
    text, or no text in one of the two languages.
    """
    slots = _slots_by_text(trace, labels)
    member = torch.tensor([[label == group for label in labels] for group in ("zh", "en")]).double()
    if not member.any(1).all():
        raise ValueError(f"zh and en need a text each; the labels are {sorted(set(labels))}.")
    keep = member.any(0)
    slots, member = slots[keep], member[:, keep]

    def gap(member):
        one, other = torch.einsum("gt,tle->gle", member, slots)
        gaps = one / one.sum(-1, keepdim=True) - other / other.sum(-1, keepdim=True)
        return (gaps.abs().sum(-1) / 2).float()

    generator = torch.Generator().manual_seed(0)
    orders = (torch.randperm(member.shape[1], generator=generator) for _ in range(permutations))
    gaps = torch.stack([gap(member), *(gap(member[:, order]) for order in orders)])
    name = "difference of load, zh against en [share of slots]"
    return Statistic(name, gaps[0], trace.layers, {"shuffled texts": gaps[1:]})


# ---- what the choice of experts tells (Cover and Thomas, Elements of Information Theory, chapter 2)


def information(
    trace: RoutingTrace, languages: Sequence[str], label: str, *, permutations: int = PERMUTATIONS
) -> Statistic:
    """Mutual information of a token slot's expert and its token's label, in bits per layer.

    languages: one per text. label: "language", "script", "position" (0, 1, 2-3, 4-7, ...) or "token".
    Language is shuffled over whole texts, script over whole token types, and position among the occurrences
    of the same token: beyond `<s>` standing first. Raises ValueError if there is not one language per text.
    """
    _check(trace, languages)
    labels, units, within = {
        "language": ([languages[text] for text in trace.texts.tolist()], trace.texts, None),
        "script": ([_script(token) for token in trace.tokens], trace.ids, None),
        "position": ((trace.positions + 1).log2().long().tolist(), None, trace.ids),
        "token": (trace.ids.tolist(), None, None),
    }[label]
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(labels))}
    index, by_token = torch.tensor([kinds[kind] for kind in labels]), _chosen(trace).transpose(0, 1)

    def told(index):
        table = by_token.new_zeros(len(kinds), *by_token.shape[1:]).index_add_(0, index, by_token).double()
        cells = table / by_token[:, 0].sum()
        both, of_labels, of_experts = map(torch.special.entr, (cells, cells.sum(2), cells.sum(0)))
        nats = of_labels.sum(0) + of_experts.sum(1) - both.sum((0, 2))
        return (nats / math.log(2)).clamp(min=0).float()

    draws = islice(shuffles(index, units, within), permutations)
    bits = torch.stack([told(index), *map(told, draws)])
    return Statistic(f"{label} in experts [bits]", bits[0], trace.layers, {"shuffled labels": bits[1:]})


def shuffles(labels: Tensor, units: Tensor | None, within: Tensor | None) -> Iterator[Tensor]:
    """Labels `[tokens]` exchanged at random between units of the same stratum, again and again.

    units `[tokens]`: tokens of one unit have one label and move together; by default each token for itself.
    within `[tokens]`: the stratum of each token; by default there is one.
    """
    places = torch.arange(len(labels))
    units = places if units is None else torch.unique(units, return_inverse=True)[1]
    first = torch.full((int(units.max()) + 1,), len(labels)).scatter_reduce(0, units, places, "amin")
    strata = torch.zeros_like(places) if within is None else torch.unique(within, return_inverse=True)[1]
    own, strata = labels[first], strata[first]
    home = strata.argsort(stable=True)
    generator = torch.Generator().manual_seed(0)
    while True:
        order = (strata + torch.rand(len(strata), generator=generator, dtype=torch.float64)).argsort()
        moved = torch.empty_like(own)
        moved[home] = own[order]
        yield moved[units]


def _script(token: str) -> str:
    if re.fullmatch("<.+>", token):
        return "byte" if token.startswith("<0x") else "other"
    return "zh" if _HAN.search(token) else "en" if re.search("[A-Za-z]", token) else "other"


def _chosen(trace: RoutingTrace) -> Tensor:
    """Whether each token uses each expert (0 or 1): float32 `[layers, tokens, experts]`."""
    return torch.zeros_like(trace.logits).scatter_(2, trace.experts, 1.0)


def _check(trace: RoutingTrace, labels: Sequence) -> None:
    texts = int(trace.texts.max()) + 1
    if len(labels) != texts:
        raise ValueError(f"{len(labels)} labels for {texts} texts: pass one label per text.")


def _slots_by_text(trace: RoutingTrace, labels: Sequence) -> Tensor:
    """Token slots of every text by expert: float64 `[texts, layers, experts]`."""
    _check(trace, labels)
    chosen = _chosen(trace).double().transpose(0, 1)
    return chosen.new_zeros(len(labels), *chosen.shape[1:]).index_add_(0, trace.texts, chosen)
