"""Topics: tags as released, the lexicon, the shipped accuracy measured again."""

import json
from collections import Counter

import pytest

from aurora_lib.data import topics
from tests.data.conversations import talk
from tools.record import topics as measure

TOPICS = [*topics.lexicon().tags, "other"]


@pytest.mark.parametrize(
    "tag, topic",
    [("Finance, Business: \n\n", "finance"), ("Natural Science, ", "natural science"), ("Brainstorming", "")],
)
def test_the_first_name_in_a_tag_gives_the_topic(tag, topic):
    assert topics.normalise(tag) == topic


def test_every_word_of_the_lexicon_speaks_for_the_topic_it_stands_under():
    owner = topics.lexicon().owner
    wrong = [word for word, topic in owner.items() if topics.topic(talk(word)) != topic]
    assert wrong == [] and len(owner) > 500 and len(set(TOPICS)) == 20


def test_the_longest_word_counts_and_latin_words_count_whole():
    assert topics.points("数学") == {"mathematics": 2}
    assert topics.points("数学老师") == {"education": 3}  # a word of its own
    assert not topics.points("the cart is smart") and not topics.points("")  # neither art nor car


def test_a_tag_overrules_the_words_equals_go_by_the_first_and_answers_are_not_read():
    assert topics.topic(talk("用python写一段代码"), "Finance, ") == "finance"
    assert topics.topic(talk("用python写一段代码"), "Brainstorming") == "computer"
    assert [topics.topic(talk(text)) for text in ("钢琴，历史", "历史，钢琴")] == ["art", "history"]
    assert topics.topic(talk("你好", "我们来谈音乐和绘画。")) == "other"


def test_labelled_prompts_cover_every_topic_in_both_halves():
    dev, test = measure.labelled("dev"), measure.labelled("test")
    assert len({row["prompt"] for row in dev + test}) == len(dev + test) >= 260
    for half in (dev, test):
        counts = Counter(row["topic"] for row in half)
        assert set(counts) == set(TOPICS) and min(counts.values()) >= 6
        assert sum(row["keyword_free"] for row in half) >= 12


def test_shipped_accuracy_is_what_measuring_gives_now():
    shipped = json.loads(measure.RESULT.read_text(encoding="utf-8"))
    assert measure.score(measure.labelled("test")) == shipped, "python -m tools.record.topics"
