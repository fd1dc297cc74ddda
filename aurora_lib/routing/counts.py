"""Routing statistics of any number of texts in constant memory: every batch is counted, then forgotten."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from scipy import stats
from torch import Tensor, nn

from aurora_lib.data.languages import language
from aurora_lib.routing.tracing import (
    BATCH_TOKENS,
    RoutingTrace,
    batches,
    depth,
    encode,
    padded,
    read,
    watching,
)

READ_AHEAD = 256  # texts that are sorted by length together


@dataclass(frozen=True)
class LoadIntervals:
    """Load by group with 95 % intervals, `[groups, layers, experts]` each; `texts` says how many each group has.

    Texts are the units: the tokens of one text are alike, and counting them as independent would make intervals
    several times too narrow. Source: the linearised variance of a ratio of cluster totals (Cochran, 1977, 6.4).
    """

    groups: list[str]
    layers: list[int]
    texts: list[int]
    load: Tensor
    low: Tensor
    high: Tensor


@dataclass
class _Sums:
    """Over the texts of a group: c = a text's slots per expert, `[layers, experts]`, n = its slots in a layer."""

    texts: int
    size: float  # sum of n
    slots: Tensor  # sum of c
    squares: Tensor  # sum of c * c
    crosses: Tensor  # sum of c * n
    sizes: float  # sum of n * n

    def add(self, c: Tensor, n: Tensor) -> None:
        """Count texts: `c [texts, layers, experts]`, `n [texts]`, float64."""
        self.texts, self.size = self.texts + len(n), self.size + float(n.sum())
        self.slots += c.sum(0)
        self.squares += (c * c).sum(0)
        self.crosses += torch.einsum("t...,t->...", c, n)
        self.sizes += float((n * n).sum())


@dataclass
class RoutingCounts:
    """What `count` adds up; its size depends on the model and the number of groups, not on the texts.

    pairs: `[layers, experts, experts]`, tokens on which both experts worked (diagonal: on which the expert did).
    steps: `[layers - 1, experts, experts]`, tokens whose first expert was e in one layer and f in the next.
    probability: `[layers, experts]`, sum of the router's probabilities. All float64, whole numbers but the last.
    """

    layers: list[int]
    top_k: int
    groups: dict[str, _Sums]
    pairs: Tensor
    steps: Tensor
    probability: Tensor

    @property
    def texts(self) -> int:
        return sum(group.texts for group in self.groups.values())

    @property
    def tokens(self) -> int:
        return round(sum(group.size for group in self.groups.values()) / self.top_k)

    @property
    def load(self) -> Tensor:
        """Share of a layer's token slots that each expert serves: `[layers, experts]`, rows sum to one."""
        slots = sum(group.slots for group in self.groups.values())
        return (slots / slots.sum(-1, keepdim=True)).float()

    @property
    def balance_loss(self) -> Tensor:
        """The load-balancing loss of every layer, `[layers]`; see `routing.balance_loss`."""
        chosen = sum(group.slots for group in self.groups.values())
        return (chosen * self.probability).sum(-1) * chosen.shape[-1] / self.tokens**2

    def load_by_group(self, groups: Sequence[str] | None = None) -> LoadIntervals:
        """Load of each group (by default those with two texts or more) with 95 % intervals. Raises ValueError without one."""
        names = list(groups or (name for name, group in self.groups.items() if group.texts > 1))
        return _intervals({name: self.groups[name] for name in names}, self.layers)


def count(
    model: nn.Module,
    tokenizer,
    texts: Iterable[str],
    *,
    group: Callable[[str], str] = language,
    batch_tokens: int = BATCH_TOKENS,
) -> RoutingCounts:
    """Count what every router chose over `texts`, also an endless generator's first millions, keeping no token.

    `group` names the group of a text, by default its language. Raises ValueError as `routing.trace` does.
    """
    counts, texts, done = None, iter(texts), 0
    while ahead := list(islice(texts, READ_AHEAD)):
        rows = encode(model, tokenizer, ahead, done)
        done += len(ahead)
        for batch in batches(rows, batch_tokens):
            inputs, real = padded(model, tokenizer, [rows[i] for i in batch])
            sizes = torch.tensor([len(rows[i]) for i in batch], device=real.device)
            owners = torch.arange(len(batch), device=real.device).repeat_interleave(sizes)
            seen = _count_batch(model, inputs, real, owners, len(batch))
            counts = counts or _nothing(seen)
            labels = [group(ahead[i]) for i in batch]
            _add(counts, seen, sizes.double().cpu() * counts.top_k, labels)
    if counts is None:
        raise ValueError("There is no text to count: pass at least one.")
    return counts


@dataclass(frozen=True)
class _Seen:
    """One layer's counts of one batch: per_text `[texts, experts]`, the others as in RoutingCounts."""

    layer: int
    per_text: Tensor
    pairs: Tensor
    steps: Tensor | None
    probability: Tensor
    top_k: int


