"""What a cleaning did, for people: its steps, its rows one by one, and the card that goes with the data."""

from collections import Counter
from pathlib import Path

import pandas
from datasets import Dataset

from aurora_lib.course import html
from aurora_lib.data import edits
from aurora_lib.data.cleaning import CleaningResult, steps
from aurora_lib.data.sources import Reading


def account(reading: Reading, result: CleaningResult) -> str:
    """What became of the rows of each source, a line with the commonest reasons; then `reading.remarks`."""
    lines, report = [], result.report
    for source in report.columns.drop("total"):
        reasons = Counter(row["reason"] for row in reading.aside if row["source"] == source)
        why = "; ".join(f"{n:,} x {reason}" for reason, n in reasons.most_common(3))
        whole, kept = (int(report.loc[(of, of), source]) for of in ("read", "kept"))
        aside = f"{reasons.total():,} set aside" + f" ({why}{'; ...' * (len(reasons) > 3)})" * bool(why)
        counted = f"{whole + reasons.total():,} rows = {aside} + {whole - kept:,} dropped + {kept:,} kept"
        lines.append(f"{source}: {counted}")
    return "\n".join([*lines, *reading.remarks])


def groups(result: CleaningResult) -> dict[str, Dataset]:
    """What there is to look at: kept, dropped by step, edited by step, each with its size."""
    found = {"kept": result.kept}
    for name, rows in (("dropped", result.dropped), ("edited", result.edits)):
        by = rows["step"][:]
        for step in dict.fromkeys(by):
            found[f"{name} by {step}"] = rows.select([i for i, other in enumerate(by) if other == step])
    return {f"{name} ({len(rows):,})": rows for name, rows in found.items() if len(rows)}


def row_to_html(row: dict) -> str:
    """A row of a group, escaped: what is known about it, then its conversation, if it is one."""
    about = pandas.Series({name: value for name, value in row.items() if name != "messages"})
    return about.to_frame().to_html(header=False) + html.to_html(row.get("messages", []))


def browse(result: CleaningResult):
    """A widget: choose a group, then go through its rows (the slider takes the arrow keys)."""
    import ipywidgets

    found, page = groups(result), ipywidgets.HTML()
    group = ipywidgets.Dropdown(options=list(found), description="rows")
    number = ipywidgets.IntSlider(1, 1, description="number", layout={"width": "60%"})

    def show(_=None) -> None:
        number.max = len(found[group.value])  # which brings a larger number down
        page.value = row_to_html(found[group.value][number.value - 1])

    for control in (group, number):
        control.observe(show, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([group, number]), page])


def card(
    result: CleaningResult, saved: Dataset, *, origin: str, licences: dict[str, str], rejected: int
) -> str:
    """The card of `saved` (what `result` kept, perhaps split), as Markdown.

    `origin` is where the rows were read from, `licences` are those of the sources, `rejected` counts the rows
    that were no conversation.
    """
    report, optional = result.report, {step.__name__ for step in edits.OPTIONAL}

    def line(name: str, about: str, *counts: tuple[str, str], source: str = "total") -> str:
        cells = [f"{int(report[source].get(count, 0)):,}" for count in counts]
        return f"| {name} | {about} | {' | '.join(cells)} |"

    both = ("read", "read"), ("kept", "kept")
    names = [name for name in report.columns if name != "total"]
    by_source = [line(name, licences.get(name, "unknown"), *both, source=name) for name in names]
    taken = [(name, does) for name, does in steps().items() if name not in optional]
    by_step = [line(name, does, (name, "edited"), (name, "dropped")) for name, does in taken]
    tables = dict(sources="\n".join(by_source), steps="\n".join(by_step))
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(saved=len(saved), origin=origin, rejected=rejected, **tables)
