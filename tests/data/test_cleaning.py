"""Cleaning: each step finds its dirt, leaves good rows alone, and nothing is lost."""

import json
import pickle
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from datasets import concatenate_datasets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aurora_lib.data import cleaning, contamination, edits, parts, sources
from aurora_lib.data.languages import language

OPTIONS = tuple(step.__name__ for step in edits.OPTIONAL)
GOOD_ROWS = ("good_rows.jsonl", "good_rows_held_out.jsonl")


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
    assert set(result.dropped["step"]) == {
        "empty",
        "refusal",
        "wrong_language",
        "duplicate",
        "near_duplicate",
    }
    assert set(result.edits["step"]) == {
        "mojibake",
        "html_entities",
        "invisible",
        "no_input",
        "trailing_question",
    }
    report = result.report["total"]
    assert report["read", "read"] == len(loaded) and report["kept", "kept"] == len(result.kept)
    assert report.xs("dropped", level="action").sum() == len(result.dropped)
    assert result.table1().loc["total", "total"] == len(result.kept)
    assert result.table1().loc["alpaca_zh", "multiple"] == 0
    again = cleaning.clean(result.kept)
    assert again.kept.to_list() == result.kept.to_list() and not len(again.edits)


PIECES = [
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
    r"\n",
]
PIECES += [
    "### Instruction: 再来",
    "請問",
    "13812345678",
    "今天天气很好，我们去公园散步，",
    "<|im_end|>",
    "重新开始。" * 60,
]
TEXT = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT})


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(TURN, min_size=1, max_size=5), min_size=1, max_size=12),
    st.sets(st.sampled_from(OPTIONS)),
)
def test_any_rows_are_kept_or_dropped_and_cleaning_twice_changes_nothing(found, options):
    read = sources.table(
        [dict(id=str(i), source="x", category="", messages=messages) for i, messages in enumerate(found)]
    )
    options = tuple(sorted(options))
    result = cleaning.clean(read, options=options)
    assert sorted([*result.kept["id"], *result.dropped["id"]]) == sorted(read["id"])
    assert set(result.dropped["id"]).isdisjoint(result.kept["id"])
    by_id = {row["id"]: row["messages"] for row in read}
    assert all(row["messages"] == by_id[row["id"]] and row["reason"] for row in result.dropped)
    total = result.report["total"]
    assert total.get(("kept", "kept"), 0) + total[total.index.isin(["dropped"], level=1)].sum() == len(read)
    if len(result.kept):
        again = cleaning.clean(result.kept, options=options)
        assert again.kept.to_list() == result.kept.to_list()
        assert len(again.edits) == 0


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.recursive(
            st.none() | st.integers() | TEXT,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "instruction",
                            "input",
                            "output",
                            "history",
                            "conversations",
                            "from",
                            "value",
                            "human",
                            "assistant",
                        ]
                    ),
                    inner,
                )
            ),
        ),
        max_size=8,
    )
)
def test_any_json_is_loaded_or_set_aside(found):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (
            ("a.json", json.dumps(found)),
            ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n"),
        ):
            file = Path(folder) / name
            file.write_text(text, encoding="utf-8")
            if text.strip():
                loaded = sources.load("alpaca_zh", file)
                assert len(loaded) + len(sources.rejected(file)) == len(found)
                assert len(set(loaded["id"])) == len(loaded)


def test_good_rows_stay():
    """Self-written good conversations near the border of every step: at most one in a hundred may be lost."""
    lines = [
        line
        for name in GOOD_ROWS
        for line in (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    ]
    rows = [
        dict(id=str(i), source="good", category="", messages=json.loads(line)["messages"])
        for i, line in enumerate(lines)
    ]
    result = cleaning.clean(sources.table(rows))
    assert len(rows) >= 500 and len(result.dropped) <= 0.01 * len(rows), [
        row["messages"] for row in result.dropped
    ]
    assert len({row["id"] for row in result.edits}) <= 0.01 * len(rows), list(result.edits)


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("escapes", r"第一行\n第二行", "第一行\n第二行"),
        ("prompt_leak", "好的。\n### Instruction: 再写一个", "好的。"),
        ("prompt_leak", "### Response: 好的。<|im_end|>", "好的。"),
        ("no_input", "<无输入> 好的，请说。", "好的，请说。"),
        ("to_simplified", "請問臺灣的首府", "请问台湾的首府"),
        ("mask_personal", "打13812345678，或写信到a.b@qq.com。", "打[手机号]，或写信到[邮箱]。"),
        ("mask_personal", "证号11010519491231002X", "证号[身份证号]"),
        ("mask_personal", "卡号6222021234567890128", "卡号[银行卡号]"),
    ],
)
def test_every_edit_is_recorded_with_what_it_changed(step, before, after):
    result = cleaning.clean(dataset(["问题是什么？", before]), options=OPTIONS if step in OPTIONS else ())
    assert result.kept[0]["messages"][1]["content"] == after
    (edit,) = result.edits
    assert (edit["id"], edit["step"], edit["turn"]) == ("0", step, 2)
    assert edit["before"] and edit["before"] in before and edit["after"] in after


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("写代码", 'print("a\\n")'),
        ("写一个微调用的提示词模板", "### Instruction: 翻译\n### Response: 好的"),
        ("请用繁體中文回答", "請問臺灣的首府"),
        ("邮箱格式", "例如 name@example.com；测试卡 4242424242424242"),
        ("圆周率是多少", "3.14159265358979"),
        ("订单号", "20231106123456789012"),
        ("东京", "日本の首都です。東京"),
    ],
)
def test_what_only_looks_dirty_is_not_edited(question, text):
    result = cleaning.clean(dataset([question, text]), options=OPTIONS)
    assert result.kept[0]["messages"][1]["content"] == text and len(result.edits) == 0


