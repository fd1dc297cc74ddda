"""Statistics find what was planted, and claim nothing where there is nothing."""

import pytest
import torch
from scipy.stats import t

from aurora_lib import routing
from aurora_lib.course import DATA
from aurora_lib.evaluation import load_probes
from aurora_lib.model import load_model
from aurora_lib.routing import baselines, statistics
from tests.routing.made import clustered, trace_of


def test_load_counts_slots_of_all_tokens_or_of_some():
    trace = trace_of(torch.tensor([[[0, 1], [0, 2]], [[3, 4], [4, 3]]]), width=5)
    assert routing.expert_load(trace).tolist() == [[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]]
    assert routing.expert_load(trace, torch.tensor([False, True]))[0].tolist() == [0.5, 0, 0.5, 0, 0]


def test_intervals_are_those_of_texts_and_unknown_for_one_text():
    trace, _ = clustered(0, gain=0.0)
    by_text = torch.stack([routing.expert_load(trace_of(each)) for each in trace.experts.split(25, dim=1)])
    loads = statistics.by_text(trace, statistics.chosen(trace)) / 2
    torch.testing.assert_close(loads.float(), by_text)
    load, low, high = statistics.interval(loads)
    torch.testing.assert_close(load, routing.expert_load(trace))  # the texts are equally long
    one = by_text[:, 0, 3].numpy()
    expected = t.interval(0.95, 23, loc=one.mean(), scale=one.std(ddof=1) / 24**0.5)
    assert (low[0, 3].item(), high[0, 3].item()) == pytest.approx(expected, rel=1e-4)
    assert statistics.interval(torch.tensor([[0.75]]))[1:].isnan().all()


def test_the_bound_of_nineteen_draws_holds_for_all_layers_at_once():
    draw, scale = torch.Generator().manual_seed(0), torch.linspace(0.1, 10, 30)
    seen, null = (scale * torch.randn(1000, n, 30, generator=draw) for n in (1, 19))
    beyond = [bool((one > statistics.bound(other)).any()) for one, other in zip(seen, null, strict=True)]
    assert 0.03 < sum(beyond) / 1000 < 0.08  # each layer at 95 % for itself would give 0.79
    assert statistics.bound(torch.tensor([[3.0, 1.0], [3.0, 1.0]])).tolist() == [3.0, 1.0]


def test_a_random_router_is_not_said_to_know_languages(tokenizer):
    """The bundled model with a random router, against others: on the same inputs, and as other networks."""
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    texts = [fact[side]["answer"] for fact in load_probes()[::24] for side in ("zh", "en")]
    one, *twins = [baselines.random_router(base, seed) for seed in (102, *range(19))]
    trace = routing.trace_many(one, tokenizer, texts)
    chinese = trace.texts % 2 == 0
    others = [routing.trace_many(one, tokenizer, texts, by=twin) for twin in twins]
    networks = [routing.trace_many(twin, tokenizer, texts) for twin in twins]
    assert torch.equal(others[0].experts[0], networks[0].experts[0])  # in layer 0 both read the same
    assert not torch.equal(others[0].experts[-1], networks[0].experts[-1])
    for draws in (others, networks):
        gaps = torch.stack([statistics.load_gap(drawn, chinese) for drawn in draws])
        assert not (statistics.load_gap(trace, chinese) > statistics.bound(gaps)).any()


def test_a_gap_is_found_where_it_is_planted_and_counted_by_hand():
    trace, languages = clustered(0, gain=2.0)
    chinese = torch.tensor([languages[text] == "zh" for text in trace.texts])
    assert statistics.load_gap(trace, chinese) > 0.1 + statistics.load_gap(clustered(0, 0.0)[0], chinese)
    trace = trace_of(torch.tensor([[[0, 1], [0, 2], [0, 3], [0, 3]]]))
    gap = statistics.load_gap(trace, torch.tensor([True, True, False, False]))
    assert gap.item() == pytest.approx(1 / 2)  # a quarter each of experts 1 and 2 would go to 3
    with pytest.raises(ValueError, match="4 of 4 tokens"):
        statistics.load_gap(trace, torch.ones(4, dtype=torch.bool))


def test_moved_slots_are_counted_by_hand():
    texts = torch.tensor([0, 0, 1, 1])
    before = trace_of(torch.tensor([[[0, 1], [2, 3], [4, 5], [6, 7]]]), texts=texts)
    after = trace_of(torch.tensor([[[0, 1], [3, 2], [4, 1], [1, 0]]]), texts=texts)
    share, low, high = statistics.moved(before, after)
    assert low.item() < share.item() == 3 / 8 < high.item()  # half of the third token, all of the fourth
    assert statistics.moved(before, before).tolist() == [[0], [0], [0]]
    with pytest.raises(ValueError, match="differ in tokens or layers"):
        statistics.moved(before, trace_of(after.experts[:, :2]))
