"""Drops: each names its dirt, and none takes a good conversation. Which language a text is in."""

import time

import pytest

from aurora_lib.data import drops, edits, language
from aurora_lib.data.patterns import TABLES, pattern
from tests.data.conversations import EXAMPLES, talk


def dropped_by(messages):
    return next((step.__name__ for step in drops.DROPS if step(messages)), None)


@pytest.mark.parametrize("row", EXAMPLES["dropped"])
def test_a_drop_names_its_step(row):
    step, *conversation = row
    assert dropped_by(talk(*conversation)) == step


@pytest.mark.parametrize("name", sorted(TABLES.keys() - {"parts", "words"}))
def test_every_pattern_is_found_in_its_examples_and_in_no_counterexample(name):
    assert [text for text in TABLES[name]["yes"] if not pattern(name).search(text)] == []
    assert [text for text in TABLES[name]["no"] if pattern(name).search(text)] == []


@pytest.mark.parametrize("order", ["au", "uua", "usa", "uaa", "s"])
def test_turns_out_of_order_are_dropped(order):
    names = {"u": "user", "a": "assistant", "s": "system"}
    assert dropped_by([{"role": names[letter], "content": "好的。"} for letter in order]) == "roles"


@pytest.mark.parametrize("good", EXAMPLES["stays"])
def test_a_good_conversation_stays(good):
    assert dropped_by(talk(*good)) is None


@pytest.mark.parametrize(("text", "expected"), EXAMPLES["language"])
def test_language_follows_the_scripts(text, expected):
    assert language(text) == expected


@pytest.mark.parametrize("filler", EXAMPLES["fillers"])
def test_a_row_of_200_000_characters_takes_less_than_a_second(filler):
    began, text = time.process_time(), ("长城。" + filler * 200_000)[:200_000] + "完"
    messages, _ = edits.edit(talk("长城有多长？", text))
    assert language(text) and [step(messages) for step in drops.DROPS]
    assert time.process_time() - began < 1