LONG = "春天来了，河边的柳树发了芽。孩子们跑到草地上放风筝，老人坐在长椅上晒太阳。" * 2


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("truncated", LONG + "然后我们沿着河边慢慢地往前走，看到了很多新开的花，"),
        ("truncated", LONG + "代码如下：\n```python\nfor i in range(3):\n    print(i"),
        ("truncated", LONG + "\n1. 第一点\n2."),
        ("truncated", LONG * 3 + "春天还是播种的季节。农民们开始在田里忙碌，他们希望今年能有一个很好的收"),
        ("truncated", LONG * 2 + "这个季节也适合我们一家人一起去郊外的"),
        ("truncated", LONG + "\n1. 看花。\n2. 踏青："),
        ("wrong_language", "春は桜がとてもきれいです。みんなで公園に行って、お花見をします。"),
        ("refusal", "该任务无法完成，因为没有给出文本。"),
        ("empty", "无输入"),
        ("repetition", LONG * 3),
        ("repetition", "我们可以尝试不同的方法来解决这个问题。" * 20),
        ("repetition", "好的，" + "谢谢你的提问" * 60),
    ],
)
def test_answers_cut_off_or_stuck_are_dropped(step, answer):
    assert dropped_by("春天有什么？", answer) == step
    assert dropped_by("春天有什么？", LONG) is None


def test_a_conversation_with_a_benchmark_question_is_dropped_where_asked():
    asked = "下列关于光合作用的说法中，正确的一项是哪一个？请从四个选项里选出来。"
    english = "Which part of the cell is known as its powerhouse because it makes most of the energy?"
    found = contamination.Questions(
        [asked, "水的沸点是多少？", english, "Name | Age | ________________________"]
    )
    rows = dataset(
        ["题目：下列关于光合作用的说法中正确的一项是哪一个？请从四个选项里选出来", "甲"],
        ["水的沸点是多少？", "一百度。"],
        ["在高山上，水的沸点是多少？", "低于一百度。"],
        ["翻译", "part of the cell is  KNOWN as its powerhouse, because it makes most of the energy"],
        ["翻译：哪一部分？", "Which part of the cell is known"],
        ["填写", "________________________"],
        ["光合作用是什么？", "植物利用光能制造养分的过程。"],
    )
    assert [row["id"] for row in contamination.overlaps(rows, found)] == ["0", "1", "3"]
    result = cleaning.clean(rows, benchmarks=found)
    assert [row["id"] for row in result.dropped if row["step"] == "contamination"] == ["0", "1", "3"]
    assert "contamination" not in cleaning.clean(rows).dropped["step"]
    again = pickle.loads(pickle.dumps(found))
    assert contamination.overlaps(rows, again) == contamination.overlaps(rows, found)


def test_wrong_calls_are_told():
    with pytest.raises(
        sources.DataError, match=r"no optional step nonsense\. There are: to_simplified, mask_personal"
    ):
        cleaning.clean(dataset(["问", "答"]), options=("nonsense",))
    twice = concatenate_datasets([dataset(["问", "答"]), dataset(["问", "答"])])
    with pytest.raises(sources.DataError, match="The id '0' is there more than once"):
        cleaning.clean(twice)


def many(n: int):
    """Rows with dirt and duplicates, enough for several parts."""
    rng = random.Random(3)
    words = [
        "春天",
        "山水",
        "学习",
        "机器",
        "函数",
        "健康",
        "历史",
        "&lt;",
        "\u200b",
        "美食",
        "旅行",
        "音乐",
        "一",
        "二",
        "三",
    ]
    texts = ["".join(rng.choices(words, k=30)) for _ in range(n // 2)]
    return dataset(*[[rng.choice(texts), rng.choice(texts) + "。" * rng.randrange(2)] for _ in range(n)])


def test_the_number_of_processes_changes_nothing(monkeypatch):
    read = many(600)
    monkeypatch.setattr(parts, "PART", 100)
    one, two = cleaning.clean(read, processes=1), cleaning.clean(read, processes=2)
    assert one.kept.to_list() == two.kept.to_list() and one.dropped.to_list() == two.dropped.to_list()
    assert one.edits.to_list() == two.edits.to_list() and one.report.equals(two.report)
    assert len(one.dropped) and len(one.edits)


INTERRUPTED = """
import json, os, signal, sys
from aurora_lib import cleaning, parts, sources
parts.PART, done = 100, []
clean_part = parts._clean_part
def until_killed(*given):
    done.append(1)
    if len(done) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return clean_part(*given)
parts._clean_part = until_killed
rows = json.load(open(sys.argv[1]))
cleaning.clean(sources.table(rows), processes=1, folder=sys.argv[2])
"""


def test_killed_half_way_it_goes_on_where_it_was(tmp_path, monkeypatch):
    read, folder = many(800), tmp_path / "cleaning"
    (tmp_path / "rows.json").write_text(json.dumps(read.to_list()))
    killed = subprocess.run([sys.executable, "-c", INTERRUPTED, tmp_path / "rows.json", folder])
    assert killed.returncode == -signal.SIGKILL
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("*.arrow")}
    assert len(finished) == 3
    monkeypatch.setattr(parts, "PART", 100)
    resumed = cleaning.clean(read, folder=folder)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished and len(
        list(folder.glob("*.arrow"))
    ) == 8
    whole = cleaning.clean(read)
    assert (
        resumed.kept.to_list() == whole.kept.to_list()
        and resumed.dropped.to_list() == whole.dropped.to_list()
    )
    monkeypatch.setattr(parts, "_clean_part", None)
    assert cleaning.clean(read, folder=folder).kept.to_list() == whole.kept.to_list()  # nothing is done again


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
