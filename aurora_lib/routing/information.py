"""How much experts tell about tokens: mutual information with language, script, position, token and the next layer.

Source of the measure: Cover and Thomas, Elements of Information Theory, chapter 2. What is estimated from few tokens
is above zero also where there is nothing to tell, so each figure stands beside its own shuffle.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from aurora_lib.data.languages import HAN
from aurora_lib.routing.counts import slots_by_text
from aurora_lib.routing.statistics import PERMUTATIONS, Statistic, chosen_by, compare, names, statistic
from aurora_lib.routing.tracing import RoutingTrace


def scripts(tokens: Sequence[str]) -> list[str]:
    """A label per token for `mutual_information`: "zh" (has Han), "en" (a-z), "byte" (<0xE9>) or "other"."""

    def script(token):
        if re.fullmatch("<.+>", token):
            return "byte" if token.startswith("<0x") else "other"
        return "zh" if HAN.search(token) else "en" if re.search("[A-Za-z]", token) else "other"

    return [script(token) for token in tokens]


def mutual_information(
    trace: RoutingTrace,
    labels: Sequence,
    *,
    units: Tensor | None = None,
    within: Tensor | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    name: str = "label",
) -> Statistic:
    """How much the expert of a token slot tells about the token's label, in bits per layer, beside shuffled labels.

    labels: one per token. What is shuffled decides what a finding means. `units [tokens]`: tokens of one unit keep
    one label and move together (`trace.texts` for a label of texts, `trace.ids` for one of pieces). `within
    [tokens]`: labels change places only inside a stratum (`trace.ids`: what is beyond the token's identity).
    Raises ValueError if there are not as many labels as tokens, or if a unit has several labels.
    """
    if len(labels) != len(trace.tokens):
        raise ValueError(f"{len(labels)} labels for {len(trace.tokens)} tokens: pass one label per token.")
    listed = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(listed))}
    index = torch.tensor([kinds[label] for label in listed])
    counts = chosen_by(trace).transpose(0, 1).flatten(1)
    shape = (len(kinds), len(trace.layers), trace.logits.shape[-1])

    def bits(index):
        return _information(
            counts.new_zeros(shape[0], counts.shape[1]).index_add_(0, index, counts).view(shape)
        )

    draws = [bits(moved) for moved in _shuffles(index, units, within, permutations, seed)]
    return statistic(f"{name} in experts [bits]", bits(index), names(trace), {"shuffled labels": draws})


def information(
    trace: RoutingTrace,
    languages: Sequence[str],
    random: Sequence[RoutingTrace] = (),
    *,
    permutations: int = PERMUTATIONS,
) -> dict[str, Statistic]:
    """What the experts tell of language, script, position and token, each beside its own shuffle and random routers.

    languages: one per text. Language is shuffled over whole texts and script over whole token types; position (0, 1,
    2-3, 4-7, ...) among the occurrences of the same token, so that what is found is beyond `<s>` standing first.
    """
    slots_by_text(trace, languages)
    spoken = [languages[text] for text in trace.texts.tolist()]
    places = (trace.positions + 1).log2().long()
    asked = {
        "language": dict(labels=spoken, units=trace.texts),
        "script": dict(labels=scripts(trace.tokens), units=trace.ids),
        "position": dict(labels=places, within=trace.ids),
        "token": dict(labels=trace.ids),
    }
    found = {}
    for name, options in asked.items():
        options |= dict(name=name, permutations=permutations)
        measure = mutual_information(trace, **options) if not random else None
        found[name] = measure or compare(mutual_information, trace, random, **options)
    return found


def agreement(
    trace: RoutingTrace, *, within: Tensor | None = None, permutations: int = PERMUTATIONS, seed: int = 0
) -> Statistic:
    """How much the first expert of a layer tells about the experts of the next, in bits: `[layers - 1]`.

    Experts are shuffled among the occurrences of the same token (`within`, by default `trace.ids`): above the shuffle
    is what two layers share beyond knowing which token it is. Expert numbers have no order, so equal ones mean nothing.
    """
    within = trace.ids if within is None else within
    pairs = list(zip(range(len(trace.layers) - 1), range(1, len(trace.layers)), strict=True))
    told = []
    for here, there in pairs:
        one = replace(trace, layers=[trace.layers[there]])
        one = replace(
            one, **{part: getattr(trace, part)[there : there + 1] for part in ("experts", "logits")}
        )
        first = trace.experts[here, :, 0]
        told.append(mutual_information(one, first, within=within, permutations=permutations, seed=seed))
    names = [f"{trace.layers[here]}→{trace.layers[there]}" for here, there in pairs]
    baselines = {}
    if permutations:
        baselines["shuffled tokens"] = torch.cat([one.baselines["shuffled labels"] for one in told], 1)
    value = torch.cat([one.value for one in told]) if told else torch.zeros(0)
    return Statistic("agreement of adjacent layers [bits]", value, names, baselines)


def _information(table: Tensor) -> Tensor:
    """Mutual information in bits of labels and experts: counts `[labels, layers, experts]` -> `[layers]`."""
    table = table.double()
    total = table.sum((0, 2))

    def plogp(counts, dims):
        return torch.special.xlogy(counts, counts).sum(dims)

    cells, rows, columns = plogp(table, (0, 2)), plogp(table.sum(2), 0), plogp(table.sum(0), 1)
    nats = total.log() + (cells - rows - columns) / total
    return (nats / torch.log(torch.tensor(2.0, dtype=torch.float64))).clamp(min=0)


def _shuffles(
    labels: Tensor, units: Tensor | None, within: Tensor | None, permutations: int, seed: int
) -> Iterator[Tensor]:
    """Labels `[tokens]` exchanged at random between units of the same stratum, so many times."""
    places = torch.arange(len(labels))
    units = places if units is None else torch.unique(units, return_inverse=True)[1]
    first = torch.full((int(units.max()) + 1,), len(labels)).scatter_reduce(0, units, places, "amin")
    own = labels[first]
    if not torch.equal(own[units], labels):
        raise ValueError("A unit has several labels: units must be as fine as the labels.")
    strata = (
        torch.zeros_like(first) if within is None else torch.unique(within, return_inverse=True)[1][first]
    )
    home = strata.argsort(stable=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(permutations):
        order = (strata + torch.rand(len(strata), generator=generator, dtype=torch.float64)).argsort()
        moved = torch.empty_like(own)
        moved[home] = own[order]
        yield moved[units]
