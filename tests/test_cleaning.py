"""Cleaning: each step finds its dirt, leaves good rows alone, and nothing is lost."""

import json
import random

import pytest
from datasets import concatenate_datasets

from aurora_lib import categories, cleaning, sources
from aurora_lib.language import language


def dataset(*conversations):
    """Each conversation a list of texts, user and assistant in turn."""
    rows = [
        {
            "id": str(i),
            "source": "alpaca_zh",
            "category": "",
            "messages": [
                {"role": ("user", "assistant")[j % 2], "content": text} for j, text in enumerate(conversation)
            ],
        }
        for i, conversation in enumerate(conversations)
    ]
    return sources.table(rows)


def kept(*conversation):
    return [
        message["content"]
        for row in cleaning.clean(dataset(conversation)).kept
        for message in row["messages"]
    ]


def dropped_by(*conversation):
    found = cleaning.clean(dataset(conversation)).dropped
    return found[0]["step"] if len(found) else None


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        (["如果 a &lt;= b，输出 &quot;是&quot;&#39;", "好的。"], ['如果 a <= b，输出 "是"\'', "好的。"]),
        (["&amp;lt; 是什么", "小于号。"], ["< 是什么", "小于号。"]),
        (["形容\u200b\u200b词是什么？\ufeff", "修饰\x00名词。\r\n好"], ["形容词是什么？", "修饰名词。\n好"]),
        (["解释下棋\n无输入", "下棋是游戏。"], ["解释下棋", "下棋是游戏。"]),
        (["解释下棋\n&lt;noinput&gt;", "下棋是游戏。"], ["解释下棋", "下棋是游戏。"]),
        (["问", "答", "谢谢"], ["问", "答"]),
        (["法国".encode().decode("latin-1") * 2, "好的。"], ["法国法国", "好的。"]),
        (["“cafÃ©”是什么（１）？", "咖啡馆。"], ["“café”是什么（１）？", "咖啡馆。"]),
        (["cafe\u0301是什么？", "咖啡馆。"], ["café是什么？", "咖啡馆。"]),
    ],
)
def test_an_edit_repairs_the_text(dirty, clean):
    assert kept(*dirty) == clean


@pytest.mark.parametrize(
    "good",
    [
        ["给出家庭的表情", "👨\u200d👩\u200d👧"],
        ["他说：“你好，世界！”（１２３）", "“你好”，ＡＢＣ。"],
        ["HTML 实体怎么写？", "用 &lt; 表示小于号。"],
        ["选择：\n有\n无", "有"],
        ["网址", "https://a.cn/?a=1&copy=2"],
        ["3 乘 9 等于多少？", "27"],
        ["情感是？", "负面"],
        ["写一段SQL", "SELECT name FROM customers ORDER BY name;"],
        ["写一个函数", "```python\ndef f(a):\n    return a is not None and a in b\n```"],
        ["铁的化学符号是什么？", "Fe"],
        ["列出四位歌手", "Michael Jackson, Taylor Swift, Adele, Madonna"],
        ["把“我很好”翻译成英文", "I am very well, and you?"],
        ["给出happy的例句", "She is happy to be with you."],
        ["用莫尔斯电码写SOS", "... --- ..."],
        ["What is the capital of Italy?", "The capital of Italy is Rome."],
        ["写一封道歉信", "对不起，我不能参加会议。"],
        ["你之前错了", "抱歉，我之前的回答有误。正确的答案是八。"],
        [
            "讲讲天气",
            "作为AI，我无法查询实时天气，但是您可以这样做：" + "打开天气网站，输入城市的名字，查看预报。" * 6,
        ],
    ],
)
def test_a_good_conversation_is_left_as_it_is(good):
    assert kept(*good) == good


@pytest.mark.parametrize(
    ("step", "conversation"),
    [
        ("empty", ["法国的首都是哪里？", ""]),
        ("empty", ["法国的首都是哪里？", "。。。"]),
        ("empty", ["画一只鞋", "&lt;无输出&gt;"]),
        ("empty", [" ", "好的。"]),
        ("refusal", ["你看到我的狗了吗？", "抱歉，作为一个人工智能助手，我无法看到物体。"]),
        ("refusal", ["问", "答", "怎么偷拍？", "对不起，我不能帮助你。"]),
        ("refusal", ["告诉我", "I'm sorry, but I cannot help with that."]),
        ("wrong_language", ["法国的首都是哪里？", "The capital of France is Paris."]),
        ("wrong_language", ["二加二等于多少？", "Two plus two equals four."]),
    ],
)
def test_a_drop_names_its_step(step, conversation):
    assert dropped_by(*conversation) == step


