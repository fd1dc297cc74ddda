"""The bundled benchmark questions: right, balanced, enough, and built again with the same bytes."""

from collections import Counter

import pytest

from aurora_lib.course import DATA
from aurora_lib.evaluation.benchmarks import TASKS, load_questions, load_subjects
from tools.build import benchmarks as build_benchmarks
from tools.build import world

BUNDLED = DATA / "benchmarks"


@pytest.mark.parametrize("task", TASKS)
def test_bundled_questions_are_right_balanced_and_enough(task):
    k = 0 if task == "mmlu" else 1
    fact_of = {question: fact for fact in world.facts() for question in fact.ask[k]}
    seen = {}
    for split in ("dev", TASKS[task]["split"]):
        loaded = [load_questions(task, subject, split) for subject in load_subjects(task)]
        assert not [row for _, skipped in loaded for row in skipped]
        questions = [question for found, _ in loaded for question in found]
        assert len(questions) >= 100 if split != "dev" else {len(found) for found, _ in loaded} == {5}
        assert all(len(set(question.choices)) == 4 for question in questions)
        counts = Counter(question.answer for question in questions)
        assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 4
        for question in questions:
            assert question.choices["ABCD".index(question.answer)] == fact_of[question.text].say[k]
        seen[split] = {fact_of[question.text].id for question in questions}
    examples, scored = seen.values()
    held_out = {fact.id for fact in world.facts() if fact.held_out}
    assert not examples & (scored | held_out) and held_out <= scored


def test_rebuilding_the_bundled_questions_gives_the_same_bytes(tmp_path):
    for task in TASKS:
        build_benchmarks.build(task, tmp_path / task)
    files = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {p.relative_to(BUNDLED): p.read_bytes() for p in BUNDLED.rglob("*") if p.is_file()}
