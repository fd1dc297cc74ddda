"""What a router's choices amount to, each figure beside what chance and random routers give.

A measure takes a trace and returns a `Statistic`: one number per layer, and its baselines. *Shuffled*: the same
measure with labels exchanged at random, in units that are really independent: whole texts where the label is one of
texts, whole token types where it is one of pieces. *Random routers*: the same measure of the same model with random
routers, added by `compare`. The same token always goes nearly the same way, so a random router too seems to know
about languages. Only what lies above both is about what this router has learnt.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from aurora_lib.routing.tracing import RoutingTrace

LEVEL = 0.95
PERMUTATIONS = 200
BURN_IN = 20
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Statistic:
    """One number per layer and what chance makes of it.

    value: `[layers]`; baselines: name -> `[draws, layers]`, the same number from every shuffle or random router;
    interval: `[2, layers]`, where there is one: the 95 % interval over texts.
    """

    name: str
    value: Tensor
    layers: list
    baselines: dict[str, Tensor] = field(default_factory=dict)
    interval: Tensor | None = None

    @property
    def above(self) -> Tensor:
        """Whether a layer lies above the bounds of every baseline: bool `[layers]`. Raises ValueError without one."""
        if not self.baselines:
            raise ValueError(f"{self.name} has no baseline yet: pass it through `compare`.")
        return torch.stack([self.value > bound(draws) for draws in self.baselines.values()]).all(0)

    def table(self) -> pd.DataFrame:
        """A row per layer: value, interval, mean and bound of each baseline, and whether it is above all of them."""
        columns = {self.name: self.value}
        if self.interval is not None:
            columns |= {"low": self.interval[0], "high": self.interval[1]}
        for name, draws in self.baselines.items():
            columns |= {f"{name}: mean": draws.double().mean(0), f"{name}: bound": bound(draws)}
        columns["above"] = self.above
        layers = pd.Index(self.layers, name="layer")
        return pd.DataFrame({name: column.tolist() for name, column in columns.items()}, index=layers)

    def __str__(self) -> str:
        values = [f"{value:.3g}" for value in self.value.tolist()]
        if len(values) > 6:
            values = [f"{min(values, key=float)} to {max(values, key=float)}"]
        draws = " and ".join(f"{len(each)} {name}" for name, each in self.baselines.items())
        layers = [str(layer) for layer, above in zip(self.layers, self.above.tolist(), strict=True) if above]
        where = f"layer {', '.join(layers)}" if layers else "no layer"
        return f"{self.name}: {', '.join(values)}; above what {draws} give in {where}"


def bound(draws: Tensor) -> Tensor:
    """The value per layer, `[layers]`, that all layers of a draw stay under in 95 % of draws `[draws, layers]`.

    Many layers give chance many tries, so the bound is that of the most extreme layer, in standard deviations.
    Source: Westfall and Young, 1993 (max-T). Few draws: the largest of them decides.
    """
    draws = draws.double()
    mean, spread = draws.mean(0), draws.std(0, correction=0)
    z = torch.where(spread > 0, (draws - mean) / spread, 0.0)
    return (mean + spread * z.amax(1).quantile(LEVEL, interpolation="higher")).float()


def compare(
    measure: Callable[..., Statistic], trace: RoutingTrace, random: Sequence[RoutingTrace], **options
) -> Statistic:
    """`measure(trace, **options)` with the values of `baselines.random_traces` as one more baseline."""
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

    f_e: share of tokens that chose e among their top_k (so f sums to top_k); P_e: mean probability of e.
    Perfect balance gives top_k, all tokens on the same experts with certainty gives `experts`.

    logits: `[layers, tokens, experts]`. Like transformers, pools the tokens of all layers before multiplying.
    """
    probabilities = logits.float().softmax(-1)
    chosen = torch.zeros_like(probabilities).scatter_(2, probabilities.topk(top_k, dim=-1).indices, 1.0)
    return logits.shape[-1] * (chosen.mean((0, 1)) * probabilities.mean((0, 1))).sum()


def load_by_group(trace: RoutingTrace, labels: Sequence[str]) -> dict[str, Tensor]:
    """Load of each group of texts with the ends of its 95 % interval: float32 `[load and ends, layers, experts]`.

    `labels` has the group of each text of the trace. Raises ValueError if there is not one label per text.
    """
    slots = _slots_by_text(trace, labels)
    own = {group: torch.tensor([label == group for label in labels]) for group in dict.fromkeys(labels)}
    return {group: ratio_interval(slots[i], slots[i][:, 0].sum(-1)) for group, i in own.items()}


def ratio_interval(totals: Tensor, sizes: Tensor) -> Tensor:
    """The share sum of totals / sum of sizes and the ends of its 95 % interval, nan for one text: float32 `[3, ...]`.

    totals `[texts, ...]`, sizes `[texts]`, float64. Texts are the units: the tokens of one text are alike, and
    counting them as independent would make intervals several times too narrow. Source: the linearised variance of a
    ratio of cluster totals (Cochran, 1977, 6.4).
    """
    texts = len(sizes)
    share = totals.sum(0) / sizes.sum()
    rest = (totals - torch.einsum("t,...->t...", sizes, share)).square().sum(0)
    error = (rest * texts / max(texts - 1, 1)).sqrt() / sizes.sum()
    margin = error * float(stats.t.ppf((1 + LEVEL) / 2, texts - 1))
    return torch.stack([share, (share - margin).clamp(min=0), (share + margin).clamp(max=1)]).float()


