"""Two models on the same questions: the paired test, and the plot of scores with their intervals."""

import math
import textwrap
from dataclasses import dataclass

from scipy.stats import binomtest

from aurora_lib.evaluation.benchmarks import EvalError
from aurora_lib.evaluation.evaluate import CHANCE, EvalResult, Score, Z


@dataclass(frozen=True)
class Paired:
    """Two models on the same `n` questions: what `a` alone and what `b` alone got right decides between them.

    `difference` is accuracy of b less that of a, `interval` its 95 % interval (Agresti and Min 2005: half a
    question is added to each of the four cells), `p` the two-sided exact McNemar probability of a split at
    least this uneven if both were equally good.
    """

    only_a: int
    only_b: int
    n: int

    @property
    def difference(self) -> float:
        return (self.only_b - self.only_a) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        a, b, n = self.only_a + 0.5, self.only_b + 0.5, self.n + 2
        centre, half = (b - a) / n, Z * math.sqrt(a + b - (b - a) ** 2 / n) / n
        return max(-1.0, centre - half), min(1.0, centre + half)

    @property
    def p(self) -> float:
        discordant = self.only_a + self.only_b
        return float(binomtest(self.only_b, discordant).pvalue) if discordant else 1.0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}] on n={self.n}: {self.only_b} right only "
            f"after, {self.only_a} only before, exact McNemar p={self.p:.3g}"
        )


def paired(a: EvalResult | list[bool], b: EvalResult | list[bool]) -> Paired:
    """Compare two models (`a` before, `b` after) question by question: far less noise than two intervals.

    Given are two results of `multiple_choice`, of which the questions of both count, all alike, or what was
    right in two lists in the same order. Raises EvalError where the two share no question.
    """
    one, two = _hits(a), _hits(b)
    both = one.keys() & two.keys()
    if not both:
        raise EvalError("These two were not asked the same questions: compare one task, on the same files.")
    only_a, only_b = sum(one[q] > two[q] for q in both), sum(two[q] > one[q] for q in both)
    return Paired(only_a, only_b, n=len(both))


def _hits(side: EvalResult | list[bool]) -> dict:
    """Question -> whether it was answered rightly; a question whose answer was changed is another one."""
    if isinstance(side, EvalResult):
        rows, of = side.predictions, (side.task, side.split)
        return {(*of, row["subject"], row["index"], row["answer"]): row["correct"] for row in rows}
    return dict(enumerate(side))


def plot(series: dict[str, dict[str, Score]], *, chance: float | None = CHANCE, title: str = ""):
    """Bars with 95 % intervals, a colour per series, and the band that guessing gives; returns the axes.

    `series`: name -> {label: Score}, like {"base": base.by_category, "tuned": tuned.by_category}. The band is
    chance +- 1.96 standard errors at the smallest n; `chance=None` draws none. Labels should be Latin: a font
    with Chinese cannot be assumed.
    """
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(label for scores in series.values() for label in scores))
    _, ax = plt.subplots(figsize=(max(4.5, 0.6 * len(labels) * (1 + len(series))), 3.6))
    width = 0.8 / len(series)
    for i, (name, scores) in enumerate(series.items()):
        at = [labels.index(label) + (i - (len(series) - 1) / 2) * width for label in scores]
        heights = [score.accuracy for score in scores.values()]
        below = [score.accuracy - score.interval[0] for score in scores.values()]
        above = [score.interval[1] - score.accuracy for score in scores.values()]
        ax.bar(at, heights, width * 0.92, yerr=[below, above], capsize=3, label=name)
    if chance is not None:
        smallest = round(min(s.effective or s.n for scores in series.values() for s in scores.values()))
        half = Z * math.sqrt(chance * (1 - chance) / smallest)
        ax.axhspan(max(0, chance - half), min(1, chance + half), color="grey", alpha=0.2, zorder=0)
        ax.axhline(chance, color="grey", linestyle="--", linewidth=1, label=f"chance (band: n={smallest})")
    wrapped = ["\n".join(textwrap.wrap(label, 18, replace_whitespace=False)) for label in labels]
    ax.set_xticks(range(len(labels)), wrapped, fontsize="small")
    ax.set(ylim=(0, 1.05), ylabel="share", title=title)
    ax.legend(fontsize="small", loc="lower left", bbox_to_anchor=(1.0, 0.0), frameon=False)
    return ax
