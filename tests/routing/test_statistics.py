"""Statistics find what was planted, and claim nothing where there is nothing."""

from itertools import islice

import pytest
import torch
from sklearn.metrics import mutual_info_score
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from aurora_lib import routing
from aurora_lib.course import DATA
from aurora_lib.evaluation import load_probes
from aurora_lib.model import load_model
from aurora_lib.routing import baselines, statistics
from tests.routing.made import clustered, trace_of


def test_load_counts_slots_and_its_entropy_is_in_bits():
    trace = trace_of(torch.tensor([[[0, 1], [0, 2]], [[3, 4], [4, 3]]]), width=5)
    assert routing.expert_load(trace).tolist() == [[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]]
    load = torch.tensor([[1 / 8] * 8, [1.0] + [0.0] * 7])
    torch.testing.assert_close(statistics.entropy(load), torch.tensor([3.0, 0.0]))


def test_balance_loss_is_the_librarys():
    logits = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0)) * 3
    library = load_balancing_loss_func(tuple(logits), num_experts=8, top_k=2)
    torch.testing.assert_close(routing.balance_loss(logits, 2), library)


def test_intervals_are_as_wide_as_resampled_texts_say_and_unknown_for_one_text():
    trace, _ = clustered(0, gain=0.0)
    load, low, high = statistics.load_by_group(trace, ["all"] * 24)["all"]
    by_text = torch.stack([routing.expert_load(trace_of(each)) for each in trace.experts.split(25, dim=1)])
    samples = torch.randint(0, 24, (500, 24), generator=torch.Generator().manual_seed(0))
    spread = by_text[samples].mean(1).std(0)
    half = (high - low) / 2 / 2.07  # Student's t for 24 texts
    assert (half / spread - 1).abs().max() < 0.2
    torch.testing.assert_close(load, routing.expert_load(trace))
    assert (low < load).all() and (load < high).all()
    share, low, high = statistics.ratio_interval(torch.tensor([[3.0]]).double(), torch.tensor([4.0]).double())
    assert share.item() == 0.75 and low.isnan() and high.isnan()


def test_the_bound_holds_for_all_layers_at_once():
    draw = torch.Generator().manual_seed(0)
    scale, layers = torch.linspace(0.1, 10, 30), 30
    beyond = 0
    for _ in range(300):
        seen, null = torch.randn(layers, generator=draw), torch.randn(200, layers, generator=draw)
        beyond += bool((seen * scale > statistics.bound(null * scale)).any())
    assert 0.02 < beyond / 300 < 0.1  # each layer at 95 % for itself would give 0.79
    assert statistics.bound(torch.tensor([[3.0, 1.0]])).tolist() == [3.0, 1.0]


def test_above_means_above_every_baseline():
    value, low = torch.tensor([2.0, 2.0]), {"a": torch.tensor([[1.0, 1.0]])}
    one = statistics.Statistic("x", value, [0, 1], low)
    two = statistics.Statistic("x", value, [0, 1], low | {"b": torch.tensor([[1.0, 3.0]])})
    assert one.above.tolist() == [True, True] and two.above.tolist() == [True, False]
    assert str(two) == "x: 2, 2; above what 1 a and 1 b give in layer 0"
    assert two.table()["above"].tolist() == [True, False]
    with pytest.raises(ValueError, match="no baseline yet"):
        statistics.Statistic("x", value, [0, 1]).above  # noqa: B018


