"""Edits: each mends its dirt, records what it changed, and leaves alone what only looks dirty."""

import pytest

from aurora_lib.data import edits
from tests.data.conversations import EXAMPLES, talk


def edited(*texts):
    messages, changes = edits.edit(talk(*texts))
    assert edits.edit(messages) == (messages, []), "editing again changes something"
    return [message["content"] for message in messages], changes


@pytest.mark.parametrize(("dirty", "clean"), EXAMPLES["mended"])
def test_an_edit_repairs_the_text(dirty, clean):
    assert edited(*dirty)[0] == clean


@pytest.mark.parametrize(("step", "before", "after"), EXAMPLES["recorded"])
def test_every_edit_is_recorded_with_what_it_changed(step, before, after):
    texts, (change,) = edited("问题是什么？", before)
    assert texts[1] == after and (change["step"], change["turn"]) == (step, 2)
    assert change["before"] and change["before"] in before and change["after"] in after


@pytest.mark.parametrize(("question", "answer"), EXAMPLES["unedited"])
def test_what_only_looks_dirty_is_not_edited(question, answer):
    assert edited(question, answer) == ([question, answer], [])


def test_a_system_turn_without_text_is_none():
    messages, (_, change) = edits.edit([dict(role="system", content="\u200b\n"), *talk("问", "答")])
    assert (messages, change["step"], change["turn"]) == (talk("问", "答"), "empty_system", 1)
