"""Edits: each mends its dirt, records what it changed, and leaves alone what only looks dirty."""

import pytest

from aurora_lib.data import edits
from tests.data.conversations import talk

OPTIONS = tuple(step.__name__ for step in edits.OPTIONAL)


def edited(*texts):
    messages, changes = edits.edit(talk(*texts), OPTIONS)
    assert edits.edit(messages, OPTIONS) == (messages, []), "editing again changes something"
    return [message["content"] for message in messages], changes


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
    assert edited(*dirty)[0] == clean


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("escapes", r"第一行\n第二行", "第一行\n第二行"),
        ("prompt_leak", "好的。\n### Instruction: 再写一个", "好的。"),
        ("prompt_leak", "### Response: 好的。<|im_end|>", "好的。"),
        ("no_input", "<无输入> 好的，请说。", "好的，请说。"),
        ("to_simplified", "請問臺灣的首府", "请问台湾的首府"),
    ],
)
def test_every_edit_is_recorded_with_what_it_changed(step, before, after):
    texts, (change,) = edited("问题是什么？", before)
    assert texts[1] == after and (change["step"], change["turn"]) == (step, 2)
    assert change["before"] and change["before"] in before and change["after"] in after


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("给出家庭的表情", "👨\u200d👩\u200d👧"),
        ("他说：“你好，世界！”（１２３）", "“你好”，ＡＢＣ。"),
        ("HTML 实体怎么写？", "用 &lt; 表示小于号。"),
        ("选择：\n有\n无", "有"),
        ("网址", "https://a.cn/?a=1&copy=2"),
        ("写代码", 'print("a\\n")'),
        ("写一个微调用的提示词模板", "### Instruction: 翻译\n### Response: 好的"),
        ("请用繁體中文回答", "請問臺灣的首府"),
        ("东京", "日本の首都です。東京"),
    ],
)
def test_what_only_looks_dirty_is_not_edited(question, answer):
    assert edited(question, answer) == ([question, answer], [])
