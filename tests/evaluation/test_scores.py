"""Intervals, averages and the paired test, against scipy and against values worked by hand."""

import random

import pytest
from scipy.stats import binomtest

from aurora_lib.course import DATA
from aurora_lib.evaluation.benchmarks import EvalError
from aurora_lib.evaluation.evaluate import EvalResult, Score
from aurora_lib.evaluation.fewshot import Form
from aurora_lib.evaluation.scores import Paired, paired, plot


def result(hits: str, answer: str = "A", task: str = "mmlu", split: str = "test") -> EvalResult:
    """A result: "1" for a right answer, "0" for a wrong one, a space for a question not asked."""
    asked = [(i, hit == "1") for i, hit in enumerate(hits) if hit != " "]
    rows = [dict(subject="x", index=i, correct=right, answer=answer) for i, right in asked]
    return EvalResult(task, split, Form(), shots=5, root=DATA, subjects={}, predictions=rows, skipped=[])


@pytest.mark.parametrize("weights", [[], [1.0] * 40, [2.5] * 40])
@pytest.mark.parametrize("right", [0, 1, 8, 33, 40])
def test_the_interval_of_a_whole_benchmark_is_wilsons(right, weights):
    score = Score.of([i < right for i in range(40)], weights)
    assert score.interval == pytest.approx(binomtest(right, 40).proportion_ci(method="wilson"), abs=1e-7)
    assert score == Score(right, 40) and "sample" not in str(score)
    assert Score(0, 0).interval == (0.0, 1.0)


def test_a_sample_with_weights_is_worth_what_kish_says():
    # weights 3, 1, 1, 1: a third of them right; (3 + 1 + 1 + 1)**2 / (9 + 1 + 1 + 1) = 3 drawn evenly
    score = Score.of([False, True, True, False], [3, 1, 1, 1])
    assert (score.accuracy, score.n, score.effective) == (pytest.approx(1 / 3), 4, pytest.approx(3))
    assert score.interval == pytest.approx(binomtest(1, 3).proportion_ci(method="wilson"), abs=1e-7)
    assert str(score).endswith("n=4 (a sample, worth 3 drawn evenly)")


def test_the_intervals_of_samples_hold_the_score_of_the_whole():
    many = [1534, 895, 783, *range(100, 640, 10)]  # subjects about as MMLU's; then one large, many small
    shares = [0.25 + (7 * i % 10) / 14 for i in range(57)], [0.5] + [0.99] * 40
    for sizes, right in zip((many, [3000] + [40] * 40), shares, strict=True):
        hits = [[i < size * share for i in range(size)] for size, share in zip(sizes, right, strict=True)]
        whole, held = sum(map(sum, hits)) / sum(sizes), 0
        for seed in range(500):
            draw = random.Random(seed)
            rows = [(hit, len(each) / 20) for each in hits for hit in draw.sample(each, 20)]
            low, high = Score.of(*zip(*rows, strict=True)).interval
            held += low <= whole <= high
        assert held >= 0.93 * 500


def test_paired_test_counts_only_the_questions_on_which_two_models_differ():
    # a alone right once, b alone 8 times: 2 * (1 + 9) / 2**9
    before, after = "1" + 8 * "0" + 11 * "1", "0" + 8 * "1" + 11 * "1"
    one = paired(result(before), result(after))
    assert (one.only_a, one.only_b, one.n) == (1, 8, 20) and one.p == pytest.approx(0.0390625)
    assert one.difference == pytest.approx(7 / 20)
    # Agresti and Min: (8.5 - 1.5) / 22, +- 1.96 * sqrt(8.5 + 1.5 - 49 / 22) / 22
    assert one.interval == pytest.approx((0.31818 - 0.24842, 0.31818 + 0.24842), abs=1e-4)
    assert paired([hit == "1" for hit in before], [hit == "1" for hit in after]) == one
    assert paired(result("111 "), result("101 1")) == Paired(1, 0, 3)


@pytest.mark.parametrize("only_a, only_b, p", [(1, 1, 1), (0, 0, 1), (0, 10, 2**-9), (4000, 4400, 1.353e-5)])
def test_mcnemar_p_is_the_probability_of_a_split_at_least_this_uneven(only_a, only_b, p):
    assert Paired(only_a, only_b, 14042).p == pytest.approx(p, rel=0.02)


@pytest.mark.parametrize("other", [dict(task="ceval"), dict(split="val"), dict(hits=" 1"), dict(answer="B")])
def test_results_of_other_questions_cannot_be_paired(other):
    with pytest.raises(EvalError, match="not asked the same questions"):
        paired(result("1"), result(**dict(hits="1") | other))


def test_plot_draws_the_chance_line_and_every_interval():
    ax = plot({"base": {"STEM": Score(3, 10)}, "tuned": {"STEM": Score(7, 10)}})
    assert any(line.get_ydata()[0] == 0.25 for line in ax.lines)
    assert [bar.get_height() for bar in ax.patches if bar.get_height() in (0.3, 0.7)] == [0.3, 0.7]
    segments = [line for bars in ax.containers if hasattr(bars, "errorbar") for line in bars.errorbar[2]]
    ends = [y for lines in segments for segment in lines.get_segments() for _, y in segment]
    assert ends == pytest.approx([*Score(3, 10).interval, *Score(7, 10).interval])
