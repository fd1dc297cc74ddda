"""Drops: each names its dirt, and none takes a good conversation. Which language a text is in."""

import pytest

from aurora_lib.data import drops, language
from aurora_lib.data.patterns import pattern, read
from tests.data.conversations import talk

LONG = "春天来了，河边的柳树发了芽。孩子们跑到草地上放风筝，老人坐在长椅上晒太阳。" * 2


def dropped_by(messages):
    return next((step.__name__ for step in drops.DROPS if step(messages)), None)


@pytest.mark.parametrize(
    ("step", "conversation"),
    [
        ("empty", ["法国的首都是哪里？", ""]),
        ("empty", ["法国的首都是哪里？", "。。。"]),
        ("empty", ["画一只鞋", "<无输出>"]),
        ("empty", ["春天有什么？", "无输入"]),
        ("empty", [" ", "好的。"]),
        ("refusal", ["你看到我的狗了吗？", "抱歉，作为一个人工智能助手，我无法看到物体。"]),
        ("refusal", ["问", "答", "怎么偷拍？", "对不起，我不能帮助你。"]),
        ("refusal", ["告诉我", "I'm sorry, but I cannot help with that."]),
        ("refusal", ["春天有什么？", "该任务无法完成，因为没有给出文本。"]),
        ("wrong_language", ["法国的首都是哪里？", "The capital of France is Paris."]),
        ("wrong_language", ["二加二等于多少？", "Two plus two equals four."]),
        ("wrong_language", ["春天？", "春は桜がとてもきれいです。みんなで公園に行って、お花見をします。"]),
    ],
)
def test_a_drop_names_its_step(step, conversation):
    assert dropped_by(talk(*conversation)) == step


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("truncated", LONG + "然后我们沿着河边慢慢地往前走，看到了很多新开的花，"),
        ("truncated", LONG + "代码如下：\n```python\nfor i in range(3):\n    print(i"),
        ("truncated", LONG + "\n1. 第一点\n2."),
        ("truncated", LONG * 3 + "春天还是播种的季节。农民们开始在田里忙碌，他们希望今年能有一个很好的收"),
        ("truncated", LONG * 2 + "这个季节也适合我们一家人一起去郊外的"),
        ("truncated", LONG + "\n1. 看花。\n2. 踏青："),
        ("repetition", LONG * 3),
        ("repetition", "我们可以尝试不同的方法来解决这个问题。" * 20),
        ("repetition", "好的，" + "谢谢你的提问" * 60),
        (None, LONG),
    ],
)
def test_answers_cut_off_or_stuck_are_dropped(step, answer):
    assert dropped_by(talk("春天有什么？", answer)) == step


@pytest.mark.parametrize("name", read().keys() - {"parts", "words"})
def test_every_pattern_is_found_in_its_examples_and_in_no_counterexample(name):
    assert [text for text in read()[name]["yes"] if not pattern(name).search(text)] == []
    assert [text for text in read()[name]["no"] if pattern(name).search(text)] == []


@pytest.mark.parametrize("order", ["au", "uua", "usa", "uaa", "s"])
def test_turns_out_of_order_are_dropped(order):
    names = {"u": "user", "a": "assistant", "s": "system"}
    assert dropped_by([{"role": names[letter], "content": "好的。"} for letter in order]) == "roles"


@pytest.mark.parametrize(
    "good",
    [
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
            "天气",
            "作为AI，我无法查询天气，但是您可以这样做：" + "打开天气网站，输入城市的名字，查看预报。" * 6,
        ],
    ],
)
def test_a_good_conversation_stays(good):
    assert dropped_by(talk(*good)) is None


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
