"""Intervals, averages and the paired test, against scipy and against values worked by hand."""

import random

import matplotlib
import pytest
from scipy.stats import binomtest

from aurora_lib.course import DATA
from aurora_lib.evaluation.benchmarks import EvalError
from aurora_lib.evaluation.evaluate import EvalResult, Score
from aurora_lib.evaluation.fewshot import Form
from aurora_lib.evaluation.scores import Paired, paired, plot


def result(hits: dict[str, str], category: dict[str, str] | None = None, **changes) -> EvalResult:
    """A result: subject -> "1" for a right answer, "0" for a wrong one, a space for a question not asked."""
    rows = [
        dict(subject=subject, index=i, correct=hit == "1", answer="A", weight=1.0)
        for subject, each in hits.items()
        for i, hit in enumerate(each)
        if hit != " "
    ]
    known = {subject: dict(name=subject, category=(category or {}).get(subject, "STEM")) for subject in hits}
    fields = dict(task="mmlu", form=Form(), shots=5, root=DATA, skipped=[])
    return EvalResult(**fields | changes, subjects=known, predictions=rows)


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
    by = Score.by([("a", True, 3), ("b", True, 1), ("a", False, 1)], ["none", "b"])
    assert [(name, score.accuracy) for name, score in by.items()] == [("b", 1), ("a", 0.75)]


MANY = [1534, 895, 783, *range(100, 640, 10)]  # subjects about as MMLU's
UNEQUAL = [  # questions of each subject and share right, and how many of each are asked
    (MANY, [0.25 + (7 * i % 10) / 14 for i, _ in enumerate(MANY)], 20),
    ([3000] + [40] * 40, [0.5] + [0.99] * 40, 20),
    ([1000] + [50] * 10, [0.5] + [0.98] * 10, 5),
]


@pytest.mark.parametrize("sizes, shares, asked", UNEQUAL)
def test_the_intervals_of_samples_hold_the_score_of_the_whole(sizes, shares, asked):
    hits = [[i < size * share for i in range(size)] for size, share in zip(sizes, shares, strict=True)]
    whole, held = Score.of(hit for each in hits for hit in each), 0
    for seed in range(500):
        draw, rows = random.Random(seed), []
        for each in hits:
            rows += [(hit, len(each) / asked) for hit in draw.sample(each, asked)]
        low, high = Score.of(*zip(*rows, strict=True)).interval
        held += low <= whole.accuracy <= high
    assert held >= 0.93 * 500


def test_table_has_categories_the_papers_average_the_subjects_average_and_chance():
    table = result({"a": "10", "b": "1", "c": "000"}, {"b": "Other", "c": "one of its own"}).table()
    averages = ["micro average (the paper's)", "macro average, over subjects", "chance"]
    assert list(table.index) == ["STEM", "Other", "one of its own", *averages]
    assert table["accuracy"].tolist() == pytest.approx([50, 100, 0, 100 * 2 / 6, 100 * 1.5 / 3, 25])
    assert table.loc["STEM", ["low", "high"]].tolist() == pytest.approx([9.453, 90.547], abs=1e-3)
    assert table["n"].tolist() == [2, 1, 3, 6, 6, 6]


def test_paired_test_counts_only_the_questions_on_which_two_models_differ():
    # a alone right once, b alone 8 times: 2 * (1 + 9) / 2**9
    before, after = "1" + 8 * "0" + 11 * "1", "0" + 8 * "1" + 11 * "1"
    one = paired(result({"x": before}), result({"x": after}))
    assert (one.only_a, one.only_b, one.n) == (1, 8, 20) and one.p == pytest.approx(0.0390625)
    assert one.difference == pytest.approx(7 / 20)
    # Agresti and Min: (8.5 - 1.5) / 22, +- 1.96 * sqrt(8.5 + 1.5 - 49 / 22) / 22
    assert one.interval == pytest.approx((0.31818 - 0.24842, 0.31818 + 0.24842), abs=1e-4)
    assert paired([hit == "1" for hit in before], [hit == "1" for hit in after]) == one
    part = paired(result({"x": "111 "}), result({"x": "101 1"}))
    assert (part.n, part.unmatched) == (3, 1) and "1 questions asked of one model only" in str(part)


@pytest.mark.parametrize("only_a, only_b, p", [(1, 1, 1), (0, 0, 1), (0, 10, 2**-9), (4000, 4400, 1.353e-5)])
def test_mcnemar_p_is_the_probability_of_a_split_at_least_this_uneven(only_a, only_b, p):
    assert Paired(only_a, only_b, 14042).p == pytest.approx(p, rel=0.02)


@pytest.mark.parametrize("other", [dict(task="ceval"), dict(hits={"x": " 1"}), dict(answer="B")])
def test_results_of_other_questions_cannot_be_paired(other):
    hits, answer = other.pop("hits", {"x": "1"}), other.pop("answer", "A")
    two = result(hits, **other)
    two.predictions[0]["answer"] = answer
    with pytest.raises(EvalError, match="not asked the same questions"):
        paired(result({"x": "1"}), two)


def test_plot_draws_the_chance_line_and_every_interval():
    matplotlib.use("Agg")
    ax = plot({"base": {"STEM": Score(3, 10)}, "tuned": {"STEM": Score(7, 10)}})
    assert any(line.get_ydata()[0] == 0.25 for line in ax.lines)
    assert [bar.get_height() for bar in ax.patches if bar.get_height() in (0.3, 0.7)] == [0.3, 0.7]
    segments = [line for bars in ax.containers if hasattr(bars, "errorbar") for line in bars.errorbar[2]]
    ends = [y for lines in segments for segment in lines.get_segments() for _, y in segment]
    assert ends == pytest.approx([*Score(3, 10).interval, *Score(7, 10).interval])
