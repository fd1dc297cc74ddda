import re

import pytest

from aurora_lib.chat import ChatSession, compare_models, prompts
from aurora_lib.chat.comparing import Comparison, names
from aurora_lib.evaluation import load_probes
from tests.course.test_html import read

QUESTION = "日本的首都是哪里？"
HAMLET = "Who wrote Hamlet?"
JAPAN = {"prompts": [QUESTION], "language": "zh"}


@pytest.fixture
def sides(model, tokenizer):
    """Sessions of the base and of the tuned tiny model."""
    return [ChatSession(model, tokenizer, adapter=adapter, max_new_tokens=40) for adapter in (False, True)]


def test_both_models_answer_and_a_prompt_that_does_not_fit_is_reported(sides):
    rows = compare_models([JAPAN | {"prompts": ["很长。" * 1000, "你好"]}, JAPAN], *sides)
    assert re.search(r"not answered: .*\d+ tokens.*Shorten", rows[0]["tuned"]["answers"][0])
    assert "not answered" in rows._repr_html_()
    japan = rows[1]
    assert (japan["base"]["language"], japan["tuned"]["language"]) == ("en", "zh")
    assert "Tokyo" in japan["base"]["answers"][0] and "东京" in japan["tuned"]["answers"][0]
    assert all(japan[name]["right"] is None for name in ("base", "tuned"))


def test_every_prompt_is_a_conversation_of_its_own_and_the_sessions_stay_as_they_are(sides, model, tokenizer):
    base, tuned = sides
    tuned.system = "只用中文回答。"
    tuned.say("你好")
    before = list(tuned.messages)
    asked = [JAPAN | {"prompts": ["你好", QUESTION]}, JAPAN | {"prompts": [HAMLET], "system": "S"}]
    rows = compare_models(asked, base, tuned)
    assert tuned.messages == before and base.messages == [] and "base" not in asked[0]
    alone = ChatSession(model, tokenizer, system="只用中文回答。", max_new_tokens=40)
    assert rows[0]["tuned"]["answers"] == [alone.say("你好").strip(), alone.say(QUESTION).strip()]
    alone.system = "S"
    alone.reset()
    assert rows[1]["tuned"]["answers"] == [alone.say(HAMLET).strip()]


def test_tuned_tiny_model_answers_its_prompts_in_their_language_and_the_base_does_not(sides):
    rows = compare_models(prompts("tiny"), *sides)
    (row,) = [row for row in rows if row["id"] == "tiny-multi-turn"]
    shown = ["multi-turn: Appendix G", "en · names the", "zh · names the", *row["prompts"], row["paper"]]
    assert [words for words in shown if words not in read(rows._repr_html_())[1]] == []
    chinese = [row for row in rows if row["language"] == "zh"]
    assert sum(row["tuned"]["language"] == "zh" for row in chinese) >= 0.8 * len(chinese) >= 8
    assert sum(row["base"]["language"] == "zh" for row in chinese) <= 0.2 * len(chinese)
    checked = [row for row in rows if "reference" in row]
    known = sum(row["base"]["right"] for row in checked)
    assert known >= 0.8 * len(checked), "the base knows the facts, in English"
    kept = sum(row["tuned"]["language"] == row["language"] for row in rows)
    assert rows.summary()["answered in the language asked for, tuned"] == f"{kept} of {len(rows)}"
    assert rows.summary()["names the reference, base"] == f"{known} of {len(checked)}"


NAMED = ["一共是360盒。", "一共是三百六十盒。", "That makes 360."]
NOT_NAMED = ["1360 in all", "3600 in all", "360.5", "三百六"]


@pytest.mark.parametrize("answer", NAMED + NOT_NAMED)
def test_reference_is_named_only_as_a_number_or_word_of_its_own(answer):
    assert names(answer, "How many?", "360|三百六十") is (answer in NAMED)


def test_html_escapes_every_text_and_leaves_formulas_alone():
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:b) $x$ \x1b[31m"
    side = {"answers": [evil], "language": "en", "right": False}
    row = dict.fromkeys(("kind", "source", "system", "paper"), evil)
    row |= {"prompts": [evil], "reference": [evil], "language": "zh", "base": side, "tuned": side}
    made = Comparison([row])._repr_html_()
    tags, text = read(made)
    assert {tag for tag, _ in tags} == {"table", "tr", "td", "b", "ul", "li"}
    assert {name for _, names in tags for name in names} == {"class", "style", "colspan"}
    assert text.count("<script>alert(1)</script>") == 8 and "\x1b" not in made
    assert re.match(r'<table class="[^"]*\bmathjax_ignore\b', made)


NEEDED = {"id": str, "scale": str, "kind": str, "source": str, "prompts": list, "language": str | None}
TYPES = NEEDED | {"system": str, "reference": list, "paper": str}


def test_every_bundled_prompt_is_whole_and_the_full_ones_cover_the_papers_twelve_kinds_with_a_note():
    rows = prompts("tiny") + prompts("full")
    assert prompts("mid") == prompts("full")
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert NEEDED.keys() <= row.keys() <= TYPES.keys(), row["id"]
        assert all(isinstance(value, TYPES[name]) for name, value in row.items()), row["id"]
        assert all(text.strip() for text in row["prompts"] + row.get("reference", ["-"])), row["id"]
    sources = {row["kind"]: row["source"] for row in prompts("full")}
    assert sorted(sources.values()) == [f"Appendix {letter}" for letter in "ABCDEFGHI"] + 3 * ["Introduction"]
    assert all(row.get("paper", "").endswith(".") for row in prompts("full"))


def test_references_of_the_full_prompts_are_right():
    rows = {row["id"]: row for row in prompts("full")}
    books, groups = map(int, re.findall(r"\d+", rows["arithmetic-1"]["prompts"][0]))
    cartons, boxes = map(int, re.findall(r"\d+", rows["arithmetic-2"]["prompts"][0]))
    right = {name: row["reference"][0].split("|")[0] for name, row in rows.items() if "reference" in row}
    assert right["arithmetic-1"] == f"{books // groups}" and books % groups == 0
    assert right["arithmetic-2"] == f"{cartons * boxes}"
    source = re.search(r"```python\n(.*)```", rows["code-2"]["prompts"][0], re.S)[1]
    means = []
    for code in (source, source.replace("total = number", right["code-2"])):
        exec(code, found := {})
        means.append(found["mean"]([1, 2, 6]))
    assert means[0] != 3 == means[1]


def test_references_of_the_tiny_prompts_are_the_probes_keys():
    both = [(fact["zh"], fact["en"]) for fact in load_probes()]
    keys = {side["question"]: {one["key"] for one in pair} for pair in both for side in pair}
    keys["那它的货币呢？"] = keys["日本的货币是什么？"]  # asked after the capital of Japan
    rows = [row for row in prompts("tiny") if "reference" in row]
    assert len(rows) >= 6
    assert all(set(row["reference"][0].split("|")) == keys[row["prompts"][-1]] for row in rows)
