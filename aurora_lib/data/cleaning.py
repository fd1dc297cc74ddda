"""Conversations -> clean conversations, by named steps; nothing is lost in silence (paper, section 2).

Edits and drops look at one conversation at a time, on several cores. Then duplicates are found in what is
left.
"""

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from aurora_lib.data import contamination, drops, duplicates, edits, sources
from aurora_lib.data.sources import FEATURES, DataError

SHARD = 32_768  # conversations cleaned at a time: what an interruption loses at most
MANY = 20_000  # conversations from which on more than one process, and a progress bar, are worth it
EDIT = {"step": Value("string"), "turn": Value("int64"), "before": Value("string"), "after": Value("string")}
CLEANED = Features(FEATURES | {"edits": List(EDIT), "step": Value("string"), "reason": Value("string")})
CHANGES = Features({"id": Value("string"), "source": Value("string")} | EDIT)


def steps() -> dict[str, str]:
    """What each step does, in order: the first paragraph of its docstring."""
    functions = [*edits.TEXT_EDITS, *edits.EDITS, *edits.OPTIONAL, *drops.DROPS]
    return {step.__name__: " ".join(step.__doc__.split("\n\n")[0].split()) for step in functions} | {
        "contamination": "Drop what holds a question of the benchmarks given, if any.",
        "duplicate": "Of equal conversations the first stays.",
        "near_duplicate": "Of nearly equal conversations the one with the longer answers stays.",
    }


@dataclass
class CleaningResult:
    """What came of cleaning: each conversation is in `kept` or, as read, in `dropped` (with `step`,
    `reason`).

    `edits` holds every change: `id`, `source`, `step`, `turn`, `before`, `after` (40 characters around it).
    """

    kept: Dataset
    dropped: Dataset
    edits: Dataset

    @property
    def report(self) -> pandas.DataFrame:
        """Conversations by step (rows, in order) and source (columns, and `total`)."""
        stay, go = self.kept["source"][:], self.dropped["source"][:]
        counts = Counter(("read", "read", source) for source in stay + go)
        counts.update(("kept", "kept", source) for source in stay)
        steps_taken = zip(self.dropped["step"], go, strict=True)
        counts.update((step, "dropped", source) for step, source in steps_taken)
        edited = set(zip(*(self.edits[name][:] for name in ("id", "step", "source")), strict=True))
        counts.update((step, "edited", source) for _, step, source in edited)
        frame = pandas.Series(counts).unstack(fill_value=0)
        order = [name for name in ("read", *steps(), "kept") if name in frame.index]
        frame = frame.reindex(order, level=0)
        frame.index.names = ["step", "action"]
        return frame.assign(total=frame.sum(axis=1)).astype(int)

    def table1(self) -> pandas.DataFrame:
        """Single- and multi-round conversations per source, as in the paper's Table 1."""
        rounds = Counter()
        for source, messages in zip(self.kept["source"], self.kept["messages"], strict=True):
            rounds[source, sum(message["role"] == "user" for message in messages) > 1] += 1
        names = dict.fromkeys(source for source, _ in rounds)
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
) -> CleaningResult:
    """Clean conversations of any sources: edit, drop with a reason, drop equal and nearly equal ones.

    `dataset` is what `sources.load` gives (`datasets.concatenate_datasets` joins several). `options` names
    optional edits (`to_simplified`); conversations that hold a question of `benchmarks` are dropped too.
    `processes` (all cores from MANY conversations on) changes the time and nothing else. With a `folder`,
    finished shards are kept there, and cleaning the same again, after an interruption say, takes them up.

    Cleaning what was kept changes nothing. Raises DataError for a dataset that is empty or lacks one of its
    columns, ids that are not unique, and an unknown option.
    """
    _check(dataset, options)
    dataset = dataset.select_columns(list(FEATURES))
    processes = processes or (os.cpu_count() if len(dataset) >= MANY else 1)
    folder = Path(folder or tempfile.mkdtemp(dir=sources.room()))
    with sources.no_bars():
        cleaned = _one_by_one(dataset, dict(options=tuple(options), benchmarks=benchmarks), processes, folder)
        step, reason = cleaned["step"][:], cleaned["reason"][:]
        _mark_duplicates(cleaned, step, reason)
        stays = [i for i, name in enumerate(step) if name is None]
        goes = [i for i, name in enumerate(step) if name is not None]
        dropped = dataset.select(goes)
        for name, values in (("step", step), ("reason", reason)):
            dropped = dropped.add_column(name, [values[i] for i in goes], feature=Value("string"))
        kept = cleaned.select_columns(list(FEATURES)).select(stays)
        assert len(kept) + len(dropped) == len(dataset)
        return CleaningResult(kept, dropped, _changes(cleaned))


