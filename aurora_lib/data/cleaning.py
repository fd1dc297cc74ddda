"""Conversations -> clean conversations, by named steps; nothing is lost in silence (paper, section 2).

Edits and drops look at one conversation at a time, on several cores; then duplicates are found in the rest.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from aurora_lib.data import drops, duplicates, edits, sources
from aurora_lib.data.sources import FEATURES

SHARD = 32_768  # conversations cleaned at a time: what an interruption loses at most
MANY = 20_000  # conversations from which on more than one process is worth it
EDIT = {"step": Value("string"), "turn": Value("int64"), "before": Value("string"), "after": Value("string")}
TEXTS = dict.fromkeys(("step", "reason", "mark", "plain"), Value("string"))
CLEANED = Features(FEATURES | TEXTS | {"edits": List(EDIT), "size": Value("int64")})
CHANGES = Features({"id": Value("string"), "source": Value("string")} | EDIT)
# this room's code and patterns: a shard that was cleaned by other code is not the same shard
_files = sorted(file for file in Path(__file__).parent.iterdir() if file.suffix in (".py", ".toml"))
CODE = "".join(file.read_text(encoding="utf-8") for file in _files)


def steps() -> dict[str, str]:
    """What each step does, in order: the first paragraph of its docstring."""
    functions = [*edits.TEXT_EDITS, *edits.EDITS, *drops.DROPS]
    return {step.__name__: " ".join(step.__doc__.split("\n\n")[0].split()) for step in functions} | {
        "contamination": "Drop what holds a question of the benchmarks given, if any.",
        "duplicate": "Of equal conversations the first stays.",
        "near_duplicate": "Of nearly equal conversations the one with the longer answers stays.",
    }


@dataclass
class CleaningResult:
    """Each conversation is in `kept` or, as read, in `dropped` (with its `step` and `reason`).

    `edits` holds every change: `id`, `source`, `step`, `turn`, `before`, `after` (40 characters around it).
    """

    kept: Dataset
    dropped: Dataset
    edits: Dataset

    @property
    def report(self) -> pandas.DataFrame:
        """Conversations by step (rows, in order) and source (columns, and `total`)."""
        kept, dropped = self.kept["source"][:], self.dropped.select_columns(["step", "source"]).to_pandas()
        counts = Counter(("read", "read", source) for source in [*kept, *dropped["source"]])
        counts.update(("kept", "kept", source) for source in kept)
        counts.update((step, "dropped", source) for step, source in dropped.itertuples(index=False))
        edited = self.edits.select_columns(["step", "source", "id"]).to_pandas().drop_duplicates()
        counts.update((step, "edited", source) for step, source, _ in edited.itertuples(index=False))
        frame = pandas.Series(counts).unstack(fill_value=0)[list(dict.fromkeys([*kept, *dropped["source"]]))]
        order = [name for name in ("read", *steps(), "kept") if name in frame.index]
        frame = frame.reindex(order, level=0).rename_axis(["step", "action"])
        return frame.assign(total=frame.sum(axis=1)).astype(int)


def account(reading: sources.Reading, result: CleaningResult) -> str:
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


def clean(dataset: Dataset, *, benchmarks=None, processes=None, folder=None) -> CleaningResult:
    """Clean conversations of any sources: edit, drop with a reason, drop equal and nearly equal ones.

    `dataset` is what `sources.read` gives as `conversations`. Conversations that hold a question of
    `benchmarks` (an `evaluation.contamination.Questions`) are dropped too. `processes` (all cores from MANY
    conversations on) changes the time and nothing else. With a `folder`, finished shards are kept there, and
    cleaning the same again, after an interruption say, takes them up.

    Cleaning what was kept changes nothing. Raises DataError for a dataset that is empty, and for ids that are
    not unique.
    """
    if len(dataset) == 0:
        raise sources.DataError("Nothing to clean: no conversation was read. Check AURORA_DATA.")
    name, times = Counter(dataset["id"][:]).most_common(1)[0]
    if times > 1:
        remedy = "Load each file once, or give its rows ids of their own."
        raise sources.DataError(f"The id {name!r} is there more than once. {remedy}")
    dataset = dataset.select_columns(list(FEATURES))
    processes = processes or (os.cpu_count() if len(dataset) >= MANY else 1)
    processes = processes if processes > 1 else None  # None: in this process
    cleaned = _one_by_one(dataset, dict(benchmarks=benchmarks), processes, folder)
    step, reason = cleaned["step"][:], cleaned["reason"][:]
    _mark_duplicates(cleaned, step, reason)
    kept = cleaned.select_columns(list(FEATURES)).select([i for i, name in enumerate(step) if not name])
    for name, values in (("step", step), ("reason", reason)):
        dataset = dataset.add_column(name, values, feature=Value("string"))
    dropped = dataset.select([i for i, name in enumerate(step) if name])
    assert len(kept) + len(dropped) == len(dataset)
    parts = cleaned.select_columns(["id", "source", "edits"]).iter(1_000)  # a row at a time is slow
    rows = (row for part in parts for row in zip(part["id"], part["source"], part["edits"], strict=True))
    changes = (dict(id=name, source=of) | change for name, of, found in rows for change in found)
    return CleaningResult(kept, dropped, sources.table(changes, CHANGES))


def _one_by_one(dataset: Dataset, settings: dict, processes: int | None, folder) -> Dataset:
    """The steps that need one conversation only: columns CLEANED, all rows in their order.

    A shard's file is named after its rows, the settings and this room's code: what is there is taken up.
    """
    shards = []
    for start in range(0, len(dataset), SHARD):
        shard = dataset.select(range(start, min(start + SHARD, len(dataset))))
        fingerprint = Hasher.hash((shard._fingerprint, settings, CODE))
        file = str(Path(folder) / f"{fingerprint}.arrow") if folder else None
        how = dict(batched=True, features=CLEANED, num_proc=processes, desc="cleaning", fn_kwargs=settings)
        shards.append(shard.map(clean_batch, **how, new_fingerprint=fingerprint, cache_file_name=file))
    return concatenate_datasets(shards)


def clean_batch(rows: dict, benchmarks) -> dict:
    """`messages` of rows after every edit, `edits`, `step` and `reason` (None where a row stays), `prepared`.

    It runs in forked processes, so nothing in it may use threads (rensa's and torch's do not survive a fork).
    """
    done = []
    for messages in rows["messages"]:
        messages, changes = edits.edit(messages)
        step, reason = next(((s.__name__, why) for s in drops.DROPS if (why := s(messages))), (None, None))
        if not step and benchmarks and (question := benchmarks.found_in(messages)):
            step, reason = "contamination", f"holds the benchmark question {question[:40]!r}"
        row = dict(messages=messages, edits=changes, step=step, reason=reason)
        done.append(row | duplicates.prepared([] if step else messages))
    return {name: [row[name] for row in done] for name in done[0]}


def _mark_duplicates(cleaned: Dataset, step: list[str | None], reason: list[str | None]) -> None:
    """Write into `step` and `reason` which conversations are equal, or nearly equal, to one that stays."""
    ids = cleaned["id"][:]
    near = ("near_duplicate", duplicates.near, "nearly the same as")
    for name, find, why in (("duplicate", duplicates.exact, "the same as"), near):
        left = [i for i, dropped in enumerate(step) if dropped is None]
        for copy, other in find(cleaned.select(left)).items():
            step[left[copy]], reason[left[copy]] = name, f"{why} {ids[left[other]]}"
