"""Every number the Aurora paper and its repository state, as data, each with its source: `paper.toml`, read.

Sources: "paper" is arXiv 2312.14557. "early README" and "README" are two versions of the repository's README:
the early one names checkpoint 3000 and comments out the category scores, the later one adds C-Eval and
generation scores. "released adapter" is wangrongsheng/Aurora on the hub, revision
800248aab91edc742e220cdfcf426fab33b746e6. UNTUNED alone is not theirs: see there.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One published number, with its unit and the place it was published."""

    value: float
    unit: str
    source: str


_stated = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _figures(table: str) -> dict[str, Figure]:
    return {name: Figure(**figure) for name, figure in _stated[table].items()}


CATEGORIES, LORA_TARGETS = Figure(**_stated["CATEGORIES"]), tuple(_stated["LORA_TARGETS"])
CONVERSATIONS, TRAINING = _figures("CONVERSATIONS"), _figures("TRAINING")
RUN, MEMORY = _figures("RUN"), _figures("MEMORY")  # RUN: what the authors' run left beside the adapter
AURORA, UNTUNED, SCORED = (_figures(name) for name in ("AURORA", "UNTUNED", "SCORED"))
AURORA_BY_CATEGORY: dict[str, dict[str, float]] = _stated["AURORA_BY_CATEGORY"]
TABLE_3 = {model: tuple(scores) for model, scores in _stated["TABLE_3"].items()}  # C-Eval, MMLU, CMMLU
# checkpoint -> BLEU-4, ROUGE-1, ROUGE-2, ROUGE-L
GENERATION_SCORES = {int(step): tuple(scores) for step, scores in _stated["GENERATION_SCORES"].items()}
CMB: dict[str, float] = _stated["CMB"]

# The figures a notebook's closing table sets beside its own, by the label the notebook records them under.
COMPARED = {label: Figure(**_stated[table][name]) for label, (table, name) in _stated["COMPARED"].items()}
COMPARED |= {
    f"{task}, 5-shot letters, tuned [share]": Figure(round(figure.value / 100, 4), "share", figure.source)
    for task, figure in AURORA.items()
}
