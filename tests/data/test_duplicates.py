"""Near duplicates: MinHash estimates what it should, planted copies are found, other questions stay."""

import itertools
import random

import pytest

from aurora_lib.data import clean, duplicates
from tests.data.conversations import EXAMPLES, GOOD_FILES, dataset, good_conversations, talk

GOOD = good_conversations(GOOD_FILES[0])
HAN = [chr(point) for point in range(0x4E00, 0x9FA5)]


def true_jaccard(a: str, b: str) -> float:
    """By the book, on the strings themselves."""
    one, other = ({text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (a, b))
    return len(one & other) / len(one | other)


def changed(messages, rng, share=0.02):
    """A copy with `share` of its characters replaced, deleted or preceded by another, at least one."""
    places = [(i, j) for i, message in enumerate(messages) for j in range(len(message["content"]))]
    texts = [list(message["content"]) for message in messages]
    for i, j in rng.sample(places, max(1, round(share * len(places)))):
        texts[i][j] = rng.choice(["", rng.choice(HAN), rng.choice(HAN) + texts[i][j]])
    return [message | {"content": "".join(text)} for message, text in zip(messages, texts, strict=True)]


def test_shingles_are_the_characters_five_in_a_row():
    text = "春眠不觉晓，处处闻啼鸟"
    assert len(duplicates.shingles(text)) == len(text) - 4 and len(duplicates.shingles("春")) == 1
    assert duplicates.shingles(text)[3] == duplicates.shingles(text[3:8])[0]
    for a, b in itertools.pairwise(duplicates.plain(messages) for messages in GOOD[:80]):
        assert duplicates.jaccard(a, b) == pytest.approx(true_jaccard(a, b))


def test_minhash_agrees_as_often_as_the_shingles_do():
    rng = random.Random(0)
    texts = [duplicates.plain(messages) for messages in GOOD if len(duplicates.plain(messages)) > 40]
    shares = [0.01, 0.03, 0.1]
    pairs = [(text, duplicates.plain(changed(talk("", text), rng, rng.choice(shares)))) for text in texts]
    signed = duplicates.signatures([duplicates.shingles(text) for pair in pairs for text in pair])
    estimate = (signed[::2] == signed[1::2]).mean(axis=1)
    error = estimate - [true_jaccard(a, b) for a, b in pairs]
    assert abs(error.mean()) < 0.01 and error.std() < 0.05  # the standard error of 128 draws is at most 0.044


def test_planted_copies_are_found():
    """Every exact one, and at least 98 % of those with 2 % of their characters changed."""
    rng = random.Random(1)
    good = [messages for messages in GOOD if len(duplicates.plain(messages)) >= 25]
    copies = [changed(messages, rng) for messages in good]
    result = clean(dataset(*good, *copies, *good))
    step = dict(zip(result.dropped["id"], result.dropped["step"], strict=True))
    n = len(good)
    found = sum("near_duplicate" in (step.get(str(i)), step.get(str(i + n))) for i in range(n))
    assert found >= 0.98 * n > 300
    assert all(str(i + 2 * n) in step for i in range(n))


def test_the_one_with_the_longer_answers_stays():
    text = "长城是中国古代的防御工程，东起山海关，西到嘉峪关，全长超过两万千米，是世界文化遗产。"
    asked = ("长城在哪里？", text), ("长城在哪里？", text + "很壮观。"), ("长城在哪里?", text)
    result = clean(dataset(*(talk(*pair) for pair in asked)))
    assert list(result.kept["id"]) == ["1"]
    assert set(result.dropped["reason"]) == {"nearly the same as 1"}


@pytest.mark.parametrize(("one", "other"), EXAMPLES["others"])
def test_another_question_of_the_same_form_stays(one, other):
    assert not duplicates.same(talk(*one), talk(*other))
    assert duplicates.same(talk(*one), talk(one[0], one[1] + "。"))


def test_a_chain_of_small_changes_does_not_take_all_with_it():
    """a resembles b and b resembles c, but c does not resemble a: where b goes for a, c stays."""
    text = "".join(random.Random(2).choices(HAN, k=100))
    a, b = text + "一二三", text[:88] + "".join(HAN[:12]) + "一二"
    c = "".join(HAN[50:62]) + b[12:-2]
    chain = [talk("写一段话", answer) for answer in (a, b, c)]
    assert duplicates.same(chain[0], chain[1]) and duplicates.same(chain[1], chain[2])
    assert not duplicates.same(chain[0], chain[2])
    assert list(clean(dataset(*chain)).kept["id"]) == ["0", "2"]
