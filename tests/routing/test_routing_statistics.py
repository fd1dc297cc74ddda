"""Statistics find what was planted, and claim nothing where there is nothing, however tempting the numbers look."""

from itertools import combinations

import matplotlib
import pytest
import torch
from sklearn.metrics import mutual_info_score

from aurora_lib import routing
from aurora_lib.course.scale import DATA
from aurora_lib.data import languages as language
from aurora_lib.evaluation import probes
from aurora_lib.model import load_model, load_tokenizer
from aurora_lib.routing.information import _shuffles
from aurora_lib.routing.pictures import byte_characters
from aurora_lib.routing.statistics import _redeal, bound

matplotlib.use("Agg")


def trace_of(experts, *, width=8, ids=None, texts=None, weights=None):
    """A trace with these experts `[layers, tokens, top_k]`."""
    layers, tokens, top_k = experts.shape
    texts = torch.zeros(tokens, dtype=torch.int64) if texts is None else texts
    weights = torch.full(experts.shape, 1 / top_k) if weights is None else weights
    return routing.RoutingTrace(
        tokens=[str(i) for i in range(tokens)],
        experts=experts,
        weights=weights,
        scores=weights,
        logits=torch.zeros(layers, tokens, width),
        layers=list(range(layers)),
        ids=torch.arange(tokens) if ids is None else ids,
        positions=torch.cat([torch.arange(n) for n in texts.bincount()]),
        texts=texts,
    )


def picks(draw, propensity, top_k=2):
    """Independent picks without replacement: `[..., experts]` -> int64 `[..., top_k]`."""
    gumbel = -torch.empty(propensity.shape).exponential_(generator=draw).log()
    return (propensity.log() + gumbel).topk(top_k, dim=-1).indices


def test_the_bound_holds_for_all_layers_at_once():
    draw = torch.Generator().manual_seed(0)
    scale, layers = torch.linspace(0.1, 10, 30), 30
    beyond = 0
    for _ in range(300):
        seen, null = torch.randn(layers, generator=draw), torch.randn(200, layers, generator=draw)
        beyond += bool((seen * scale > bound(null * scale)).any())
    assert 0.02 < beyond / 300 < 0.1  # each layer at 95 % for itself would give 0.79
    assert bound(torch.tensor([[3.0, 1.0]])).tolist() == [3.0, 1.0]


