"""The questions: released files of C-Eval, CMMLU and MMLU, and every unusable row by name.

`load_subjects` says which subjects a benchmark has, `load_questions` reads one of them. The files are in a
local folder, or come from the Hugging Face hub and are then laid out as the release is.
"""

import csv
import json
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
from huggingface_hub import cached_assets_path, snapshot_download

from aurora_lib.course import DATA, asking_hub

LETTERS = "ABCD"
# Per task: language of plain prompts, split that is scored (C-Eval's test: no answers until 2025), file name.
TASKS = {
    "ceval": dict(language="zh", split="val", file="{subject}_{split}.csv"),
    "cmmlu": dict(language="zh", split="test", file="{subject}.csv"),
    "mmlu": dict(language="en", split="test", file="{subject}_{split}.csv"),
}
REPOSITORIES = {"ceval": "ceval/ceval-exam", "cmmlu": "haonan-li/cmmlu", "mmlu": "cais/mmlu"}
HUB_SPLITS = {"dev": "dev", "val": "val", "validation": "val", "test": "test"}  # theirs -> the release's
COLUMNS = ["Question", *LETTERS, "Answer"]  # needed everywhere, and all there is in MMLU


class EvalError(RuntimeError):
    """An evaluation that cannot be run as asked; the message says what to do."""


@dataclass(frozen=True)
class Question:
    """One question; `index` counts the data rows of its file from 0, `answer` is a letter."""

    subject: str
    index: int
    text: str
    choices: tuple[str, ...]
    answer: str


def folder(task: str, root=None) -> Path:
    """The folder with the task's dev, val and test: below `root`, `root` itself, or a download for "hub".

    Raises EvalError for an unknown task, and where there is no such folder.
    """
    if task not in TASKS:
        raise EvalError(f"There is no task {task!r}. Choose one of {', '.join(TASKS)}.")
    if str(root) == "hub":
        try:
            return download(task)
        except OSError as error:
            problem = f"{error}."
    else:
        root = Path(root or DATA / "benchmarks").expanduser()
        candidates = [root / task] if root.name in set(TASKS) - {task} else [root / task, root]
        for path in candidates:
            if (path / "mapping.json").is_file() or (path / "dev").is_dir():
                return path
        lacks = "is a file" if root.is_file() else f"has no {task}/mapping.json and no {task}/dev"
        problem = f"{root} {lacks}."
    raise EvalError(
        f"{problem} Set AURORA_BENCHMARKS (or root=...) to a local folder with the unpacked release: "
        f"one CSV file per subject in {task}/dev and {task}/{TASKS[task]['split']}, as LLaMA-Factory has it."
    )


def file_name(task: str, subject: str, split: str) -> str:
    """The file of a subject's split, below the task's folder."""
    return f"{split}/{TASKS[task]['file'].format(subject=subject, split=split)}"


