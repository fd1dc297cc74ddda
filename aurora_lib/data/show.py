"""What a cleaning did, for people: the account of its rows, and the card that goes with the data."""

from collections import Counter
from pathlib import Path

from datasets import Dataset

from aurora_lib.data import edits
from aurora_lib.data.cleaning import CleaningResult, steps
from aurora_lib.data.sources import Reading


def account(reading: Reading, result: CleaningResult) -> str:
    """What became of the rows of each source, a line with the commonest reasons; then `reading.remarks`."""
    lines, report = [], result.report
    for source in report.columns.drop("total"):
        reasons = Counter(row["reason"] for row in reading.aside if row["source"] == source)
        why = "; ".join(f"{n:,} x {reason}" for reason, n in reasons.most_common(3))
        whole, kept = (int(report[source].get((of, of), 0)) for of in ("read", "kept"))
        aside = f"{reasons.total():,} set aside" + f" ({why}{'; ...' * (len(reasons) > 3)})" * bool(why)
        counted = f"{whole + reasons.total():,} rows = {aside} + {whole - kept:,} dropped + {kept:,} kept"
        lines.append(f"{source}: {counted}")
    return "\n".join([*lines, *reading.remarks])


def card(result: CleaningResult, saved: Dataset, *, origin: str, licences: dict[str, str], aside: int) -> str:
    """The card of `saved` (what `result` kept, perhaps split), as Markdown.

    `origin` is where the rows were read from, `licences` are those of the sources, `aside` counts the rows
    that were no conversation.
    """
    report, optional = result.report, {"contamination", *(step.__name__ for step in edits.OPTIONAL)}

    def line(name: str, about: str, *counts: tuple[str, str], source: str = "total") -> str:
        cells = [f"{int(report[source].get(count, 0)):,}" for count in counts]
        return f"| {name} | {about} | {' | '.join(cells)} |"

    both = ("read", "read"), ("kept", "kept")
    names = [name for name in report.columns if name != "total"]
    by_source = [line(name, licences.get(name, "unknown"), *both, source=name) for name in names]
    taken = [(name, does) for name, does in steps().items() if name not in optional or name in report.index]
    by_step = [line(name, does, (name, "edited"), (name, "dropped")) for name, does in taken]
    tables = dict(sources="\n".join(by_source), steps="\n".join(by_step))
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(saved=len(saved), origin=origin, aside=aside, **tables)
