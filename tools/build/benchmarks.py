"""Write the bundled benchmark questions below data/benchmarks: `python -m tools.build.benchmarks`.

Every question is our own, made from the facts of `world.py` as `exams.py` deals them; the file layouts,
the subjects' names and their categories are those of the released C-Eval, CMMLU and MMLU archives, so
that the evaluator reads both without knowing which it has. Choices are whole answer sentences: cloze
scoring asks how likely a choice is as an answer. `drilled.json` lists the scored questions whose facts
the tiny model was drilled on by letter in pre-training, in other words than these. Deterministic: the
same bytes every time.
"""

import csv
import json
import random
import shutil
from pathlib import Path

from aurora_lib.evaluation.benchmarks import LETTERS, TASKS, file_name, released
from tools.build.data import DATA, write_checksums
from tools.build.exams import SCORED_SPLIT, Exam, choice, exams, options

OUT = DATA / "benchmarks"
# Headers as released; MMLU files have none.
HEADERS = {
    ("ceval", "dev"): ["id", "question", *LETTERS, "answer", "explanation"],
    ("ceval", "val"): ["id", "question", *LETTERS, "answer"],
    ("ceval", "test"): ["id", "question", *LETTERS],
    ("cmmlu", "dev"): ["", "Question", *LETTERS, "Answer"],
    ("cmmlu", "test"): ["", "Question", *LETTERS, "Answer"],
}


def question(exam: Exam, letter: str, draw: random.Random) -> dict:
    """One question with its answer at `letter` and three other answers of the same relation around it."""
    answers = options(exam.fact, exam.side, LETTERS.index(letter), draw)
    choices = {
        key: choice(exam.fact, answer, exam.side) for key, answer in zip(LETTERS, answers, strict=True)
    }
    return dict(question=exam.question, answer=letter, explanation=exam.fact.say[exam.side]) | choices


def build(task: str, out: Path) -> dict[str, int]:
    """Write one benchmark below `out` and return its number of questions by split."""
    draw, counts = random.Random(task), {}
    shutil.rmtree(out, ignore_errors=True)
    places = {}
    for exam in exams():
        if exam.task == task and exam.split:
            places.setdefault((exam.split, exam.subject), []).append(exam)
    for (split, subject), of in sorted(places.items()):
        letters = list(LETTERS * (len(of) // 4 + 1))[: len(of)]
        draw.shuffle(letters)
        path = out / file_name(task, subject, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(
            path,
            [question(exam, letter, draw) for exam, letter in zip(of, letters, strict=True)],
            task,
            split,
        )
        counts[split] = counts.get(split, 0) + len(of)
    subjects = sorted({subject for _, subject in places})
    mapping = {subject: released(task)[subject] for subject in subjects}
    save(out / "mapping.json", mapping)
    return counts


def write(path: Path, rows: list[dict], task: str, split: str) -> None:
    """One subject's CSV file in the released layout; the id column counts from 0."""
    header = HEADERS.get((task, split))
    columns = ["id", "question", *LETTERS, "answer", "explanation"][: len(header)] if header else None
    columns = columns or ["question", *LETTERS, "answer"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n" if task == "ceval" else "\n")
        if header:
            writer.writerow(header)
        writer.writerows([({"id": i} | row)[column] for column in columns] for i, row in enumerate(rows))


def drilled() -> dict[str, dict[str, list[int]]]:
    """By task and subject, the places of the scored questions whose facts were drilled."""
    found, place = {}, {}
    for exam in exams():
        if exam.split == SCORED_SPLIT[exam.task]:
            at = place[exam.task, exam.subject] = place.get((exam.task, exam.subject), -1) + 1
            listed = found.setdefault(exam.task, {}).setdefault(exam.subject, [])
            if exam.drilled:
                listed.append(at)
    return {task: dict(sorted(found[task].items())) for task in TASKS}


def save(path: Path, value, indent: int | None = 1) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    for task in TASKS:
        counts = build(task, OUT / task)
        print(f"{task}: " + ", ".join(f"{split} {n}" for split, n in counts.items()))
    save(OUT / "drilled.json", drilled(), indent=None)
    write_checksums()


if __name__ == "__main__":
    main()