def load_gap(trace: RoutingTrace, labels: Sequence[str], *, permutations: int = PERMUTATIONS) -> Statistic:
    """Share of slots that would have to move to make the loads of "zh" and "en" texts equal (total variation).

    `labels` has the language of each text; shuffling exchanges the labels of whole texts. Raises ValueError if there
    is not one label per text, or no text in one of the two languages.
    """
    slots = _slots_by_text(trace, labels)
    member = torch.tensor([[label == group for label in labels] for group in ("zh", "en")]).double()
    if not member.any(1).all():
        raise ValueError(f"zh and en need a text each; the labels are {sorted(set(labels))}.")
    keep = member.any(0)
    slots, member = slots[keep], member[:, keep]

    def gap(member):
        one, other = torch.einsum("gt,tle->gle", member, slots)
        return (one / one.sum(-1, keepdim=True) - other / other.sum(-1, keepdim=True)).abs().sum(-1) / 2

    generator = torch.Generator().manual_seed(0)
    orders = (torch.randperm(member.shape[1], generator=generator) for _ in range(permutations))
    draws = [gap(member[:, order]) for order in orders]
    name = "difference of load, zh against en [share of slots]"
    return Statistic(name, gap(member).float(), trace.layers, _drawn("shuffled texts", draws))


# ---- information: what the choice of experts tells (Cover and Thomas, Elements of Information Theory, chapter 2)


def information(
    trace: RoutingTrace, languages: Sequence[str], label: str, *, permutations: int = PERMUTATIONS
) -> Statistic:
    """How much the expert of a token slot tells of the token's label: mutual information in bits per layer.

    languages: one per text. label: "language", "script", "position" (0, 1, 2-3, 4-7, ...) or "token". Estimated from
    few tokens it is above zero also where there is nothing to tell. So language is shuffled over whole texts, script
    over whole token types, and position among the occurrences of the same token: what is found there is beyond `<s>`
    standing first. Raises ValueError if there is not one language per text.
    """
    _check_labels(trace, languages)
    labels, units, within = {
        "language": ([languages[text] for text in trace.texts.tolist()], trace.texts, None),
        "script": ([_script(token) for token in trace.tokens], trace.ids, None),
        "position": ((trace.positions + 1).log2().long().tolist(), None, trace.ids),
        "token": (trace.ids.tolist(), None, None),
    }[label]
    value, draws = _told(_chosen(trace), labels, units, within, permutations)
    name = f"{label} in experts [bits]"
    return Statistic(name, value, trace.layers, _drawn("shuffled labels", draws))


def agreement(trace: RoutingTrace, *, permutations: int = PERMUTATIONS) -> Statistic:
    """How much the first expert of a layer tells about the experts of the next, in bits: `[layers - 1]`.

    Experts are shuffled among the occurrences of the same token: above the shuffle is what two layers share beyond
    knowing which token it is. Expert numbers have no order, so equal ones mean nothing.
    """
    chosen, firsts = _chosen(trace), trace.experts[:-1, :, 0].tolist()
    told = [
        _told(chosen[layer : layer + 1], first, None, trace.ids, permutations)
        for layer, first in enumerate(firsts, 1)
    ]
    layers = [f"{here}→{there}" for here, there in zip(trace.layers, trace.layers[1:], strict=False)]
    value = torch.cat([value for value, _ in told]) if told else torch.zeros(0)
    draws = [torch.cat(each) for each in zip(*(draws for _, draws in told), strict=True)]
    return Statistic("agreement of adjacent layers [bits]", value, layers, _drawn("shuffled tokens", draws))


