"""Intervals, averages and the paired test, against values worked by hand."""

import matplotlib
import pytest

from aurora_lib.course import DATA
from aurora_lib.evaluation.benchmarks import EvalError
from aurora_lib.evaluation.evaluate import EvalResult, Score
from aurora_lib.evaluation.scores import Paired, paired, plot


def result(hits: dict[str, str], category: dict[str, str] | None = None, **changes) -> EvalResult:
    """A result: subject -> "1" for a right answer, "0" for a wrong one, a space for a question not asked."""
    rows = [
        dict(subject=subject, index=i, correct=hit == "1", answer="A")
        for subject, each in hits.items()
        for i, hit in enumerate(each)
        if hit != " "
    ]
    known = {subject: dict(name=subject, category=(category or {}).get(subject, "STEM")) for subject in hits}
    fields = dict(task="mmlu", scoring="letter", shots=5, root=DATA, skipped=[])
    return EvalResult(**fields | changes, subjects=known, predictions=rows)


def test_wilson_interval_matches_values_worked_by_hand():
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415 = 0.71674, half 1.95996 / 1.38415 * sqrt(0.016 + 3.8415/400)
    assert Score(8, 10).interval == pytest.approx((0.49016, 0.94333), abs=1e-4)
    assert Score(0, 20).interval == pytest.approx((0.0, 0.16113), abs=1e-4)
    assert Score(0, 0).interval == (0.0, 1.0)


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