def test_mutual_information_is_scikit_learns():
    draw = torch.Generator().manual_seed(0)
    experts = torch.randint(0, 8, (3, 500, 1), generator=draw)
    labels = (experts[1, :, 0] // 2 + torch.randint(0, 3, (500,), generator=draw)).tolist()
    found = routing.mutual_information(trace_of(experts), labels, permutations=0).bits
    for layer in range(3):
        nats = mutual_info_score(labels, experts[layer, :, 0].tolist())
        assert found[layer] == pytest.approx(nats / 0.693147, rel=1e-4)


def clustered(seed, gain):
    """24 texts in two languages; each text has expert habits of its own, and with `gain` those of its language."""
    draw = torch.Generator().manual_seed(seed)
    texts = torch.arange(24).repeat_interleave(25)
    habit = torch.randn(24, 8, generator=draw)
    habit[:12, :4] += gain
    experts = picks(draw, habit.exp()[texts])[None]
    return trace_of(experts, texts=texts), ["zh"] * 12 + ["en"] * 12


def test_a_language_is_found_where_it_is_planted_and_not_where_only_texts_differ():
    """Shuffling token by token would call almost any 24 texts a finding."""
    found = {"texts": 0, "tokens": 0, "gap": 0}
    for seed in range(40):
        trace, languages = clustered(seed, gain=0.0)
        spoken = [languages[text] for text in trace.texts]
        options = dict(permutations=99)
        found["texts"] += routing.mutual_information(trace, spoken, units=trace.texts, **options).above.item()
        found["tokens"] += routing.mutual_information(trace, spoken, **options).above.item()
        found["gap"] += routing.load_gap(trace, languages, **options).above.item()
    assert found["texts"] <= 6 and found["gap"] <= 6 and found["tokens"] >= 34
    trace, languages = clustered(0, gain=2.0)
    spoken = [languages[text] for text in trace.texts]
    assert routing.mutual_information(trace, spoken, units=trace.texts).above.item()
    assert routing.load_gap(trace, languages).above.item()
    loads = routing.load_by_group(trace, languages)
    assert loads.groups == ["zh", "en"]
    assert loads.load[0, 0, :4].sum() > loads.load[1, 0, :4].sum() + 0.2


def test_shuffles_keep_units_together_and_strata_apart():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    units = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    strata = torch.tensor([0, 0, 0, 0, 9, 9, 9, 9])
    orders = set()
    for moved in _shuffles(labels, units, strata, 50, 0):
        assert torch.equal(moved[::2], moved[1::2])
        assert sorted(moved[:4].tolist()) == [0, 0, 1, 1] and sorted(moved[4:].tolist()) == [2, 2, 3, 3]
        orders.add(tuple(moved.tolist()))
    assert len(orders) == 4
    with pytest.raises(ValueError, match="several labels"):
        next(_shuffles(labels, strata, None, 1, 0))


def test_redealing_keeps_every_tokens_number_and_every_experts_load():
    draw = torch.Generator().manual_seed(0)
    experts = picks(draw, torch.rand(2, 101, 6, generator=draw) ** 2, top_k=3)
    chosen = torch.zeros(2, 101, 6, dtype=torch.bool).scatter_(2, experts, True)
    dealt = _redeal(chosen, draw)
    assert not torch.equal(dealt, chosen)
    assert torch.equal(dealt.sum(-1), chosen.sum(-1)) and torch.equal(dealt.sum(1), chosen.sum(1))


@pytest.mark.parametrize("top_k", [2, 3])
def test_coactivation_is_found_where_planted_and_not_for_independent_picks(top_k):
    draw = torch.Generator().manual_seed(top_k)
    uneven = torch.tensor([8.0, 4, 2, 2, 1, 1, 1, 1])
    independent = picks(draw, uneven.expand(10, 400, 8), top_k)
    assert routing.coactivation(trace_of(independent), permutations=100).above.sum() <= 2
    friends = independent[:1].clone()
    friends[0, ::5, :2] = torch.tensor([6, 7])
    friends[0, ::5, 2:] = 0
    found = routing.coactivation(trace_of(friends), permutations=100)
    assert found.above.item() and found.lift[0, 6, 7] > 2
    assert found.pairs[0, 6, 7] > found.high[0, 6, 7]
    assert torch.equal(found.pairs, found.pairs.transpose(1, 2))
    count = sum({6, 7} <= set(row) for row in friends[0].tolist())
    assert found.pairs[0, 6, 7] == count >= 80


def test_expected_pairs_are_those_of_all_deals():
    """Four tokens with two of four experts, every expert twice: the 90 deals are few enough to list."""
    experts = torch.tensor([[[0, 1], [0, 1], [2, 3], [2, 3]]])
    pairs = list(combinations(range(4), 2))
    total, deals = torch.zeros(4, 4), 0
    for index in range(6**4):
        deal = [pairs[index // 6**i % 6] for i in range(4)]
        if all(sum(e in pair for pair in deal) == 2 for e in range(4)):
            deals += 1
            for one, other in deal:
                total[one, other] += 1
                total[other, one] += 1
    found = routing.coactivation(trace_of(experts, width=4), permutations=3000)
    assert deals == 90
    torch.testing.assert_close(found.expected[0], total / deals, atol=0.06, rtol=0)


def test_adjacent_layers_agree_only_beyond_the_token():
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (800,), generator=draw)
    by_token = torch.stack([picks(draw, torch.rand(20, 8, generator=draw))[ids] for _ in range(2)])
    noisy = torch.stack([picks(draw, torch.rand(20, 8, generator=draw)[ids]) for _ in range(3)])
    assert routing.agreement(trace_of(by_token, ids=ids)).value > 0.5  # much, and all of it the token's
    assert not routing.agreement(trace_of(by_token, ids=ids)).above.any()
    noisy[2, :, 0] = (noisy[1, :, 0] + 3) % 8
    noisy[2, :, 1] = (noisy[1, :, 0] + 4) % 8
    found = routing.agreement(trace_of(noisy, ids=ids))
    assert found.layers == ["0→1", "1→2"] and found.above.tolist() == [False, True]


def test_a_random_router_is_not_said_to_specialise():
    """The bundled model with a random router, against other random routers: much information, and no finding."""
    model = routing.random_router(load_model(DATA / "tiny", dtype=torch.float32, device="cpu"), seed=100)
    tokenizer = load_tokenizer(DATA / "tiny")
    texts = [fact[side]["answer"] for fact in probes.load_probes()[::8] for side in ("zh", "en")]
    random = routing.random_traces(model, tokenizer, texts)
    trace = routing.join(routing.trace_many(model, tokenizer, texts))
    found = routing.information(trace, [language.language(text) for text in texts], random)
    assert list(found) == ["language", "script", "position", "token"]
    assert found["token"].bits.max() > 1 and (found["token"].bits > found["token"].upper).all()
    assert sum(int(one.above.sum()) for one in found.values()) <= 1  # of twelve
    assert str(found["language"]).endswith("200 shuffled labels and 19 random routers give in no layer")
    entropy = routing.compare(routing.load_entropy, trace, random)
    assert entropy.baselines["random routers"].shape == (19, 3) and not entropy.above.all()
    with pytest.raises(ValueError, match="no baseline yet"):
        routing.load_entropy(trace).above  # noqa: B018


def test_above_means_above_every_baseline():
    one = routing.Statistic("x", torch.tensor([2.0, 2.0]), ["0", "1"], {"a": torch.tensor([[1.0, 1.0]])})
    two = routing.Statistic(
        "x",
        one.value,
        one.layers,
        one.baselines | {"b": torch.tensor([[1.0, 3.0]]), "c": torch.tensor([[0.0, 0.0]])},
    )
    assert one.above.tolist() == [True, True] and two.above.tolist() == [True, False]
    assert str(two).endswith("give in layer 0")
    assert two.table()["above"].tolist() == [True, False]


def test_bad_labels_are_refused():
    trace, languages = clustered(0, 0.0)
    with pytest.raises(ValueError, match="2 labels for 24 texts"):
        routing.load_gap(trace, languages[:2])
    with pytest.raises(ValueError, match="needs a text"):
        routing.load_gap(trace, ["zh"] * 24)
    with pytest.raises(ValueError, match="2 labels for 24 texts"):
        routing.information(trace, languages[:2])


# before and after


def test_a_shift_is_counted_by_hand():
    texts = torch.tensor([0, 0, 1, 1])
    experts = torch.tensor([[[0, 1], [2, 3], [4, 5], [6, 7]]])
    weights = torch.tensor([[[0.6, 0.4], [0.9, 0.1], [0.5, 0.5], [0.7, 0.3]]])
    after_experts = torch.tensor([[[0, 1], [3, 2], [4, 1], [1, 0]]])
    after_weights = torch.tensor([[[0.8, 0.2], [0.6, 0.4], [0.5, 0.5], [0.7, 0.3]]])
    before = trace_of(experts, texts=texts, weights=weights)
    after = trace_of(after_experts, texts=texts, weights=after_weights)
    found = routing.shift(before, after, {"rounding": [before], "other": [after, before]})
    assert found.slots.value.item() == pytest.approx(3 / 8)
    assert found.first.value.item() == pytest.approx(2 / 4)
    # 0.2 inside the same experts; (0.9 - 0.4 + 0.6 - 0.1) / 2; half of the third token; all of the fourth
    assert found.weights.value.item() == pytest.approx((0.2 + 0.5 + 0.5 + 1.0) / 4)
    assert found.slots.above.tolist() == [False] and "rounding" in str(found)
    assert routing.shift(before, after, {"rounding": [before]}).slots.above.tolist() == [True]
    table = found.table()
    assert (
        len(table) == 3 and (table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all()
    )
    nothing = routing.shift(before, before)
    assert nothing.slots.value.item() == nothing.weights.value.item() == 0
    assert len(nothing.table()) == 3
    with pytest.raises(ValueError, match="not traces of the same tokens"):
        routing.shift(before, routing.select(after, texts == 0))


# pictures


def test_bytes_name_the_character_they_are_of():
    pieces = [
        "▁",
        "<0xE9>",
        "<0xBE>",
        "<0x98>",
        "<0xF0>",
        "<0x9F>",
        "<0x98>",
        "<0x80>",
        "<0xE9>",
        "a",
        "<0x0A>",
    ]
    assert byte_characters(pieces) == ["", "龘", "龘", "龘", "😀", "😀", "😀", "😀", "", "", ""]


def test_pictures_show_what_they_are_given():
    trace, languages = clustered(0, gain=2.0)
    loads = routing.load_by_group(trace, languages)
    figure = routing.plot_groups(loads)
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert bars == pytest.approx((100 * loads.load[:, 0]).flatten().tolist())
    tops = [part.get_segments()[0][1][1] for part in figure.axes[0].collections]
    assert tops == pytest.approx((100 * loads.high[:, 0, 0]).tolist(), rel=1e-4)
    found = routing.coactivation(trace, permutations=50)
    axes = routing.plot_coactivation(found)
    outside = ((found.pairs < found.low) | (found.pairs > found.high)).sum()
    assert len(axes.texts) == 56 and sum("•" in text.get_text() for text in axes.texts) == outside
    axes = routing.plot_statistic(found)
    assert "50 re-dealt experts: mean to bound" in [text.get_text() for text in axes.get_legend().get_texts()]
    matplotlib.pyplot.close("all")
    page = routing.load_to_html(torch.tensor([0.25, 0.75]), "<b>")
    assert "75.0%" in page and "&lt;b&gt;" in page and "<b>" not in page
