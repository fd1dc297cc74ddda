"""The released files of C-Eval, CMMLU and MMLU: CSV rows -> questions, and every unusable row by name."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

from aurora_lib.course.scale import DATA
from aurora_lib.evaluation import hub as hub_benchmarks
from aurora_lib.evaluation.subjects import released

LETTERS = "ABCD"
# Per task: language of the prompt, split scored by default, file name. C-Eval's test answers are not public.
TASKS = {
    "ceval": dict(language="zh", split="val", file="{subject}_{split}.csv"),
    "cmmlu": dict(language="zh", split="test", file="{subject}.csv"),
    "mmlu": dict(language="en", split="test", file="{subject}_{split}.csv"),
}
COLUMNS = ["question", "a", "b", "c", "d", "answer"]  # needed everywhere, and all there is in MMLU


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
    """The folder with the task's dev, val and test: below `root`, or `root` itself, or a download for "hub".

    Raises EvalError.
    """
    if task not in TASKS:
        raise EvalError(f"There is no task {task!r}. Choose one of {', '.join(TASKS)}.")
    problem, root = "", root or DATA / "benchmarks"
    if str(root) == "hub":
        try:
            return hub_benchmarks.download(task)
        except OSError as error:
            problem = f"{error}."
    else:
        root = Path(root).expanduser()
        for path in (root / task, root):
            another = path == root and root.name in set(TASKS) - {task}
            if not another and ((path / "mapping.json").is_file() or (path / "dev").is_dir()):
                return path
        problem = f"{root} has no {task}/mapping.json and no {task}/dev."
    raise EvalError(
        f"{problem} Set AURORA_BENCHMARKS (or root=...) to a local folder with the unpacked release: one CSV file per "
        f"subject in {task}/dev and {task}/{TASKS[task]['split']}, as in LLaMA-Factory's evaluation folder."
    )


def load_subjects(task: str, root=None) -> dict[str, dict[str, str]]:
    """The task's subjects: subject -> {name, category}, by its mapping.json or else as released. Raises EvalError."""
    path = folder(task, root) / "mapping.json"
    if not path.is_file():
        return released(task)
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        return {
            subject: {key: entry[key] for key in ("name", "category")} for subject, entry in mapping.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvalError(
            f"{path} should map each subject to a name and a category ({error!r}); copy it anew."
        ) from None


def load_questions(task: str, subject: str, split: str, root=None) -> tuple[list[Question], list[dict]]:
    """One subject's usable questions of one split, and its skipped rows (file, line, subject, index, reason).

    Raises EvalError for an unknown task, a missing file and C-Eval's unlabelled test split. Formats: the
    released archives; C-Eval and CMMLU have a header and ids, MMLU has neither.
    """
    if (task, split) == ("ceval", "test"):
        raise EvalError("C-Eval publishes no answers for its test split; score split='val' instead.")
    path = folder(task, root) / split / TASKS[task]["file"].format(subject=subject, split=split)
    if not path.is_file():
        raise EvalError(
            f"{path} is missing; unpack {task} again, or leave {subject!r} out with subjects=[...]."
        )
    where = dict(file=f"{split}/{path.name}", line=None, subject=subject, index=None)
    questions, skipped, lines = [], [], {}
    # surrogateescape keeps undecodable bytes visible, so that one broken row does not take its file with it
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        try:
            header = (
                COLUMNS if task == "mmlu" else [name.strip().lower() or "id" for name in next(reader, [])]
            )
            index, begin = 0, reader.line_num + 1
            for row in reader:
                line, begin = begin, reader.line_num + 1
                if not row:
                    continue
                record = dict(zip(header, row, strict=False))
                reason = _defect(header, row, record, lines)
                if "id" in record:
                    lines.setdefault(record["id"], line)
                if reason:
                    if begin - line > 1:  # an opening quote without an end swallows the rows below it
                        reason += f"; the row goes on to line {begin - 1}: is a quote left open?"
                    skipped.append(where | dict(line=line, index=index, reason=reason))
                else:
                    text, *choices, answer = (record[name].strip() for name in COLUMNS)
                    questions.append(Question(subject, index, text, tuple(choices), answer))
                index += 1
        except csv.Error as error:
            raise EvalError(f"{path}, line {reader.line_num}: {error}; repair or replace the file.") from None
    if not questions and not skipped:
        skipped.append(where | dict(reason="the file has no rows"))
    return questions, skipped


def _defect(header: list[str], row: list[str], record: dict, lines: dict) -> str | None:
    """Why a row cannot be scored, or None; `lines` holds the line of every id seen before."""
    absent = [_name(column) for column in COLUMNS if column not in record]
    if absent:
        return f"missing column {', '.join(absent)}"
    if len(row) > len(header):
        return f"{len(row)} cells for {len(header)} columns"
    if any(re.search("[\udc80-\udcff]", cell) for cell in row):
        return "broken encoding (not UTF-8)"
    empty = [_name(column) for column in COLUMNS if not record[column].strip()]
    if empty:
        return f"empty {', '.join(empty)}"
    if record["answer"].strip() not in tuple(LETTERS):
        return f"answer {record['answer']!r} is not one of A, B, C, D"
    if "id" in record and record["id"] in lines:
        return f"duplicate id {record['id']!r}, first on line {lines[record['id']]}"
    return None


def _name(column: str) -> str:
    return column.upper() if len(column) == 1 else column
