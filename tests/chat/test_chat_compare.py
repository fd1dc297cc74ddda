import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch

from aurora_lib import chat
from aurora_lib.chat import comparing as chat_compare
from aurora_lib.course.scale import DATA
from aurora_lib.model import load_adapter, load_model, load_tokenizer

QUESTION = "日本的首都是哪里？"
HAMLET = "Who wrote Hamlet?"


@pytest.fixture(scope="module")
def sides():
    """Sessions of the base and of the tuned tiny model."""
    tokenizer = load_tokenizer(DATA / "tiny")
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    model = load_adapter(base, DATA / "tiny_adapter")
    return [
        chat.ChatSession(model, tokenizer, adapter=adapter, max_new_tokens=40) for adapter in (False, True)
    ]


# comparing


def test_compare_returns_both_answers_with_their_languages(sides):
    rows = chat.compare([QUESTION, HAMLET], *sides)
    assert [row["prompt"] for row in rows] == [QUESTION, HAMLET]
    assert (rows[0]["base language"], rows[0]["tuned language"]) == ("en", "zh")
    assert "Tokyo" in rows[0]["base"] and "东京" in rows[0]["tuned"]
    assert (rows[0]["base Han"], rows[0]["tuned Han"]) == (0, 1)
    assert all(row[f"{name} tokens/s"] > 1 for row in rows for name in ("base", "tuned"))
    assert list(pd.DataFrame(rows)["base language"]) == ["en", "en"]


def test_conversations_of_the_two_sessions_stay_as_they_are(sides):
    base, tuned = sides
    tuned.say("你好")
    before = list(tuned.messages)
    alone = chat.compare([QUESTION], base, tuned)[0]["tuned"]
    assert tuned.messages == before and base.messages == []
    tuned.reset()
    assert tuned.say(QUESTION).strip() == alone, "an earlier conversation leaked into the comparison"
    tuned.reset()


def test_turns_of_a_list_are_one_conversation_and_every_prompt_begins_anew(sides, monkeypatch):
    seen, prompt_of = [], chat.ChatSession._prompt

    def spy(session):
        seen.append([message["content"] for message in session.messages if message["role"] != "assistant"])
        return prompt_of(session)

    monkeypatch.setattr(chat.ChatSession, "_prompt", spy)
    system = {
        "id": "1",
        "scale": "",
        "kind": "",
        "source": "",
        "language": "zh",
        "prompts": ["再见！"],
        "system": "S",
    }
    rows = chat.compare([["你好", QUESTION], system, HAMLET], *sides)
    once = [["你好"], ["你好", QUESTION]]
    assert seen == once * 2 + [["S", "再见！"]] * 2 + [[HAMLET]] * 2
    assert rows[0]["prompt"] == f"你好\n{QUESTION}" and len(rows[0]["tuned answers"]) == 2
    assert rows[0]["tuned"] == "\n".join(rows[0]["tuned answers"]) and "东京" in rows[0]["tuned answers"][1]


def test_prompt_that_does_not_fit_is_reported_and_the_others_are_answered(sides):
    rows = chat.compare(["很长。" * 1000, QUESTION], *sides)
    assert re.search(r"not answered: .*\d+ tokens.*Shorten", rows[0]["tuned"]) and "东京" in rows[1]["tuned"]
    assert rows[0]["tuned tokens/s"] is None and "not answered" in rows._repr_html_()


@pytest.mark.parametrize("prompt", [3, [], ["a", 3], {"prompts": ["a"]}, ""])
def test_prompt_of_another_shape_is_refused_before_anything_is_asked(sides, prompt):
    with pytest.raises(chat_compare.PromptError, match="prompt 2"):
        chat.compare([QUESTION, prompt], *sides)


def test_tuned_tiny_model_answers_its_prompts_in_their_language_and_the_base_does_not(sides):
    rows = chat.compare(chat.prompts("tiny"), *sides)
    chinese = [row for row in rows if row["language"] == "zh"]
    assert sum(row["tuned language"] == "zh" for row in chinese) >= 0.8 * len(chinese) >= 8
    assert sum(row["base language"] == "zh" for row in chinese) <= 0.2 * len(chinese)
    checked = [row for row in rows if "reference" in row]
    assert sum(row["base right"] for row in checked) >= 0.8 * len(checked), (
        "the base knows the facts, in English"
    )
    total = rows.summary()
    kept = sum(row["tuned language"] == row["language"] for row in rows)
    assert total["answered in the language asked for, tuned"] == f"{kept} of {len(rows)}"
    assert total["names the reference, base"].endswith(f"of {len(checked)}")


# what is measured


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("东京", 1.0),
        ("东京 is big", 2 / 7),
        ("Tokyo!", 0.0),
        ("12 + 3", None),
        ("北京`print()`", 1.0),
        ("", None),
    ],
)
def test_han_share_counts_letters_outside_code(text, share):
    assert chat_compare.han_share(text) == share


@pytest.mark.parametrize(
    ("answer", "part", "named"),
    [
        ("一共是360盒。", "360|三百六十", True),
        ("一共是三百六十盒。", "360|三百六十", True),
        ("1360 in all", "360", False),
        ("3600 in all", "360", False),
        ("360.5", "360", False),
        ("That makes 360.", "360", True),
        ("1,200 people", "1200", True),
        ("nineteen", "nine", False),
        ("Nine.", "nine", True),
        ("北极熊生活在沙漠", "北极", False),
    ],
)
def test_reference_is_named_only_as_a_number_or_word_of_its_own(answer, part, named):
    assert chat_compare._says(answer, "北极熊生活在哪里？", part) is named