def test_a_random_router_is_not_said_to_specialise(tokenizer):
    """The bundled model with a random router, against other random routers: much information, no finding."""
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    texts = [fact[side]["answer"] for fact in load_probes()[::8] for side in ("zh", "en")]
    twins = [baselines.random_router(base, seed) for seed in (100, *range(19))]
    trace, *random = [routing.trace_many(twin, tokenizer, texts) for twin in twins]
    options = dict(languages=["zh", "en"] * (len(texts) // 2), permutations=99)
    found = {
        label: statistics.compare(statistics.information, trace, random, label=label, **options)
        for label in ("language", "script", "position", "token")
    }
    shuffled = statistics.bound(found["token"].baselines["shuffled labels"])
    assert found["token"].value.max() > 1 and (found["token"].value > shuffled).all()
    assert sum(int(one.above.sum()) for one in found.values()) <= 1  # of twelve
    assert str(found["language"]).endswith("99 shuffled labels and 19 random routers give in no layer")
    assert not statistics.compare(statistics.load_entropy, trace, random).above.all()


def test_information_is_scikit_learns():
    draw = torch.Generator().manual_seed(0)
    experts = torch.randint(0, 8, (3, 500, 1), generator=draw)
    ids = experts[1, :, 0] // 2 + torch.randint(0, 3, (500,), generator=draw)
    found = statistics.information(trace_of(experts, ids=ids), ["zh"], "token", permutations=0).value
    for layer in range(3):
        nats = mutual_info_score(ids.tolist(), experts[layer, :, 0].tolist())
        assert found[layer] == pytest.approx(nats / 0.693147, rel=1e-4)


def test_a_language_is_found_where_it_is_planted_and_not_where_only_texts_differ():
    """Shuffling token by token would call almost any 24 texts a finding."""
    found = {"texts": 0, "gap": 0}
    for seed in range(40):
        trace, languages = clustered(seed, gain=0.0)
        found["texts"] += statistics.information(trace, languages, "language", permutations=99).above.item()
        found["gap"] += statistics.load_gap(trace, languages, permutations=99).above.item()
    assert found["texts"] <= 6 and found["gap"] <= 6
    trace, languages = clustered(0, gain=2.0)
    assert statistics.information(trace, languages, "language").above.item()
    assert statistics.load_gap(trace, languages).above.item()
    loads = statistics.load_by_group(trace, languages)
    assert list(loads) == ["zh", "en"]
    assert loads["zh"][0, 0, :4].sum() > loads["en"][0, 0, :4].sum() + 0.2


def test_the_gap_is_counted_by_hand_and_leaves_other_languages_out():
    texts = torch.tensor([0, 0, 1, 1, 2, 2])
    trace = trace_of(torch.tensor([[[0, 1], [0, 2], [0, 3], [0, 3], [4, 5], [6, 7]]]), texts=texts)
    gap = statistics.load_gap(trace, ["zh", "en", "mixed"], permutations=20)
    assert gap.value.item() == pytest.approx(1 / 2)  # a quarter each of experts 1 and 2 would go to 3
    assert (gap.baselines["shuffled texts"] == gap.value).all()  # the labels of zh and en changed places only


@pytest.mark.parametrize(
    "pieces, told",
    [(["▁混", "▁the"], 1.0), (["<0xE9>", "the"], 1.0), (["，", "<s>"], 0.0), (["合", "专"], 0.0)],
)
def test_scripts_tell_han_latin_bytes_and_the_rest_apart(pieces, told):
    trace = trace_of(torch.tensor([[[0], [1]]]))
    trace.tokens[:] = pieces
    assert statistics.information(trace, ["zh"], "script", permutations=1).value.item() == pytest.approx(told)


def test_shuffles_keep_units_together_and_strata_apart():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    strata = torch.tensor([0, 0, 0, 0, 9, 9, 9, 9])
    orders = set()
    for moved in islice(statistics.shuffles(labels, labels, strata), 50):
        assert torch.equal(moved[::2], moved[1::2])
        assert sorted(moved[:4].tolist()) == [0, 0, 1, 1] and sorted(moved[4:].tolist()) == [2, 2, 3, 3]
        orders.add(tuple(moved.tolist()))
    assert len(orders) == 4


@pytest.mark.parametrize(
    "labels, said", [(["zh", "en"], "2 labels for 24 texts"), (["zh"] * 24, "need a text")]
)
def test_labels_that_do_not_fit_are_refused(labels, said):
    with pytest.raises(ValueError, match=said):
        statistics.load_gap(clustered(0, 0.0)[0], labels)
