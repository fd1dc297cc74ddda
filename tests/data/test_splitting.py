"""Splitting: every piece fits, no turn is lost or cut, and nothing is split that fits."""

import pytest

from aurora_lib.data import sources, split
from aurora_lib.data.conversations import exchange_tokens
from aurora_lib.model import load_tokenizer
from tests.data.conversations import talk


@pytest.fixture(scope="module")
def mixtral():
    return load_tokenizer()


def conversation(id, *turns, system=None):
    start = [dict(role="system", content=system)] if system else []
    return dict(id=id, source="x", category="", messages=start + talk(*turns))


def tokens(messages, tokenizer):
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    return len(tokenizer(rendered, add_special_tokens=False).input_ids)


TURNS = []
for i in range(12):
    TURNS += [f"第{i}个问题：春天有哪些花？😀", f"第{i}个回答。" + "桃花、杏花，还有  迎春花。\n" * i]


@pytest.mark.parametrize("system", [None, "你是一位园丁。"])
@pytest.mark.parametrize("length", [64, 128, 300, 5000])
def test_pieces_fit_and_lose_nothing(mixtral, length, system):
    rows = [conversation("long", *TURNS, system=system), conversation("short", "你好", "你好！")]
    pieces = split(sources.table(rows), mixtral, length).to_list()
    assert pieces[-1] == rows[1]
    said = [message for piece in pieces[:-1] for message in piece["messages"] if message["role"] != "system"]
    assert said == [message for message in rows[0]["messages"] if message["role"] != "system"]
    sizes = [tokens(piece["messages"], mixtral) for piece in pieces[:-1]]
    single = [len(piece["messages"]) - bool(system) == 2 for piece in pieces[:-1]]
    assert all(size <= length or alone for size, alone in zip(sizes, single, strict=True))
    assert all((piece["messages"][0]["role"] == "system") == bool(system) for piece in pieces[:-1])
    numbered = ["long", *(f"long#{n}" for n in range(2, len(sizes) + 1))]
    assert [piece["id"] for piece in pieces[:-1]] == numbered
    # as long as they can be: one more exchange would not have fitted
    whole = tokens(rows[0]["messages"], mixtral)
    assert (len(sizes) == 1) == (whole <= length)
    again = split(sources.table(pieces), mixtral, length)
    assert [row["messages"] for row in again] == [piece["messages"] for piece in pieces]


def test_a_single_exchange_is_never_cut_and_no_rows_are_no_pieces(mixtral):
    assert len(split(sources.table([]), mixtral, 100)) == 0
    row = conversation("0", "写一篇文章", "春天来了。" * 500)
    assert split(sources.table([row]), mixtral, 100).to_list() == [row]


def test_the_count_is_that_of_the_chat_template(mixtral):
    """Exactly; a system turn, counted apart from the question it is joined to, may cost one token more."""
    for system, slack in ((None, 0), ("你是一位园丁。", 1)):
        row = conversation("0", *TURNS, "<s> 和 </s>", "HTML 里有 </s>。", system=system)
        (sizes,) = exchange_tokens([row["messages"]], mixtral)
        assert 0 <= sum(sizes) - tokens(row["messages"], mixtral) <= slack
