"""Topics: tags as released, the lexicon, what the classifier learns, the shipped accuracy measured again."""

import json
from collections import Counter

import pytest

from aurora_lib.data import sources, topics
from tools.record import topics as measure

TOPICS = topics.lexicon().topics


def asked(*questions):
    return [[{"role": "user", "content": question}] for question in questions]


def best(text):
    return TOPICS[topics.lexicon_scores(text).argmax()]


@pytest.fixture(scope="module")
def classifier():
    return topics.fit([])


@pytest.mark.parametrize(
    ("tag", "topic"),
    [
        ("Finance, Business: \n\n", "finance"),
        ("Natural Science, ", "natural science"),
        ("Literature, Art: \n\n", "literature"),
        ("Psychology", "psychology"),
        ("Brainstorming", ""),
        ("", ""),
    ],
)
def test_the_first_name_in_a_tag_gives_the_topic(tag, topic):
    assert topics.normalise(tag) == topic


def test_every_word_of_the_lexicon_speaks_for_the_topic_it_stands_under():
    assert len(TOPICS) == len(set(TOPICS)) == 20
    owner = topics.lexicon().owner
    assert len(owner) > 500 and [word for word, number in owner.items() if best(word) != TOPICS[number]] == []


def test_the_longest_word_counts_and_latin_words_count_whole():
    assert best("数学") == "mathematics"
    scores = topics.lexicon_scores("数学老师")  # a word of its own, though 数学 is one of mathematics
    assert [TOPICS[number] for number in scores.nonzero()[0]] == ["education"]
    assert not topics.lexicon_scores("the cart is smart").any()  # neither art nor car
    assert not topics.lexicon_scores("").any()


def test_a_tag_overrules_the_words_and_answers_are_not_read(classifier):
    code, talk = asked("用python写一段代码")[0], asked("你好")[0]
    talk.append({"role": "assistant", "content": "我们来谈音乐和绘画。"})
    found = classifier.topics([code, code, talk], ["", "Finance, ", "Brainstorming"])
    assert found == ["computer", "finance", "other"]
    assert classifier.topics([code, talk]) == ["computer", "other"]
    assert classifier.topics([]) == []


def test_a_word_the_lexicon_lacks_is_learnt_from_the_conversations(classifier):
    # 馦馧 and 鼘鼝 are in no lexicon; only their company tells the two apart
    cooking = asked(*[f"馦馧怎么炒，配{dish}好吃吗" for dish in ("鸡蛋", "牛肉", "豆腐", "土豆")] * 5)
    music = asked(*[f"鼘鼝和{tool}一起怎么演奏音乐" for tool in ("钢琴", "吉他", "小提琴", "二胡")] * 5)
    questions = asked("我从来没有见过馦馧，请说说", "我从来没有见过鼘鼝，请说说")
    assert topics.fit(cooking + music).topics(questions) == ["food", "art"]
    assert classifier.topics(questions) != ["food", "art"]


def test_fit_draws_the_same_conversations_for_the_same_seed():
    loaded = sources.load("sharegpt_zh")  # a column of a Dataset serves as well as a list
    first, again = (topics.fit(loaded["messages"], seed=3, at_most=50) for _ in range(2))
    other = topics.fit(loaded["messages"], seed=4, at_most=50)
    assert first.vectorizer.vocabulary_ == again.vectorizer.vocabulary_ != other.vectorizer.vocabulary_
    found = first.topics(loaded["messages"], loaded["category"])
    assert len(found) == len(loaded) and set(found) <= set(TOPICS)
    assert found == again.topics(loaded["messages"], loaded["category"])


def test_labelled_prompts_cover_every_topic_in_both_halves():
    rows = measure.labelled()
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows) >= 260
    counts = Counter((row["topic"], row["split"]) for row in rows)
    assert set(counts) == {(topic, split) for topic in TOPICS for split in ("dev", "test")}
    assert min(counts.values()) >= 6
    for split in ("dev", "test"):
        assert sum(row["keyword_free"] for row in rows if row["split"] == split) >= 12


def test_shipped_accuracy_is_what_measuring_gives_now():
    shipped = json.loads(measure.RESULT.read_text(encoding="utf-8"))
    conversations = measure.bundled()
    found = measure.measure(conversations, f"the {len(conversations)} bundled conversations")
    assert found == shipped, "run tools/record/topics.py"
    assert found["accuracy"] > found["lexicon_alone"]
    low, high = found["interval"]
    assert low < found["accuracy"] < high and high - low < 0.2


def test_score_counts_right_answers():
    rows = [{"topic": "food"}, {"topic": "art"}, {"topic": "art"}, {"topic": "work"}]
    found = measure.score(rows, ["food", "art", "food", "work"])
    assert (found["n"], found["accuracy"]) == (4, 0.75)
    assert found["interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)  # Wilson, by hand
