"""Write `docs/paper_and_ours.md`, the paper's numbers beside ours, and the cost table of `docs/h100.md`.

Both come from `aurora_lib.course.paper` and `results/`; `make notebooks` calls this.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from aurora_lib.course import paper, results
from aurora_lib.course.paper import Figure
from aurora_lib.course.scale import FULL, TINY
from aurora_lib.model import memory

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "paper_and_ours.md"
H100_PAGE = ROOT / "docs" / "h100.md"
NOT = "not measured"


@dataclass(frozen=True)
class Row:
    """One published figure; `ours` are texts of what was recorded on an H100 and at tiny."""

    name: str
    figure: Figure
    h100: str = NOT
    tiny: str = NOT
    tolerance: str = ""
    why: str = ""

    def __str__(self) -> str:
        value = f"{self.figure.value:,.6g} {self.figure.unit}".strip()
        cells = (self.name, value, self.figure.source, self.h100, self.tiny, self.tolerance, self.why)
        return f"| {' | '.join(cells)} |"


def recorded(notebook: str, label: str, where: str, show=str) -> str:
    """A recorded figure as text, or "not measured"."""
    value = results.recorded(notebook, where).get(label)
    return NOT if value is None else show(value)


def conversations() -> list[Row]:
    tiny = recorded("02", "conversations", "tiny", lambda n: f"{n:,} self-written")
    why = "the released sets cannot be bundled; `AURORA_DATA` or the hub brings them"
    rows = [Row(name, figure, why=why) for name, figure in paper.CONVERSATIONS.items()]
    rows[-1] = Row("total", paper.CONVERSATIONS["total"], tiny=tiny, why="tiny reads its own rows")
    return [*rows, Row("categories", paper.CATEGORIES, why="the paper does not say how they were found")]


def training() -> list[Row]:
    keys = {
        "learning rate": "learning_rate",
        "epochs": "epochs",
        "save every": "save_steps",
        "batch per device": "batch",
        "gradient accumulation": "accumulation",
        "cutoff": "length",
    }
    rows = []
    for name, figure in paper.TRAINING.items():
        key = keys.get(name)
        full, tiny = (f"{preset[key]:g}" if key else f"{figure.value:g}" for preset in (FULL, TINY))
        why = "a model this small needs other steps and lengths" if full != tiny else ""
        rows.append(Row(name, figure, f"{full} (preset)", f"{tiny} (preset)", "exact", why))
    why = "not comparable: another model, other data, two CPU cores"
    for name, figure in paper.RUN.items():
        tiny = (
            recorded("04", "training time [s]", "tiny", lambda s: f"{s:.0f} s")
            if name == "training time"
            else NOT
        )
        rows.append(Row(name, figure, tiny=tiny, why=why if tiny != NOT else ""))
    return rows


def gib(value: float) -> str:
    return f"{value:.1f} GiB"


OTHERS = "training, the stack of 2023: batch 16, varied lengths, reserved [GiB]"
OTHERS_MEASURED = "training, the stack of 2023: batch 16, accumulation 2, varied lengths, nvidia-smi [GiB]"


def memories() -> list[Row]:
    """Predicted beside the paper's; the record of the GPU where there is one."""
    h100 = results.recorded("mixtral_8x7b", "h100")
    labels = {
        "training": "training: batch 2, accumulation 4, nvidia-smi [GiB]",
        "training, README": "training: batch 2, accumulation 4, nvidia-smi [GiB]",
        "inference": "inference: batch 1, nvidia-smi [GiB]",
    }
    rows = []
    for name, label in labels.items():
        train = name.startswith("training")
        size = dict(train=train) if train else dict(train=False, batch=1, length=2048)
        predicted = f"predicted {gib(memory.predict(memory.MIXTRAL_8X7B, **size).total)} allocated"
        measured = gib(h100[label]) if label in h100 else f"{NOT}; {predicted}"
        reserved = results.recorded("mixtral_8x7b", "counted")[OTHERS]
        why = "most likely another batch: the speeds of the authors' run make 32 conversations a step, "
        why += f"and their stack at 16 x 2 reserves {gib(reserved)} (counted from its sources; notebook 03)"
        if OTHERS_MEASURED in h100:
            why += f"; nvidia-smi showed {gib(h100[OTHERS_MEASURED])} for it on an H100, with random weights"
        rows.append(
            Row(name, paper.MEMORY[name], measured, "", "5 % of the prediction", why if train else "")
        )
    return [*rows, Row("GPU", paper.MEMORY["GPU"])]


