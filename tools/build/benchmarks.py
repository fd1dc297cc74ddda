"""Write the bundled benchmark questions below data/benchmarks: `python -m tools.build.benchmarks`.

Every question is our own, made from the facts of `world.py`; only the file layouts are those of the released
C-Eval, CMMLU and MMLU archives, so that the evaluator reads both without knowing which it has. Choices are
whole answer sentences: the tiny model never learnt to answer with one word, and cloze scoring asks how likely
a choice is as an answer. Deterministic: the same bytes every time.
"""

import csv
import json
import random
import shutil
from pathlib import Path

from tools.build import world
from tools.build.data import write_checksums

OUT = Path(__file__).resolve().parents[2] / "data" / "benchmarks"
LETTERS = "ABCD"
SHOTS = 5
SCORED = 8  # questions per subject in the scored split: all held-out facts, then others up to this many
SPARE = 3  # questions per subject in the split that is not scored (C-Eval test, MMLU val)

# Released layouts; `language` is the index into a fact's (English, Chinese) pairs. MMLU files have no header.
LAYOUTS = {
    "ceval": dict(
        file="{subject}_{split}.csv",
        header={
            "dev": ["id", "question", *LETTERS, "answer", "explanation"],
            "val": ["id", "question", *LETTERS, "answer"],
            "test": ["id", "question", *LETTERS],
        },
        newline="\r\n",
        language=1,
        scored="val",
        spare="test",
    ),
    "cmmlu": dict(
        file="{subject}.csv",
        header={split: ["", "Question", *LETTERS, "Answer"] for split in ("dev", "test")},
        newline="\n",
        language=1,
        scored="test",
        spare=None,
    ),
    "mmlu": dict(
        file="{subject}_{split}.csv",
        header=dict.fromkeys(("dev", "val", "test")),
        newline="\n",
        language=0,
        scored="test",
        spare="val",
    ),
}


def splits(facts: list[world.Fact], rng: random.Random, layout: dict) -> dict[str, list[world.Fact]]:
    """The facts of one subject by split: dev never holds a held-out fact, and no fact is in two splits."""
    held_out = [fact for fact in facts if fact.held_out]
    known = [fact for fact in facts if not fact.held_out]
    rng.shuffle(known)
    dev, rest = known[:SHOTS], known[SHOTS:]
    extra = max(0, SCORED - len(held_out))
    found = {"dev": dev, layout["scored"]: held_out + rest[:extra]}
    if layout["spare"]:
        found[layout["spare"]] = rest[extra : extra + SPARE]
    return found


def sentence(fact: world.Fact, answer: str, language: int) -> str:
    """The fact said with another answer, with its article: only the answer tells the choices apart."""
    spec = world.RELATIONS[fact.relation]
    pair = spec["facts"].replace("\n", "").split(";")[int(fact.id.rsplit("-", 1)[1])]
    subject = pair.split("=")[0].strip().split("/")[language]
    return world.sentence(spec["say"][language].format(s=subject, a=answer))


def question(fact: world.Fact, answers: list[str], letter: str, language: int, rng: random.Random) -> dict:
    """One question with its answer at `letter` and three other answers of the same relation around it."""
    right = fact.answer[language]
    choices = rng.sample([answer for answer in answers if answer != right], 3)
    choices.insert(LETTERS.index(letter), right)
    asked = {"question": rng.choice(fact.ask[language]), "answer": letter, "explanation": fact.say[language]}
    return asked | {
        key: sentence(fact, choice, language) for key, choice in zip(LETTERS, choices, strict=True)
    }


def build(task: str, out: Path) -> dict[str, int]:
    """Write one benchmark below `out` and return its number of questions by split."""
    layout, language = LAYOUTS[task], LAYOUTS[task]["language"]
    rng = random.Random(task)
    by_split = {split: {} for split in layout["header"]}
    for relation in world.RELATIONS:
        facts = [fact for fact in world.facts() if fact.relation == relation]
        for split, chosen in splits(facts, rng, layout).items():
            by_split[split][relation] = chosen
    shutil.rmtree(out, ignore_errors=True)
    for split, subjects in by_split.items():
        total = sum(map(len, subjects.values()))
        letters = list(LETTERS * (total // 4 + 1))[:total]
        rng.shuffle(letters)
        (out / split).mkdir(parents=True)
        for subject, chosen in subjects.items():
            answers = sorted({fact.answer[language] for fact in world.facts() if fact.relation == subject})
            rows = [question(fact, answers, letters.pop(), language, rng) for fact in chosen]
            write(out / split / layout["file"].format(subject=subject, split=split), rows, layout, split)
    mapping = {
        relation: {"name": spec["name"][language], "category": spec["category"]}
        for relation, spec in world.RELATIONS.items()
    }
    (out / "mapping.json").write_text(
        json.dumps(mapping, ensure_ascii=False, indent=2), encoding="utf-8", newline="\n"
    )
    return {split: sum(map(len, subjects.values())) for split, subjects in by_split.items()}


def write(path: Path, rows: list[dict], layout: dict, split: str) -> None:
    """One subject's CSV file in the released layout; the id column counts from 0."""
    header = layout["header"][split]
    columns = ["id", "question", *LETTERS, "answer", "explanation"][: len(header)] if header else None
    columns = columns or ["question", *LETTERS, "answer"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=layout["newline"])
        if header:
            writer.writerow(header)
        for i, row in enumerate(rows):
            row = {"id": i} | row
            writer.writerow([row[column] for column in columns])


def main() -> None:
    for task in LAYOUTS:
        counts = build(task, OUT / task)
        print(f"{task}: " + ", ".join(f"{split} {n}" for split, n in counts.items()))
    write_checksums()


if __name__ == "__main__":
    main()
