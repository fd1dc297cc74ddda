"""Drops: each names its dirt, and none takes a good conversation. Which language a text is in."""

import time

import pytest

from aurora_lib.data import drops, edits, language
from aurora_lib.data.patterns import pattern, read
from tests.data.conversations import EXAMPLES, talk

LONG = "春天来了，河边的柳树发了芽。孩子们跑到草地上放风筝，老人坐在长椅上晒太阳。" * 2


def dropped_by(messages):
    return next((step.__name__ for step in drops.DROPS if step(messages)), None)


@pytest.mark.parametrize("row", EXAMPLES["dropped"])
def test_a_drop_names_its_step(row):
    step, *conversation = row
    assert dropped_by(talk(*conversation)) == step


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("truncated", LONG + "然后我们沿着河边慢慢地往前走，看到了很多新开的花，"),
        ("truncated", LONG + "代码如下：\n```python\nfor i in range(3):\n    print(i"),
        ("truncated", LONG * 3 + "春天还是播种的季节。农民们开始在田里忙碌，他们希望今年能有一个很好的收"),
        ("truncated", LONG * 2 + "这个季节也适合我们一家人一起去郊外的"),
        ("repetition", LONG * 3),
        ("repetition", "我们可以尝试不同的方法来解决这个问题。" * 20),
        ("repetition", "好的，" + "谢谢你的提问" * 60),
    ],
)
def test_answers_cut_off_or_stuck_are_dropped(step, answer):
    assert dropped_by(talk("春天有什么？", answer)) == step


@pytest.mark.parametrize("name", sorted(read().keys() - {"parts", "words"}))
def test_every_pattern_is_found_in_its_examples_and_in_no_counterexample(name):
    assert [text for text in read()[name]["yes"] if not pattern(name).search(text)] == []
    assert [text for text in read()[name]["no"] if pattern(name).search(text)] == []


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