def scores() -> list[Row]:
    rows = []
    for task, figure in paper.AURORA.items():
        label = f"{task}, 5-shot letters, tuned [share]"
        h100, tiny = (recorded("05", label, where, lambda s: f"{s:.1%}") for where in ("h100", "tiny"))
        why = "tiny answers its own questions, and names letters only for facts it was drilled on"
        near = "none: its split is not said" if task == "C-Eval" else "2 points"
        rows.append(Row(f"{task}, 5-shot", figure, h100, tiny, near, why))
    label = "{}, 5-shot letters, base [share]"
    why = "the untuned base, which Table 3 lacks; another harness, so some points may be the way of asking"
    for name, figure in paper.UNTUNED.items():
        task, _, other = name.partition(", ")
        both = [
            NOT if other else recorded("05", label.format(task), where, lambda s: f"{s:.1%}")
            for where in ("h100", "tiny")
        ]
        rows.append(Row(f"{name}, 5-shot, untuned", figure, *both, "", why))
    for task, categories in paper.AURORA_BY_CATEGORY.items():
        for category, value in categories.items():
            figure = Figure(value, "%", "early README, in a comment")
            rows.append(Row(f"{task}, {category}", figure, why="needs the released benchmark"))
    return rows


def generation() -> list[Row]:
    names = ("BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L")
    rows = [
        Row(f"checkpoint {step:,}, {name}", Figure(value, "", "README"))
        for step, values in paper.GENERATION_SCORES.items()
        for name, value in zip(names, values, strict=True)
    ]
    return rows + [Row(f"CMB, {model}", Figure(value, "%", "README")) for model, value in paper.CMB.items()]


def others() -> str:
    head = "| model | C-Eval | MMLU | CMMLU |\n|---|---|---|---|\n"
    return head + "\n".join(
        f"| {model} | {' | '.join(f'{value:g}' for value in values)} |"
        for model, values in paper.TABLE_3.items()
        if model != "Aurora"
    )


def oddities() -> str:
    """Each line is computed where it can be, so that it cannot outlive a correction of paper.toml."""
    rounds = {name: f.value for name, f in paper.CONVERSATIONS.items()}
    parts = [value for name, value in rounds.items() if name != "total"]
    memory_gib = [f"{paper.MEMORY[name].value:g} GiB" for name in ("training", "training, README")]
    stored, used = (
        recorded("01", f"Mixtral-8x7B {what}", "tiny", lambda n: f"{n / 1e9:.1f}")
        for what in ("stored parameters", "parameters used per token")
    )
    run = {name: f.value for name, f in paper.RUN.items()}
    return f"""- Training memory: {memory_gib[0]} in the paper's Table 4, {memory_gib[1]} in its early README.
- Table 1: {" + ".join(f"{value:,.0f}" for value in parts)} = {sum(parts):,.0f}, as stated; but 48,818 looks
  like the raw count of alpaca_gpt4_data_zh, of which LLaMA-Factory's card says that 6,103 mistruncated
  examples were removed.
- The text says that alpaca_data_zh_51k holds sentence pairs with English translations; the released file
  holds instructions, inputs and outputs in Chinese.
- The text announces seven benchmarks and lists three.
- "8 experts of 7 billion parameters each": Mixtral-8x7B stores {stored} billion in all and uses
  {used} billion a token, since everything but the feed-forward part is shared.
- Figure 2's three largest categories, "computer, natural and science", may be tags split at spaces
  ("Natural Science"); but then science should be the largest, and the text names it last.
- The C-Eval cell of Aurora is empty in the early README; 51.9 stands in the paper and in the later README.
- The later README labels two rows of its generation scores 8000; by its position the second is
  checkpoint 10000.
- The early README's badge links another arXiv number, 2312.12999.
- Three epochs of {rounds["total"]:,.0f} conversations in the published batch (one GPU, 2 x 4) are
  {3 * rounds["total"] / 8:,.0f} steps. The run beside the released adapter made
  {run["conversations a second"] / run["steps a second"]:.0f} conversations a step (its speeds divided),
  so about {run["training time"] * run["steps a second"]:,.0f} steps, which its checkpoints, 1000 to
  {run["last checkpoint"]:,.0f}, agree with. Its time times its speed gives
  {run["training time"] * run["conversations a second"] / 3:,.0f} conversations an epoch: the paper's number.
- A comment in the README says that its scores for C-Eval, MMLU and CMMLU are of checkpoint
  {paper.SCORED["checkpoint"].value:,}, a fifth of the way; its generation scores are of checkpoints 6000 to
  14000. Table 3 has the same scores and names no checkpoint.
- The paper calls its tuning of a sparse Mixture-of-Experts model on instructions the first. Shen et al.
  (arXiv 2305.14705, May 2023) had tuned sparse models on instructions before.
- Table 3 has no row for the untuned Mixtral. Public scores of it (above, another harness) lie higher on MMLU
  and CMMLU; on C-Eval higher on the val split and lower on the test split, and which one the paper used is
  not said. As far as two harnesses can be compared, these benchmarks show no gain from the tuning."""


