"""What a cleaning did, for people: the account of its rows."""

from collections import Counter

from aurora_lib.data.cleaning import CleaningResult
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
