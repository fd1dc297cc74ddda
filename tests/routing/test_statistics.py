"""Statistics find what was planted, and claim nothing where there is nothing."""

import pytest
import torch

from aurora_lib import routing
from aurora_lib.course import DATA
from aurora_lib.evaluation import load_probes
from aurora_lib.model import load_model
from aurora_lib.routing import baselines, statistics
from tests.routing.made import clustered, trace_of


def test_load_counts_slots():
    trace = trace_of(torch.tensor([[[0, 1], [0, 2]], [[3, 4], [4, 3]]]), width=5)
    assert routing.expert_load(trace).tolist() == [[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]]


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


def test_a_statistic_says_for_every_baseline_where_it_is_above():
    baselines = {"a": torch.tensor([[1.0, 1.0]]), "b": torch.tensor([[3.0, 1.0], [3.0, 0.0]])}
    one = statistics.Statistic("x", torch.tensor([2.0, 2.0]), [0, 4], baselines)
    assert one.above == {"a": [0, 4], "b": [4]}
    above = "above the bound of"
    assert str(one) == f"x: 2, 2\n{above} a (1 draws): layers 0, 4\n{above} b (2 draws): layers 4"
    assert one.table()["b: mean"].tolist() == [3.0, 0.5]


def test_a_random_router_is_not_said_to_know_languages(tokenizer):
    """The bundled model with a random router: more than shuffled texts, no more than other random routers."""
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    texts = [fact[side]["answer"] for fact in load_probes()[::8] for side in ("zh", "en")]
    twins = [baselines.random_router(base, seed) for seed in (102, *range(19))]
    trace, *random = [routing.trace_many(twin, tokenizer, texts) for twin in twins]
    found = statistics.load_gap(trace, ["zh", "en"] * (len(texts) // 2), random)
    assert found.above == {"shuffled texts": [0, 1, 2, 3], "random routers": []}


def test_a_language_is_found_where_it_is_planted_and_not_where_only_texts_differ():
    """Shuffling token by token would call almost any 24 texts a finding."""

    def found(seed, gain):
        return bool(statistics.load_gap(*clustered(seed, gain), permutations=99).above["shuffled texts"])

    assert sum(found(seed, gain=0.0) for seed in range(40)) <= 6 and found(0, gain=2.0)
    loads = statistics.load_by_group(*clustered(0, gain=2.0))
    assert list(loads) == ["zh", "en"]
    assert loads["zh"][0, 0, :4].sum() > loads["en"][0, 0, :4].sum() + 0.2


def test_the_gap_is_counted_by_hand_and_leaves_other_languages_out():
    texts = torch.tensor([0, 0, 1, 1, 2, 2])
    trace = trace_of(torch.tensor([[[0, 1], [0, 2], [0, 3], [0, 3], [4, 5], [6, 7]]]), texts=texts)
    gap = statistics.load_gap(trace, ["zh", "en", "mixed"], permutations=20)
    assert gap.value.item() == pytest.approx(1 / 2)  # a quarter each of experts 1 and 2 would go to 3
    assert (gap.baselines["shuffled texts"] == gap.value).all()  # the labels of zh and en changed places only
    for labels, said in ((["zh", "en"], "2 labels for 3"), (["zh"] * 3, "need a text")):
        with pytest.raises(ValueError, match=said):
            statistics.load_gap(trace, labels)


def test_moved_slots_are_counted_by_hand():
    texts = torch.tensor([0, 0, 1, 1])
    before = trace_of(torch.tensor([[[0, 1], [2, 3], [4, 5], [6, 7]]]), texts=texts)
    after = trace_of(torch.tensor([[[0, 1], [3, 2], [4, 1], [1, 0]]]), texts=texts)
    share, low, high = statistics.moved(before, after)
    assert low.item() < share.item() == 3 / 8 < high.item()  # half of the third token, all of the fourth
    assert statistics.moved(before, before).tolist() == [[0], [0], [0]]
    with pytest.raises(ValueError, match="differ in tokens or layers"):
        statistics.moved(before, trace_of(after.experts[:, :2]))