HEAD = "| | paper | source | ours, H100 | ours, `tiny` | tolerance | why they differ |\n" + "|---" * 7 + "|\n"


def page() -> str:
    """The text of the page."""
    parts = {
        "The data (section 2)": conversations(),
        "The training (section 4.1)": training(),
        "Memory (Table 4)": memories(),
        "Benchmarks (Table 3)": scores(),
        "Generation and CMB (README)": generation(),
    }
    tables = "\n\n".join(f"## {title}\n\n{HEAD}" + "\n".join(map(str, rows)) for title, rows in parts.items())
    return f"""# The paper's numbers and ours

Written by `tools/pages/comparison.py` from [`paper.toml`](../aurora_lib/course/paper.toml) and
[`results/`](../results); do not edit by hand. "Not measured" means that nobody has: it is no zero and no
failure. `tiny` is a model of a few million parameters that shows the mechanism; its figures are not expected
to be the paper's.

{tables}

BLEU and ROUGE are not computed here: the course asks whether an answer is right, not how near its wording is.

## Models the paper compares with (Table 3)

Collected by the authors from official results and OpenCompass, 5-shot, per cent; neither they nor we ran \
them.

{others()}

## What does not add up in the sources

{oddities()}
"""


def costs() -> str:
    """Hours and cost of the paper's three epochs on one H100, for each way of batching."""
    predicted = json.loads((results.RECORDED / "tiny" / "experiments.json").read_text(encoding="utf-8"))
    lines = [
        "| batches | hours, at least (predicted) | at 2 / 4 an hour "
        "| hours at the recorded speed | at 2 / 4 an hour |",
        "|---|---|---|---|---|",
    ]
    for row in predicted["full, predicted"]["rows"]:
        floor, measured = row["hours, floor"], row["hours at the recorded speed"]
        cells = [row["batching"], f"{floor:.0f}", f"{2 * floor:.0f} / {4 * floor:.0f}"]
        known = not isinstance(measured, str)
        cells += [f"{measured:.0f}", f"{2 * measured:.0f} / {4 * measured:.0f}"] if known else [NOT, NOT]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def h100_page() -> str:
    """The text of docs/h100.md with its cost table written anew."""
    text = H100_PAGE.read_text(encoding="utf-8")
    return re.sub(r"(<!-- cost -->\n).*?(<!-- cost -->)", rf"\g<1>{costs()}\n\g<2>", text, flags=re.S)


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
    H100_PAGE.write_text(h100_page(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
