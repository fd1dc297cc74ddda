"""What a cleaning did, for people: its steps, its rows one by one, and the card that goes with the data."""

import html

from datasets import Dataset

from aurora_lib.course.html import to_html
from aurora_lib.data import edits
from aurora_lib.data.cleaning import CleaningResult, steps

# As stated where the sets are published; all three were written by, or with, commercial models.
RELEASED_LICENCES = {
    "alpaca_zh": "Apache-2.0 (repository); machine-generated",
    "alpaca_gpt4_zh": "CC BY-NC 4.0; GPT-4 answers: not for commercial use",
    "sharegpt_zh": "see the publisher's page; ChatGPT conversations shared by users, may hold personal data",
}
CARD = """\
# Cleaned Chinese conversations

{saved:,} conversations in `messages` format, cleaned from {origin} for supervised fine-tuning.

| source | licence | read | kept |
|---|---|---|---|
{sources}

Rows that were no conversation and were set aside before: {rejected:,}.

| step | what it does | edited | dropped |
|---|---|---|---|
{steps}

Known limits: steps are rules, which leave some dirt and drop some good rows; facts in the answers were not \
checked; personal data is not masked.
"""


def groups(result: CleaningResult) -> dict[str, Dataset]:
    """What there is to look at: kept, dropped by step, edited by step, each with its size."""
    found = {"kept": result.kept}
    for name, rows in (("dropped", result.dropped), ("edited", result.edits)):
        by = rows["step"][:]
        for step in dict.fromkeys(by):
            found[f"{name} by {step}"] = rows.select([i for i, other in enumerate(by) if other == step])
    return {f"{name} ({len(rows):,})": rows for name, rows in found.items() if len(rows)}


def row_to_html(row: dict) -> str:
    """One row of a group, escaped: its id and reason, then the conversation, or an edit's before and
    after."""
    head = f"<code>{html.escape(row['id'])}</code> {html.escape(row.get('reason') or '')}"
    if "messages" in row:
        return head + to_html(row["messages"])
    cell = "<td style='white-space:pre-wrap;text-align:left'>"
    sides = ("before", "after")
    texts = "".join(f"<tr><th>{side}</th>{cell}{html.escape(row[side])}</td></tr>" for side in sides)
    return f"{head} turn {row['turn']}<table>{texts}</table>"


def browse(result: CleaningResult):
    """A widget: choose a group, then go through its rows (the slider takes the arrow keys)."""
    import ipywidgets

    found = groups(result)
    group = ipywidgets.Dropdown(options=list(found), description="rows")
    number = ipywidgets.IntSlider(
        1, 1, len(found[group.value]), description="number", layout={"width": "60%"}
    )
    page = ipywidgets.HTML()

    def show(_=None) -> None:
        page.value = row_to_html(found[group.value][number.value - 1])

    def change(_) -> None:
        number.value, number.max = 1, len(found[group.value])
        show()

    group.observe(change, "value")
    number.observe(show, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([group, number]), page])


def card(
    result: CleaningResult, saved: Dataset, *, origin: str, licences: dict[str, str], rejected: int
) -> str:
    """The card of `saved` (what `result` kept, perhaps split), as Markdown.

    `origin` is where the rows were read from, `licences` are those of the sources, `rejected` counts the rows
    that were no conversation.
    """
    report = result.report

    def count(step: str, action: str, source: str = "total") -> str:
        return f"{int(report[source].get((step, action), 0)):,}"

    sources = [
        f"| {name} | {licences.get(name, 'unknown')} "
        f"| {count('read', 'read', name)} | {count('kept', 'kept', name)} |"
        for name in report.columns
        if name != "total"
    ]
    optional = {step.__name__ for step in edits.OPTIONAL}
    taken = [
        f"| {name} | {does} | {count(name, 'edited')} | {count(name, 'dropped')} |"
        for name, does in steps().items()
        if name not in optional
    ]
    rows = dict(sources="\n".join(sources), steps="\n".join(taken))
    return CARD.format(saved=len(saved), origin=origin, rejected=rejected, **rows)
