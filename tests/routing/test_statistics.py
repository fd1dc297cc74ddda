"""Statistics find what was planted, and claim nothing where there is nothing."""

from functools import partial
from itertools import islice

import pytest
import torch
from scipy.stats import entropy
from scipy.stats.contingency import crosstab
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
    draw, scale = torch.Generator().manual_seed(0), torch.linspace(0.1, 10, 30)
    seen, null = (scale * torch.randn(300, n, 30, generator=draw) for n in (1, 200))
    beyond = [bool((one > statistics.bound(other)).any()) for one, other in zip(seen, null, strict=True)]
    assert 0.02 < sum(beyond) / 300 < 0.1  # each layer at 95 % for itself would give 0.79
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
    measure = partial(statistics.compare, statistics.information, trace, random, **options)
    found = [measure(label=label) for label in ("language", "script", "position", "token")]
    assert sum(int(one.above.sum()) for one in found) <= 1  # of twelve
    assert str(found[0]).endswith("99 shuffled labels and 19 random routers give in no layer")
    token, shuffled = found[3].value, found[3].baselines["shuffled labels"]
    assert token.max() > 1 and (token > statistics.bound(shuffled)).all()
    assert not statistics.compare(statistics.load_entropy, trace, random).above.all()


def test_information_is_what_scipys_entropies_give():
    draw = torch.Generator().manual_seed(0)
    experts = torch.randint(0, 8, (3, 500, 1), generator=draw)
    ids = experts[1, :, 0] // 2 + torch.randint(0, 3, (500,), generator=draw)
    found = statistics.information(trace_of(experts, ids=ids), ["zh"], "token", permutations=0).value
    for layer in range(3):
        joint = crosstab(ids, experts[layer, :, 0]).count
        alone = entropy(joint.sum(0), base=2) + entropy(joint.sum(1), base=2)
        assert found[layer] == pytest.approx(alone - entropy(joint, axis=None, base=2), rel=1e-4)


def test_a_language_is_found_where_it_is_planted_and_not_where_only_texts_differ():
    """Shuffling token by token would call almost any 24 texts a finding."""
    for measure in (partial(statistics.information, label="language"), statistics.load_gap):
        chance = [measure(*clustered(seed, gain=0.0), permutations=99).above.item() for seed in range(40)]
        assert sum(chance) <= 6 and measure(*clustered(0, gain=2.0)).above.item()
    loads = statistics.load_by_group(*clustered(0, gain=2.0))
    assert list(loads) == ["zh", "en"]
    assert loads["zh"][0, 0, :4].sum() > loads["en"][0, 0, :4].sum() + 0.2


def test_the_gap_is_counted_by_hand_and_leaves_other_languages_out():
    texts = torch.tensor([0, 0, 1, 1, 2, 2])
    trace = trace_of(torch.tensor([[[0, 1], [0, 2], [0, 3], [0, 3], [4, 5], [6, 7]]]), texts=texts)
    gap = statistics.load_gap(trace, ["zh", "en", "mixed"], permutations=20)
    assert gap.value.item() == pytest.approx(1 / 2)  # a quarter each of experts 1 and 2 would go to 3
    assert (gap.baselines["shuffled texts"] == gap.value).all()  # the labels of zh and en changed places only


@pytest.mark.parametrize("pieces, told", [("▁混 ▁the", 1), ("<0xE9> the", 1), ("， <s>", 0), ("合 专", 0)])
def test_scripts_tell_han_latin_bytes_and_the_rest_apart(pieces, told):
    trace = trace_of(torch.tensor([[[0], [1]]]))
    trace.tokens[:] = pieces.split()
    assert statistics.information(trace, ["zh"], "script", permutations=1).value.item() == pytest.approx(told)


def test_shuffles_keep_units_together_and_strata_apart():
    labels, strata = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.tensor([0, 0, 0, 0, 9, 9, 9, 9])
    orders = set()
    for moved in islice(statistics.shuffles(labels, labels, strata), 50):
        assert torch.equal(moved[::2], moved[1::2])
        assert sorted(moved[:4].tolist()) == [0, 0, 1, 1] and sorted(moved[4:].tolist()) == [2, 2, 3, 3]
        orders.add(tuple(moved.tolist()))
    assert len(orders) == 4


@pytest.mark.parametrize("labels, said", [(["zh", "en"], "2 labels for 24"), (["zh"] * 24, "need a text")])
def test_labels_that_do_not_fit_are_refused(labels, said):
    with pytest.raises(ValueError, match=said):
        statistics.load_gap(clustered(0, 0.0)[0], labels)