def load_subjects(task: str, root=None) -> dict[str, dict[str, str]]:
    """The task's subjects: subject -> {name, category}, by its mapping.json or else as released.

    Raises EvalError for an unknown task, a missing folder, and a mapping.json that is none.
    """
    path = folder(task, root) / "mapping.json"
    if not path.is_file():
        return released(task)
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        return {subject: {key: of[key] for key in ("name", "category")} for subject, of in mapping.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{path} should map each subject to a name and a category ({error!r}); copy it anew."
        raise EvalError(problem) from None


@cache
def released(task: str) -> dict[str, dict[str, str]]:
    """The subjects as released, in alphabetical order; for copies without a mapping.json.

    Sources: subject_mapping.json of hkust-nlp/ceval, src/categories.py of haonan-li/CMMLU, categories.py of
    hendrycks/test. CMMLU's "China specific" overlaps these and is left out, as in LLaMA-Factory.
    """
    table = pd.read_csv(Path(__file__).with_name("subjects.tsv"), sep="\t", keep_default_na=False)
    rows = table[table.task == task].sort_values("subject").set_index("subject")
    return rows[["name", "category"]].to_dict(orient="index")


def load_questions(task: str, subject: str, split: str, root=None) -> tuple[list[Question], list[dict]]:
    """One subject's usable questions of one split, and its skipped rows (file, line, subject, index, reason).

    C-Eval and CMMLU files have a header and ids, MMLU files have neither. Raises EvalError for an unknown
    task, a file that is missing or no CSV, and one without answers, as C-Eval's test was until July 2025.
    """
    path = folder(task, root) / (file := file_name(task, subject, split))
    if not path.is_file():
        remedy = f"unpack {task} again, or leave {subject!r} out of subjects=[...]"
        raise EvalError(f"{path} is missing; {remedy}.")
    where = dict(file=file, line=None, subject=subject, index=None)
    questions, skipped, ids = [], [], {}
    # surrogateescape keeps undecodable bytes visible, so that one broken row does not take its file with it
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines)
        try:
            first = COLUMNS if task == "mmlu" else next(reader, [])
            header, last = [name.strip().capitalize() or "Id" for name in first], reader.line_num
            if header and "Answer" not in header:
                raise EvalError(f"{path} has no answers; score the val split, or take a newer release.")
            for row in reader:
                line, last, index = last + 1, reader.line_num, len(questions) + len(skipped)
                if not row:
                    continue
                record = dict(zip(header, row, strict=False))
                if reason := _defect(header, row, record, ids):
                    if last > line:  # an opening quote without an end swallows the rows below it
                        reason += f"; the row goes on to line {last}: is a quote left open?"
                    skipped.append(where | dict(line=line, index=index, reason=reason))
                else:
                    text, *choices, answer = (record[name] for name in COLUMNS)  # as they stand, spaces too
                    questions.append(Question(subject, index, text, tuple(choices), answer.strip()))
                if "Id" in record:
                    ids.setdefault(record["Id"], line)
        except csv.Error as error:
            raise EvalError(f"{path}, line {reader.line_num}: {error}; repair or replace the file.") from None
    if not questions and not skipped:
        skipped.append(where | dict(reason="the file has no rows"))
    return questions, skipped


def _defect(header: list[str], row: list[str], record: dict[str, str], ids: dict[str, int]) -> str | None:
    """Why a row cannot be scored, or None; `ids` holds the line of every id seen before."""
    if absent := [name for name in COLUMNS if name not in record]:
        return f"missing column {', '.join(absent)}"
    if len(row) > len(header):
        return f"{len(row)} cells for {len(header)} columns"
    if re.search("[\udc80-\udcff]", "".join(row)):
        return "broken encoding (not UTF-8)"
    if empty := [name for name in COLUMNS if not record[name].strip()]:
        return f"empty {', '.join(empty)}"
    if record["Answer"].strip() not in tuple(LETTERS):
        return f"answer {record['Answer']!r} is not one of A, B, C, D"
    if "Id" in record and record["Id"] in ids:
        return f"duplicate id {record['Id']!r}, first on line {ids[record['Id']]}"
    return None


@cache
def download(task: str) -> Path:
    """The folder of a downloaded task, in the hub's cache; made once for each commit of its repository.

    Raises EvalError without a network, and OSError, in one sentence, where the repository lacks a subject.
    """
    repository = REPOSITORIES[task]
    wanted = dict(allow_patterns=["*.zip", *(f"*/{split}-*.parquet" for split in HUB_SPLITS)])
    with asking_hub(repository, "AURORA_BENCHMARKS", EvalError):
        source = snapshot_download(repository, repo_type="dataset", ignore_patterns=["all/*"], **wanted)
    made = cached_assets_path("aurora", namespace=task, subfolder=Path(source).name)
    if not (made / "complete").is_file():
        for archive in Path(source).glob("*.zip"):  # the released files themselves
            shutil.unpack_archive(archive, made)
        for file in Path(source).glob("*/*.parquet"):
            subject, split = file.parent.name, HUB_SPLITS.get(file.name.split("-")[0])
            if subject in released(task) and split:
                (made / split).mkdir(parents=True, exist_ok=True)
                table = pd.read_parquet(file)
                if task == "mmlu":  # numbers its answers here, and has no header in the release
                    letter, rows = dict(enumerate(LETTERS)), table.itertuples()
                    table = pd.DataFrame([[r.question, *r.choices, letter.get(r.answer)] for r in rows])
                table.to_csv(made / file_name(task, subject, split), index=False, header=task != "mmlu")
        files = {subject: made / file_name(task, subject, "dev") for subject in released(task)}
        if missing := [subject for subject, path in files.items() if not path.is_file()]:
            raise OSError(f"{repository} as downloaded lacks {len(missing)} subjects, such as {missing[0]}")
        (made / "complete").touch()
    return made
