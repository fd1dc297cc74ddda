"""Which fact is asked in which benchmark, and which facts the tiny model is drilled on by letter.

Every fact belongs to one benchmark at most, so the three share no question. Some facts in every category
are, on purpose, never asked by letter in pre-training: the model knows them, and fails them by letter.
The shares differ by category. The questions of the benchmarks are worded in forms that the drill does
not use for that fact.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache

from aurora_lib.evaluation import fewshot
from aurora_lib.evaluation.benchmarks import TASKS, released
from tools.build import world
from tools.build.world import Fact

DRILLED = {"STEM": 0.95, "Social Sciences": 0.8, "Other": 0.6, "Humanities": 0.4}  # of the scored facts
SHOTS, SPARE, SCORED = (
    5,
    3,
    16,
)  # questions per subject: examples, the unscored split, the most that are scored
UNSCORED = {"mmlu": "val", "ceval": "test", "cmmlu": None}
SCORED_SPLIT = {task: about["split"] for task, about in TASKS.items()}
SIDE = {task: world.LANGUAGES.index(about["language"]) for task, about in TASKS.items()}


@dataclass(frozen=True)
class Exam:
    """Where a fact is asked: `form` is the wording kept for the benchmark; `drilled`: ever drilled."""

    fact: Fact
    task: str
    subject: str
    category: str
    split: str
    form: int
    drilled: bool

    @property
    def side(self) -> int:
        return SIDE[self.task]

    @property
    def question(self) -> str:
        return self.fact.ask[self.side][self.form]

    @property
    def drills(self) -> list[str]:
        """The wordings that the drill may use."""
        return [text for i, text in enumerate(self.fact.ask[self.side]) if i != self.form]


@cache
def exams() -> tuple[Exam, ...]:
    """All exams in a fixed order. Subjects get about equally many facts of the relations they share."""
    relations = sorted(world.relations().values(), key=lambda relation: len(relation.subjects))
    dealt, load = defaultdict(list), Counter()
    for relation in relations:
        of = [fact for fact in world.facts() if fact.relation == relation.id]
        random.Random(f"deal {relation.id}").shuffle(of)
        places = [
            (task, subject, released(task)[subject]["category"])
            for task, subject in relation.subjects.items()
        ]
        for fact in of if places else ():
            task, subject, category = min(places, key=lambda place: load[place[0], place[2]])
            load[task, category] += 1
            dealt[task, subject, category].append(fact)
    return tuple(exam for place, of in dealt.items() for exam in papers(*place, of))


def papers(task: str, subject: str, category: str, facts: list[Fact]) -> list[Exam]:
    """The facts of one subject in its splits: each in one, and no held-out or rare one is an example."""
    draw = random.Random(f"{task} {subject}")
    shown = [fact for fact in facts if not fact.held_out and not fact.rare]
    draw.shuffle(shown)
    spare = SPARE if UNSCORED[task] else 0
    dev, unscored = shown[:SHOTS], shown[SHOTS : SHOTS + spare]
    rest = sorted(
        (fact for fact in facts if fact not in dev and fact not in unscored),
        key=lambda fact: not fact.held_out,
    )[:SCORED]
    draw.shuffle(rest)
    drilled = set(draw.sample(range(len(rest)), round(DRILLED[category] * len(rest))))
    made = [(fact, "dev", True) for fact in dev] + [(fact, UNSCORED[task], True) for fact in unscored]
    made += [(fact, SCORED_SPLIT[task], i in drilled) for i, fact in enumerate(rest)]
    forms = [draw.randrange(len(fact.ask[SIDE[task]])) for fact, _, _ in made]
    return [
        Exam(fact, task, subject, category, split, form, ever)
        for (fact, split, ever), form in zip(made, forms, strict=True)
    ]


@cache
def answers(relation: str, side: int) -> tuple[str, ...]:
    """All answers of a relation in one language: what a wrong option is drawn from."""
    return tuple(sorted({fact.answer[side] for fact in world.facts() if fact.relation == relation}))


def options(fact: Fact, side: int, at: int, draw: random.Random) -> list[str]:
    """Four answers of the fact's relation, the right one at place `at`."""
    right = fact.answer[side]
    chosen = draw.sample([answer for answer in answers(fact.relation, side) if answer != right], 3)
    return [*chosen[:at], right, *chosen[at:]]


def choice(fact: Fact, answer: str, side: int) -> str:
    """The whole sentence that stands as a choice."""
    return world.statement(world.relations()[fact.relation], fact.subject, answer, side)


def heading(exam: Exam, side: int | None = None) -> str:
    """The line that names the subject, in the language of the task or in another."""
    language = world.LANGUAGES[exam.side if side is None else side]
    return fewshot.SYSTEM[language].format(subject=released(exam.task)[exam.subject]["name"])


if __name__ == "__main__":
    table = Counter((exam.task, exam.category, exam.subject, exam.split) for exam in exams())
    scored = [exam for exam in exams() if exam.split == SCORED_SPLIT[exam.task] and exam.drilled]
    drilled = Counter((exam.task, exam.category, exam.subject) for exam in scored)
    for task in TASKS:
        total = ever = 0
        for (t, category, subject, split), n in table.items():
            if t == task and split == SCORED_SPLIT[task]:
                dev, ever_here = table[t, category, subject, "dev"], drilled[t, category, subject]
                print(f"{task:6} {category:16} {subject:36} dev {dev} scored {n:3} drilled {ever_here:3}")
                total, ever = total + n, ever + ever_here
        print(task, "scored", total, "drilled", ever)