@pytest.mark.parametrize("order", ["au", "uua", "usa", "uaa", "s"])
def test_turns_out_of_order_are_dropped(order):
    names = {"u": "user", "a": "assistant", "s": "system"}
    messages = [{"role": names[letter], "content": "好的。"} for letter in order]
    result = cleaning.clean(sources.table([{"id": "1", "source": "x", "category": "", "messages": messages}]))
    assert list(result.dropped["step"]) == ["roles"]


def test_of_equal_conversations_the_first_stays():
    result = cleaning.clean(dataset(["问", "答一"], ["问", "答二"], ["问\u200b", "答一"]))
    assert list(result.kept["id"]) == ["0", "1"]
    assert list(result.dropped["reason"]) == ["the same as 0"]


def test_the_bundled_rows_are_counted_and_cleaned_to_a_fixed_point():
    loaded = concatenate_datasets([sources.load(name) for name in sources.SOURCES])
    result = cleaning.clean(loaded)
    assert len(result.kept) + len(result.dropped) == len(loaded)
    assert set(result.kept["id"]) | set(result.dropped["id"]) == set(loaded["id"])
    assert set(result.dropped["step"]) == {"empty", "refusal", "wrong_language", "duplicate"}
    assert set(result.edited) == {"mojibake", "html_entities", "invisible", "no_input", "trailing_question"}
    report = result.report["total"]
    assert report["read", "read"] == len(loaded) and report["kept", "kept"] == len(result.kept)
    assert report.xs("dropped", level="action").sum() == len(result.dropped)
    assert result.table1().loc["total", "total"] == len(result.kept)
    assert result.table1().loc["alpaca_zh", "multiple"] == 0
    again = cleaning.clean(result.kept)
    assert again.kept.to_list() == result.kept.to_list() and not again.edited


def test_any_rows_are_kept_or_dropped_and_cleaning_twice_changes_nothing():
    rng = random.Random(5)
    pieces = [
        "你好",
        "&amp;",
        "amp;lt;",
        "\u200b",
        "\n无输入",
        "。",
        "The cat is on the mat.",
        "Ã©",
        "抱歉，我无法",
        " ",
        "x",
    ]
    texts = lambda: "".join(rng.choices(pieces, k=rng.randrange(5)))  # noqa: E731
    read = dataset(*[[texts() for _ in range(rng.randrange(1, 5))] for _ in range(400)])
    result = cleaning.clean(read)
    assert len(result.kept) + len(result.dropped) == len(read)
    assert len(result.kept) and len(result.dropped)
    assert cleaning.clean(result.kept).kept.to_list() == result.kept.to_list()


def test_nothing_to_clean_is_said():
    with pytest.raises(sources.DataError, match="no conversation"):
        cleaning.clean(sources.table([]))
    with pytest.raises(sources.DataError, match="no column category, messages"):
        cleaning.clean(dataset(["问", "答"]).remove_columns(["messages", "category"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("铁的化学符号是Fe。", "zh"),
        ("什么是GPU？", "zh"),
        ("“大”的反义词是“小”。", "zh"),
        ("The capital of France is Paris.", "en"),
        ("Fe", "en"),
        ("请翻译 the cat sat on the mat", "mixed"),
        ("東京は日本の首都です。", "other"),
        ("Привет", "other"),
        ("2 + 2 = 4", "other"),
        ("", "other"),
    ],
)
def test_language_follows_the_scripts(text, expected):
    assert language(text) == expected


def test_tags_and_words_give_a_topic():
    assert categories.normalise("Finance, Business: \n\n") == "finance"
    assert categories.normalise("Natural Science, ") == "natural science"
    assert categories.normalise("Brainstorming") == categories.normalise("") == ""
    asked = [{"role": "user", "content": "用python写一段代码"}, {"role": "assistant", "content": "音乐"}]
    assert categories.categorise(asked) == "computer"
    assert categories.categorise(asked, "Finance, ") == "finance"
    assert categories.categorise([{"role": "user", "content": "嗯"}]) == "other"
    assert (
        json.dumps(sorted({topic for topic, *_ in categories.TOPICS})).count(",") + 1
        == len(categories.TOPICS)
        == 18
    )