def _count_batch(model, inputs, real, owners, texts: int) -> list[_Seen]:
    seen, before = [], []

    def visit(name, logits, scores, experts):
        experts, logits = experts[real], logits[real].float()
        width, first = logits.shape[-1], experts[:, 0]
        chosen = torch.zeros_like(logits).scatter_(1, experts, 1.0)
        per_text = chosen.new_zeros(texts, width).index_add_(0, owners, chosen)
        steps = None
        if before:
            cells = before.pop() * width + first
            steps = chosen.new_zeros(width * width).index_add_(0, cells, torch.ones_like(chosen[:, 0]))
            steps = steps.view(width, width)
        before.append(first)
        probability = logits.softmax(-1).sum(0)
        seen.append(_Seen(depth(name), per_text, chosen.T @ chosen, steps, probability, experts.shape[1]))

    with watching(model, visit):
        read(model, inputs)
    return seen


def _nothing(seen: list[_Seen]) -> RoutingCounts:
    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float64)

    layers, width = len(seen), seen[0].pairs.shape[0]
    return RoutingCounts(
        layers=[one.layer for one in seen],
        top_k=seen[0].top_k,
        groups={},
        pairs=zeros(layers, width, width),
        steps=zeros(layers - 1, width, width),
        probability=zeros(layers, width),
    )


def _add(counts: RoutingCounts, seen: list[_Seen], sizes: Tensor, labels: list[str]) -> None:
    counts.pairs += torch.stack([one.pairs for one in seen]).double().cpu()
    counts.probability += torch.stack([one.probability for one in seen]).double().cpu()
    if len(seen) > 1:
        counts.steps += torch.stack([one.steps for one in seen[1:]]).double().cpu()
    per_text = torch.stack([one.per_text for one in seen], dim=1).double().cpu()
    for label in dict.fromkeys(labels):
        own = torch.tensor([i for i, other in enumerate(labels) if other == label])
        counts.groups.setdefault(label, _sums(per_text.shape[1:])).add(per_text[own], sizes[own])


def _sums(shape) -> _Sums:
    slots, squares, crosses = torch.zeros(3, *shape, dtype=torch.float64)
    return _Sums(0, 0.0, slots, squares, crosses, 0.0)


def load_by_group(trace: RoutingTrace, labels: Sequence[str]) -> LoadIntervals:
    """Load of each group of texts with 95 % intervals; `labels` has the group of each text of the trace."""
    c, n = slots_by_text(trace, labels)
    groups = {}
    for label in dict.fromkeys(labels):
        own = torch.tensor([i for i, other in enumerate(labels) if other == label])
        groups[label] = _sums(c.shape[1:])
        groups[label].add(c[own], n[own])
    return _intervals(groups, trace.layers)


def slots_by_text(trace: RoutingTrace, labels: Sequence | None = None) -> tuple[Tensor, Tensor]:
    """Token slots of every text by expert, float64 `[texts, layers, experts]`, and its slots in a layer, `[texts]`.

    Raises ValueError if `labels` has not one entry per text.
    """
    texts = int(trace.texts.max()) + 1
    if labels is not None and len(labels) != texts:
        raise ValueError(f"{len(labels)} labels for {texts} texts: pass one label per text.")
    chosen = (
        torch.zeros_like(trace.logits, dtype=torch.float64).scatter_(2, trace.experts, 1.0).transpose(0, 1)
    )
    c = torch.zeros(texts, *chosen.shape[1:], dtype=torch.float64).index_add_(0, trace.texts, chosen)
    return c, c[:, 0].sum(-1)


def _intervals(groups: dict[str, _Sums], layers: list[int]) -> LoadIntervals:
    if not groups:
        raise ValueError("No group has two texts, and an interval needs them: count more texts.")
    each = [_ratio(sums) for sums in groups.values()]
    load, low, high = (torch.stack([one[i] for one in each]) for i in range(3))
    texts = [sums.texts for sums in groups.values()]
    return LoadIntervals(list(groups), layers, texts, load, low.clamp(min=0), high.clamp(max=1))


def _ratio(sums: _Sums) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of c / sum of n with the ends of its 95 % interval, float32; a group of one text has none (nan)."""
    mean = sums.slots / sums.size
    rest = sums.squares - 2 * mean * sums.crosses + mean**2 * sums.sizes
    error = (rest.clamp(min=0) * sums.texts / max(sums.texts - 1, 1)).sqrt() / sums.size
    margin = error * float(stats.t.ppf(0.975, sums.texts - 1)) if sums.texts > 1 else error * float("nan")
    return mean.float(), (mean - margin).float(), (mean + margin).float()


def ratio_interval(c: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and 95 % interval of `sum of c / sum of n` over texts: `c [texts, ...]`, `n [texts]`, float64."""
    sums = _sums(c.shape[1:])
    sums.add(c, n)
    return _ratio(sums)
