"""Conversations -> clean conversations, by named steps; nothing is lost in silence (paper, section 2)."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from tqdm.auto import tqdm

from aurora_lib.data import arrow_files, contamination, drops, duplicates, edits, parts
from aurora_lib.data.sources import FEATURES, DataError


def descriptions() -> dict[str, str]:
    """What each step does, in order: the first paragraph of its docstring."""
    steps = [*edits.TEXT_EDITS, *edits.EDITS, *edits.OPTIONAL, *drops.DROPS]
    return {step.__name__: " ".join(step.__doc__.split("\n\n")[0].split()) for step in steps} | {
        "contamination": "Drop what holds a question of the benchmarks given, if any.",
        "duplicate": "Of equal conversations the first stays.",
        "near_duplicate": "Of nearly equal conversations the one with the longer answers stays.",
    }


STEPS = list(descriptions())


@dataclass
class CleaningResult:
    """What came of cleaning: each conversation is in `kept` or, as read, in `dropped` (with `step` and `reason`)."""

    kept: Dataset
    dropped: Dataset
    edits: (
        Dataset  # every change: `id`, `source`, `step`, `turn`, `before`, `after` (40 characters around it)
    )
    counts: Counter = field(repr=False)  # {(step, action, source): conversations}

    @property
    def report(self) -> pandas.DataFrame:
        """Conversations by step (rows, in order) and source (columns, and `total`)."""
        frame = pandas.Series(self.counts).unstack(fill_value=0)
        order = [("read", "read"), *((s, a) for s in STEPS for a in ("edited", "dropped")), ("kept", "kept")]
        frame = frame.reindex([key for key in order if key in frame.index])
        frame.index.names = ["step", "action"]
        return frame.assign(total=frame.sum(axis=1)).astype(int)

    def table1(self) -> pandas.DataFrame:
        """Single- and multi-round conversations per source, as in the paper's Table 1."""
        rounds = Counter()
        for source, messages in zip(self.kept["source"], self.kept["messages"], strict=True):
            rounds[source, sum(message["role"] == "user" for message in messages) > 1] += 1
        names = dict.fromkeys(self.kept["source"])
        rows = {name: {"single": rounds[name, False], "multiple": rounds[name, True]} for name in names}
        frame = pandas.DataFrame.from_dict(rows, orient="index", columns=["single", "multiple"])
        frame.loc["total"] = frame.sum()
        return frame.assign(total=frame.sum(axis=1)).astype(int)


def clean(
    dataset: Dataset,
    *,
    options: tuple[str, ...] = (),
    benchmarks: contamination.Questions | None = None,
    processes: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
) -> CleaningResult:
    """Clean conversations of any number of sources: edit, drop with a reason, drop equal and nearly equal ones.

    `dataset` is what `sources.load` gives (`datasets.concatenate_datasets` joins several). `options` names optional
    edits (`to_simplified`, `mask_personal`); conversations that hold a question of `benchmarks` are dropped too.
    `processes` (all cores from 20,000 conversations on) changes the time and nothing else; `seed` that of MinHash.
    With a `folder`, finished parts are kept there, and cleaning the same again, after an interruption say, takes them up.

    Cleaning what was kept changes nothing. Raises DataError for a dataset that is empty or lacks one of its columns,
    ids that are not unique, and an unknown option.
    """
    _check(dataset, options)
    settings = (tuple(options), benchmarks, seed)
    processes = processes or (os.cpu_count() if len(dataset) >= 20_000 else 1)
    folder = Path(folder) if folder else arrow_files.room() / "parts"
    done, light = [], []
    with tqdm(total=len(dataset), desc="cleaning", unit=" rows", disable=len(dataset) < 20_000) as bar:
        for path in parts.cleaned(dataset, settings, processes, folder):
            done.append(path)
            light.append(arrow_files.read(path, list(range(parts.LIGHT))))
            bar.update(len(light[-1]))
    light = pa.concat_tables(light)
    step, reason = light["step"].to_pylist(), light["reason"].to_pylist()
    _drop_duplicates(light, done, dataset["id"], step, reason)
    return _result(dataset, done, step, reason)