# the HTML


class Page(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.texts.append(data)


def test_html_escapes_every_text_and_leaves_formulas_alone():
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:b) $x$ \x1b[31m"
    row = dict.fromkeys(("id", "scale", "kind", "source", "system", "paper", "base", "tuned", "prompt"), evil)
    row |= {"prompts": [evil], "reference": [evil], "language": "zh"}
    for name in ("base", "tuned"):
        row |= {f"{name} answers": [evil], f"{name} language": "en", f"{name} Han": 0.5}
        row |= {f"{name} tokens/s": 3.0, f"{name} right": False}
    made = chat_compare.Comparison([row])._repr_html_()
    page = Page(made)
    assert page.tags == {"div", "table", "tr", "td", "b", "small", "ul", "li"}
    assert page.attributes == {"class", "style", "colspan"}
    assert "".join(page.texts).count("<script>alert(1)</script>") == 8 and "\x1b" not in made
    assert re.match(r'<div class="[^"]*\bmathjax_ignore\b', made)


def test_html_shows_prompt_answers_figures_and_the_papers_note_in_words(sides):
    (row,) = [row for row in chat.prompts("tiny") if row["id"] == "tiny-multi-turn"]
    made = chat.compare([row], *sides)._repr_html_()
    text = "\n".join(Page(made).texts)
    for needed in (
        "multi-turn · Appendix G",
        "日本人说什么语言？",
        "0 % Han",
        "100 % Han",
        "tokens/s",
        row["paper"],
    ):
        assert needed in text
    assert "names the reference" in text and "1 of 1" in text
    assert text.index("base:") < text.index("tuned:")


# the bundled prompts


def test_full_prompts_cover_the_twelve_kinds_of_the_paper_each_with_its_note():
    rows = chat.prompts("full")
    sources = {row["kind"]: row["source"] for row in rows}
    appendices = [source for source in sources.values() if source != "Introduction"]
    assert sorted(appendices) == [f"Appendix {letter}" for letter in "ABCDEFGHI"]
    assert len(sources) == 12 and list(sources.values()).count("Introduction") == 3
    assert all(row.get("paper", "").endswith(".") for row in rows)
    assert len({row["id"] for row in rows + chat.prompts("tiny")}) == len(rows) + len(chat.prompts("tiny"))
    assert any(len(row["prompts"]) > 2 for row in rows if row["kind"] == "multi-turn")


def test_references_of_the_arithmetic_prompts_are_right():
    sums = {row["id"]: row for row in chat.prompts("full") if row["kind"] == "arithmetic"}
    books, groups = map(int, re.findall(r"\d+", sums["arithmetic-1"]["prompts"][0]))
    cartons, boxes = map(int, re.findall(r"\d+", sums["arithmetic-2"]["prompts"][0]))
    assert sums["arithmetic-1"]["reference"][0].split("|")[0] == f"{books // groups}" and books % groups == 0
    assert sums["arithmetic-2"]["reference"][0].split("|")[0] == f"{cartons * boxes}"


def test_bug_of_the_code_prompt_is_the_one_its_reference_mends():
    (row,) = [row for row in chat.prompts("full") if row["id"] == "code-2"]
    source = re.search(r"```python\n(.*)```", row["prompts"][0], re.S)[1]
    results = []
    for mended in (source, source.replace("total = number", row["reference"][0].split("|")[0])):
        names = {}
        exec(mended, names)
        results.append(names["mean"]([1, 2, 6]))
    assert results[0] != 3 and results[1] == 3


def test_references_of_the_tiny_prompts_are_the_probes_keys():
    probes = [json.loads(line) for line in (DATA / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = {
        item[side]["question"]: {item["zh"]["key"], item["en"]["key"]}
        for item in probes
        for side in ("zh", "en")
    }
    rows = [row for row in chat.prompts("tiny") if "reference" in row]
    for row in rows:
        assert set(row["reference"][0].split("|")) == keys[row["prompts"][-1]]
    assert len(rows) >= 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": "你好"}, "line 2: 'prompts' is missing or of the wrong type"),
        ({"prompts": []}, "line 2: 'prompts' must be a list of texts"),
        ({"prompts": ["你好", " "]}, "line 2: 'prompts' must be a list of texts"),
        ({"language": 3}, "line 2: 'language'"),
        ({"referense": ["9"]}, "line 2 has unknown columns: referense"),
        ({"id": None}, "line 2: 'id'"),
    ],
)
def test_bad_row_is_named_with_its_line(tmp_path, change, said):
    row = chat.prompts("tiny")[0]
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | change)}\n", encoding="utf-8")
    with pytest.raises(chat_compare.PromptError, match=f"mine.jsonl, {re.escape(said)}"):
        chat.prompts("tiny", path)


def test_file_that_is_missing_broken_or_for_another_scale_is_refused(tmp_path):
    path = tmp_path / "mine.jsonl"
    with pytest.raises(chat_compare.PromptError, match=r"mine.jsonl is missing"):
        chat.prompts("tiny", path)
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(chat_compare.PromptError, match="line 1 is no object"):
        chat.prompts("tiny", path)
    path.write_text('{"id":\n', encoding="utf-8")
    with pytest.raises(chat_compare.PromptError, match="line 1 is no JSON"):
        chat.prompts("tiny", path)
    path.write_text(json.dumps(chat.prompts("tiny")[0]), encoding="utf-8")
    assert len(chat.prompts("tiny", path)) == 1
    with pytest.raises(chat_compare.PromptError, match=r"'medium'.*tiny"):
        chat.prompts("medium", path)
