"""Conversations -> clean conversations, by named steps; nothing is lost in silence (paper, section 2)."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm

from aurora_lib import contamination, drops, duplicates, edits, parts, splitting, tokenizer
from aurora_lib.scale import Scale
from aurora_lib.sources import FEATURES, SOURCES, DataError, load, table

STEPS = [step.__name__ for step in (*edits.TEXT_EDITS, *edits.EDITS, *edits.OPTIONAL, *drops.DROPS)]
STEPS += ["contamination", "duplicate", "near_duplicate"]


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
    done = []
    with tqdm(total=len(dataset), desc="cleaning", unit=" rows", disable=len(dataset) < 20_000) as bar:
        for part in parts.cleaned(dataset, settings, processes, folder and Path(folder)):
            done.append(part)
            bar.update(len(part))
    done = pa.concat_tables(done)
    step, reason = done["step"].to_pylist(), done["reason"].to_pylist()
    _drop_duplicates(done, dataset["id"], step, reason)
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


def _drop_duplicates(done: pa.Table, ids: list[str], step: list, reason: list) -> None:
    """Mark in `step` and `reason` what is equal, or nearly equal, to a conversation that stays."""
    ids, marks, messages = list(ids), done["fingerprint"].to_pylist(), done["messages"]
    clean = [i for i, why in enumerate(step) if not why]
    for copy, first in duplicates.exact([marks[i] for i in clean]).items():
        step[clean[copy]], reason[clean[copy]] = "duplicate", f"the same as {ids[clean[first]]}"
    unique = [i for i in clean if not step[i]]
    chosen = done.select(["bands", "size"]).take(pa.array(unique, pa.int64()))
    bands = chosen["bands"].combine_chunks().flatten().to_numpy().reshape(-1, duplicates.BANDS)
    found = duplicates.near(bands, chosen["size"].to_numpy(), lambda i: messages[unique[i]].as_py())
    for copy, other in found.items():
        step[unique[copy]], reason[unique[copy]] = (
            "near_duplicate",
            f"nearly the same as {ids[unique[other]]}",
        )


def _result(dataset: Dataset, done: pa.Table, step: list, reason: list) -> CleaningResult:
    stays = pa.array([why is None for why in step])
    rows = dataset.with_format("arrow")[:]
    kept = rows.set_column(rows.schema.get_field_index("messages"), "messages", done["messages"]).filter(
        stays
    )
    dropped = rows.append_column("step", pa.array(step, pa.string())).append_column(
        "reason", pa.array(reason, pa.string())
    )
    dropped = dropped.filter(pc.invert(stays))
    assert len(kept) + len(dropped) == len(dataset)
    changes = _changes(rows, done["edits"].combine_chunks())
    counts = Counter(("read", "read", source) for source in rows["source"].to_pylist())
    counts.update(("kept", "kept", source) for source in kept["source"].to_pylist())
    pairs = zip(dropped["step"].to_pylist(), dropped["source"].to_pylist(), strict=True)
    counts.update((name, "dropped", source) for name, source in pairs)
    edited = (
        changes.select(["id", "step", "source"]).group_by(["id", "step", "source"]).aggregate([]).to_pylist()
    )
    counts.update((row["step"], "edited", row["source"]) for row in edited)
    order = list(FEATURES)
    return CleaningResult(
        Dataset(kept.select(order).cast(FEATURES.arrow_schema)),
        Dataset(dropped.select([*order, "step", "reason"]).replace_schema_metadata()),
        Dataset(changes),
        counts,
    )


def _changes(rows: pa.Table, lists: pa.ListArray) -> pa.Table:
    """The edits of all conversations, each with the id and source of its own."""
    owner = pc.list_parent_indices(lists)
    columns = dict(zip(parts.EDIT, lists.flatten().flatten(), strict=True))
    return pa.table({"id": rows["id"].take(owner), "source": rows["source"].take(owner)} | columns)


def conversations(scale: Scale) -> Dataset:
    """The clean conversations to train on: those notebook 02 saved, else cleaned here and now from the same sources.

    Prints in one line which. What was saved from other data than `scale.data` is not used.
    """
    path = scale.runs / "conversations.jsonl"
    if path.is_file():
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(head) == _origin(scale):
            print(f"conversations: {len(lines):,}, cleaned by notebook 02")
            return table([json.loads(line) for line in lines])
    read = concatenate_datasets([load(name, scale.data or "hub") for name in SOURCES])
    kept = splitting.split(
        clean(read, folder=scale.runs / "cleaning").kept,
        tokenizer.load(scale.base_model, revision=scale.revision),
        scale.length,
    )
    print(f"conversations: {len(kept):,}, cleaned just now (notebook 02 has not run on this data here)")
    return kept


def save(dataset: Dataset, scale: Scale) -> Path:
    """Write `dataset` as JSON Lines for the notebooks that follow; the first line says which data it came from."""
    path = scale.runs / "conversations.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file:
        for row in [_origin(scale), *dataset]:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    unfinished.replace(path)  # whole or not at all
    return path


def _origin(scale: Scale) -> dict:
    return {"data": str(scale.data or "hub")}