def _check(dataset: Dataset, options: tuple[str, ...]) -> None:
    if missing := set(FEATURES) - set(dataset.column_names):
        raise DataError(
            f"Nothing to clean: no column {', '.join(sorted(missing))}. Use what sources.load gives."
        )
    if len(dataset) == 0:
        raise DataError(
            "Nothing to clean: the dataset has no conversation. See sources.rejected, and AURORA_DATA."
        )
    if unknown := set(options) - {step.__name__ for step in edits.OPTIONAL}:
        names = ", ".join(step.__name__ for step in edits.OPTIONAL)
        raise DataError(f"There is no optional step {', '.join(sorted(unknown))}. There are: {names}.")
    if len(set(dataset["id"])) < len(dataset):
        twice = next(name for name, n in Counter(dataset["id"]).items() if n > 1)
        raise DataError(
            f"The id {twice!r} is there more than once. Load each file once, or give its rows ids of their own."
        )


def _drop_duplicates(light: pa.Table, done: list[Path], ids: list[str], step: list, reason: list) -> None:
    """Mark in `step` and `reason` what is equal, or nearly equal, to a conversation that stays."""
    ids, marks = list(ids), light["fingerprint"].to_pylist()
    clean = [i for i, why in enumerate(step) if not why]
    for copy, first in duplicates.exact([marks[i] for i in clean]).items():
        step[clean[copy]], reason[clean[copy]] = "duplicate", f"the same as {ids[clean[first]]}"
    unique = [i for i in clean if not step[i]]
    chosen = light.select(["bands", "size"]).take(pa.array(unique, pa.int64()))
    bands = chosen["bands"].combine_chunks().flatten().to_numpy().reshape(-1, duplicates.BANDS)
    texts = [arrow_files.read(path)["messages"] for path in done]

    def messages(i: int) -> edits.Messages:
        part, row = divmod(unique[i], parts.PART)
        return texts[part][row].as_py()

    for copy, other in duplicates.near(bands, chosen["size"].to_numpy(), messages).items():
        why = f"nearly the same as {ids[unique[other]]}"
        step[unique[copy]], reason[unique[copy]] = "near_duplicate", why


def _result(dataset: Dataset, done: list[Path], step: list, reason: list) -> CleaningResult:
    """Part by part: what is kept and what is dropped goes to files of its own, so that neither has to fit in memory.

    The parts are walked twice, once for each file; what there is to count is counted on the way.
    """
    counts, changes, rows = Counter(), [], dataset.with_format("arrow")
    dropped_schema = FEATURES.arrow_schema.append(pa.field("step", pa.string())).append(
        pa.field("reason", pa.string())
    )

    def kept() -> Iterator[pa.Table]:
        for start, part, stays in sliced():
            found = rows[start : start + parts.PART].select(list(FEATURES))
            found = found.set_column(found.schema.get_field_index("messages"), "messages", part["messages"])
            found = found.filter(stays).cast(FEATURES.arrow_schema)
            counts.update(("kept", "kept", source) for source in found["source"].to_pylist())
            yield found

    def dropped() -> Iterator[pa.Table]:
        for start, part, stays in sliced():
            read = rows[start : start + parts.PART].select(list(FEATURES))
            counts.update(("read", "read", source) for source in read["source"].to_pylist())
            changes.append(_changes(read, part["edits"].combine_chunks()))
            for name, values in (("step", step), ("reason", reason)):
                read = read.append_column(name, pa.array(values[start : start + parts.PART], pa.string()))
            read = read.filter(pc.invert(stays))
            pairs = zip(read["step"].to_pylist(), read["source"].to_pylist(), strict=True)
            counts.update((name, "dropped", source) for name, source in pairs)
            yield read.cast(dropped_schema)

    def sliced() -> Iterator[tuple[int, pa.Table, pa.Array]]:
        for start, path in zip(range(0, len(dataset), parts.PART), done, strict=True):
            yield (
                start,
                arrow_files.read(path),
                pa.array([why is None for why in step[start : start + parts.PART]]),
            )

    kept, dropped = (
        Dataset.from_file(str(arrow_files.write(tables, schema)))
        for tables, schema in ((kept(), FEATURES.arrow_schema), (dropped(), dropped_schema))
    )
    assert len(kept) + len(dropped) == len(dataset)
    changes = pa.concat_tables(changes)
    edited = changes.group_by(["id", "step", "source"]).aggregate([]).to_pylist()
    counts.update((row["step"], "edited", row["source"]) for row in edited)
    return CleaningResult(kept, dropped, Dataset(changes), counts)


def _changes(rows: pa.Table, lists: pa.ListArray) -> pa.Table:
    """The edits of all conversations, each with the id and source of its own."""
    owner = pc.list_parent_indices(lists)
    columns = dict(zip(parts.EDIT, lists.flatten().flatten(), strict=True))
    return pa.table({"id": rows["id"].take(owner), "source": rows["source"].take(owner)} | columns)