def shuffles(
    labels: Tensor, units: Tensor | None, within: Tensor | None, permutations: int
) -> Iterator[Tensor]:
    """Labels `[tokens]` exchanged at random, so many times, between units of the same stratum.

    units `[tokens]`: tokens of one unit have one label and move together; by default each token for itself.
    within `[tokens]`: the stratum of each token; by default there is one.
    """
    places = torch.arange(len(labels))
    units = places if units is None else torch.unique(units, return_inverse=True)[1]
    first = torch.full((int(units.max()) + 1,), len(labels)).scatter_reduce(0, units, places, "amin")
    strata = (
        torch.zeros_like(first) if within is None else torch.unique(within, return_inverse=True)[1][first]
    )
    own, home = labels[first], strata.argsort(stable=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(permutations):
        order = (strata + torch.rand(len(strata), generator=generator, dtype=torch.float64)).argsort()
        moved = torch.empty_like(own)
        moved[home] = own[order]
        yield moved[units]


def _script(token: str) -> str:
    """ "zh" (has Han), "en" (a-z), "byte" (<0xE9>) or "other"."""
    if re.fullmatch("<.+>", token):
        return "byte" if token.startswith("<0x") else "other"
    return "zh" if HAN.search(token) else "en" if re.search("[A-Za-z]", token) else "other"


def _told(
    chosen: Tensor, labels: list, units: Tensor | None, within: Tensor | None, permutations: int
) -> tuple[Tensor, list[Tensor]]:
    """Mutual information of labels and experts, `[layers]`, and of each shuffle; chosen `[layers, tokens, experts]`."""
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(labels))}
    layers, _, experts = chosen.shape
    by_token = chosen.transpose(0, 1).flatten(1)

    def bits(index):
        table = by_token.new_zeros(len(kinds), layers * experts).index_add_(0, index, by_token).double()
        share = table.view(-1, layers, experts) / by_token[:, :experts].sum()
        each, of_labels, of_experts = (torch.special.entr(p) for p in (share, share.sum(2), share.sum(0)))
        nats = of_labels.sum(0) + of_experts.sum(1) - each.sum((0, 2))
        return (nats / math.log(2)).clamp(min=0).float()

    index = torch.tensor([kinds[label] for label in labels])
    return bits(index), [bits(moved) for moved in shuffles(index, units, within, permutations)]


# ---- co-activation


@dataclass(frozen=True)
class Coactivation(Statistic):
    """Which experts work together: a Statistic of the whole layer, and its pairs, each `[layers, experts, experts]`.

    pairs: tokens on which both worked (the diagonals are 0); expected: the same if experts were picked independently,
    at their loads; outside: whether a pair is beyond what chance gives for all pairs of a layer at once.
    """

    pairs: Tensor | None = None
    expected: Tensor | None = None
    outside: Tensor | None = None


def coactivation(trace: RoutingTrace, *, permutations: int = PERMUTATIONS) -> Coactivation:
    """How far the experts that share a token are from independent picks, in bits per pair of experts: `[layers]`.

    The shuffle re-deals experts between tokens: every token keeps as many, every expert keeps its load. Source: the
    curveball algorithm (Strona et al., 2014). The number is a Kullback-Leibler divergence from the re-dealt pairs.
    """
    generator = torch.Generator().manual_seed(0)
    dealt = _chosen(trace).bool()
    for _ in range(BURN_IN):
        dealt = redeal(dealt, generator)
    # a divergence needs something to diverge from, also where no shuffles are asked for
    draws = []
    for _ in range(max(permutations, BURN_IN)):
        dealt = redeal(redeal(dealt, generator), generator)
        draws.append(_pairs(dealt))
    draws, pairs = torch.stack(draws), _pairs(_chosen(trace).bool())
    expected, spread = draws.mean(0), draws.std(0, correction=0)

    def divergence(pairs):
        p, q = pairs.flatten(-2), expected.flatten(-2) + 0.5 / len(draws)
        p, q = p / p.sum(-1, keepdim=True).clamp(min=1), q / q.sum(-1, keepdim=True)
        return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1) / math.log(2)

    z = ((draws - expected).abs() / spread.clamp(min=1e-9)).flatten(-2).amax(-1)
    margin = z.quantile(LEVEL, dim=0, interpolation="higher")[:, None, None] * spread
    return Coactivation(
        name="co-activation of experts [bits]",
        value=divergence(pairs),
        layers=trace.layers,
        baselines={"re-dealt experts": divergence(draws)} if permutations else {},
        pairs=pairs,
        expected=expected,
        outside=(pairs - expected).abs() > margin,
    )


def redeal(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Pair tokens at random; each pair shuffles the experts that only one of them has: bool `[layers, tokens, experts]`."""
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


def _pairs(chosen: Tensor) -> Tensor:
    """How often two different experts share a token: bool `[layers, tokens, experts]` -> `[layers, experts, experts]`."""
    counts = chosen.float()
    together = counts.transpose(1, 2) @ counts
    return together * (1 - torch.eye(together.shape[-1]))


# ---- counting


def _chosen(trace: RoutingTrace) -> Tensor:
    """Whether each token uses each expert (0 or 1): float32 `[layers, tokens, experts]`."""
    return torch.zeros_like(trace.logits).scatter_(2, trace.experts, 1.0)


def _check_labels(trace: RoutingTrace, labels: Sequence) -> None:
    texts = int(trace.texts.max()) + 1
    if len(labels) != texts:
        raise ValueError(f"{len(labels)} labels for {texts} texts: pass one label per text.")


def _slots_by_text(trace: RoutingTrace, labels: Sequence) -> Tensor:
    """Token slots of every text by expert: float64 `[texts, layers, experts]`."""
    _check_labels(trace, labels)
    chosen = _chosen(trace).double().transpose(0, 1)
    return torch.zeros(len(labels), *chosen.shape[1:], dtype=torch.float64).index_add_(0, trace.texts, chosen)


def _drawn(name: str, draws: list[Tensor]) -> dict[str, Tensor]:
    return {name: torch.stack(draws).float()} if draws else {}