def _check(dataset: Dataset, options: tuple[str, ...]) -> None:
    if missing := set(FEATURES) - set(dataset.column_names):
        missing = ", ".join(sorted(missing))
        raise DataError(f"Nothing to clean: no column {missing}. Use what sources.load gives.")
    if len(dataset) == 0:
        raise DataError(
            "Nothing to clean: the dataset has no conversation. See sources.rejected, and AURORA_DATA."
        )
    if unknown := set(options) - {step.__name__ for step in edits.OPTIONAL}:
        names = ", ".join(step.__name__ for step in edits.OPTIONAL)
        raise DataError(f"There is no optional step {', '.join(sorted(unknown))}. There are: {names}.")
    name, times = Counter(dataset["id"][:]).most_common(1)[0]
    if times > 1:
        remedy = "Load each file once, or give its rows ids of their own."
        raise DataError(f"The id {name!r} is there more than once. {remedy}")


def _one_by_one(dataset: Dataset, settings: dict, processes: int, folder: Path) -> Dataset:
    """The steps that need one conversation only: columns CLEANED, all rows in their order.

    A shard's file is named after its rows, the settings and the steps' code: what is there is not made again.
    """
    shards = []
    with tqdm(total=len(dataset), desc="cleaning", unit=" rows", disable=len(dataset) < MANY) as bar:
        for start in range(0, len(dataset), SHARD):
            shard = dataset.select(range(start, min(start + SHARD, len(dataset))))
            fingerprint = Hasher.hash((shard._fingerprint, settings, code()))
            shards.append(
                shard.map(
                    clean_batch,
                    batched=True,
                    fn_kwargs=settings,
                    features=CLEANED,
                    num_proc=processes if processes > 1 else None,
                    new_fingerprint=fingerprint,
                    cache_file_name=str(folder / f"{fingerprint}.arrow"),
                )
            )
            bar.update(len(shard))
    return concatenate_datasets(shards)


@cache
def code() -> str:
    """This room's code and patterns: a shard that was cleaned by other code is not the same shard."""
    files = sorted(file for file in Path(__file__).parent.iterdir() if file.suffix in (".py", ".toml"))
    return "".join(file.read_text(encoding="utf-8") for file in files)


def clean_batch(rows: dict, options: tuple[str, ...] = (), benchmarks=None) -> dict:
    """`messages` after every edit, `edits`, and `step` and `reason` (None where a conversation stays) of
    `rows`.

    It runs in forked processes, so nothing in it may use threads (rensa's and torch's do not survive a fork).
    """
    found = dict(messages=[], edits=[], step=[], reason=[])
    for messages in rows["messages"]:
        messages, changes = edits.edit(messages, options)
        step, reason = next(((s.__name__, why) for s in drops.DROPS if (why := s(messages))), (None, None))
        if not step and benchmarks and (question := benchmarks.found_in(messages)):
            step, reason = "contamination", f"holds the benchmark question {question[:40]!r}"
        for name, value in zip(found, (messages, changes, step, reason), strict=True):
            found[name].append(value)
    return found


def _mark_duplicates(cleaned: Dataset, step: list[str | None], reason: list[str | None]) -> None:
    """Write into `step` and `reason` which conversations are equal, or nearly equal, to one that stays."""
    ids = cleaned["id"][:]
    kinds = (
        ("duplicate", duplicates.exact, "the same as"),
        ("near_duplicate", duplicates.near, "nearly the same as"),
    )
    for name, find, why in kinds:
        left = [i for i, dropped in enumerate(step) if dropped is None]
        for copy, other in find(cleaned.select(left)).items():
            step[left[copy]], reason[left[copy]] = name, f"{why} {ids[left[other]]}"


def _changes(cleaned: Dataset) -> Dataset:
    """The edits of all conversations, each with the id and source of its own."""
    names = ["id", "source", "edits"]
    changes = (
        dict(id=row, source=source) | change
        for part in cleaned.select_columns(names).iter(1_000)
        for row, source, edits in zip(*(part[name] for name in names), strict=True)
        for change in edits
    )
    return sources.on_disk(changes, CHANGES)
