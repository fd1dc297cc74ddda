"""Look through what cleaning kept, dropped and changed, row by row."""

import html

from datasets import Dataset

from aurora_lib.course.html import to_html
from aurora_lib.data.cleaning import CleaningResult


def groups(result: CleaningResult) -> dict[str, Dataset]:
    """What there is to look at: kept, dropped by step, edited by step; only groups that hold something, with their size."""
    found = {"kept": result.kept}
    for name, rows in (("dropped", result.dropped), ("edited", result.edits)):
        steps = rows["step"]
        for step in dict.fromkeys(steps):
            found[f"{name} by {step}"] = rows.select([i for i, other in enumerate(steps) if other == step])
    return {f"{name} ({len(rows):,})": rows for name, rows in found.items() if len(rows)}


def row_to_html(row: dict) -> str:
    """One row of a group: its id and reason, then the conversation as bubbles, or an edit's before and after. Escaped."""
    head = f"<code>{html.escape(row['id'])}</code> {html.escape(row.get('reason') or '')}"
    if "messages" in row:
        return head + to_html(row["messages"])
    texts = "".join(
        f"<tr><th>{side}</th><td style='white-space:pre-wrap;text-align:left'>{html.escape(row[side])}</td></tr>"
        for side in ("before", "after")
    )
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
