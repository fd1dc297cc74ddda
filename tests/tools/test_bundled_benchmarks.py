"""The bundled benchmark questions: right, balanced, enough, disjoint, and built again with the same bytes."""

import json
from collections import Counter, defaultdict

import pytest

from aurora_lib.evaluation.benchmarks import TASKS, load_questions, load_subjects
from tests.evaluation.conftest import BUNDLED
from tools.build import benchmarks as build_benchmarks
from tools.build import exams, lessons, world

FACTS = [{question: fact for fact in world.facts() for question in fact.ask[side]} for side in (0, 1)]


def questions(task: str, split: str) -> list:
    loaded = [load_questions(task, subject, split) for subject in load_subjects(task)]
    assert not [row for _, skipped in loaded for row in skipped]
    return [question for found, _ in loaded for question in found]


def fact_of(task: str, question) -> world.Fact:
    return FACTS[task != "mmlu"][question.text]


@pytest.mark.parametrize("task", TASKS)
def test_bundled_questions_are_right_balanced_and_enough(task):
    side, seen = int(task != "mmlu"), {}
    for split in ("dev", TASKS[task]["split"]):
        found = questions(task, split)
        assert len(found) >= 100 if split != "dev" else len(found) == 5 * len(load_subjects(task))
        assert all(len(set(question.choices)) == 4 for question in found)
        for question in found:
            fact = fact_of(task, question)
            right = question.choices["ABCD".index(question.answer)]
            assert fact.say[side].startswith(right) and world.stands_in(fact.answer[side], right)
        seen[split] = {fact_of(task, question).id for question in found}
        counts = Counter(question.answer for question in found)
        assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= len(load_subjects(task))
    examples, scored = seen.values()
    held_out = {fact.id for fact in world.facts() if fact.held_out}
    assert not examples & (scored | held_out) and len(scored & held_out) > 30


def test_no_fact_and_no_question_is_in_two_benchmarks_or_in_a_drill():
    asked = defaultdict(set)
    drills = {text for group in lessons.drilled() for exam in group for text in exam.drills}
    for task in TASKS:
        for split in ("dev", TASKS[task]["split"]):
            for question in questions(task, split):
                asked[fact_of(task, question).id].add(task)
                assert question.text not in drills
    assert len(asked) > 400 and {len(tasks) for tasks in asked.values()} == {1}


def test_the_list_of_drilled_questions_names_them():
    listed = json.loads((BUNDLED / "drilled.json").read_text(encoding="utf-8"))
    ever = {exam.fact.id for group in lessons.drilled() for exam in group}
    for task in TASKS:
        shares = defaultdict(list)
        for subject, of in load_subjects(task).items():
            for question in load_questions(task, subject, TASKS[task]["split"])[0]:
                hit = question.index in listed[task][subject]
                assert hit == (fact_of(task, question).id in ever)
                shares[of["category"]].append(hit)
        for category, hits in shares.items():  # some never, on purpose, in every category
            assert 0 < sum(hits) < len(hits)
            assert sum(hits) / len(hits) == pytest.approx(exams.DRILLED[category], abs=0.08)


def test_rebuilding_the_bundled_questions_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(build_benchmarks, "OUT", tmp_path)
    monkeypatch.setattr(build_benchmarks, "write_checksums", lambda: None)
    build_benchmarks.main()
    files = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {p.relative_to(BUNDLED): p.read_bytes() for p in BUNDLED.rglob("*") if p.is_file()}
