import re
import threading
from itertools import pairwise

import pytest

from aurora_lib.chat import ChatBox, ChatSession
from tests.chat.speakers import Scripted, fail

QUESTION = "日本的首都是哪里？"
SETTINGS = dict(system="只用中文。", temperature=0.7, top_p=0.9, max_new_tokens=7, seed=5, adapter=False)


class Browser:
    """A chat box as its page sees it: what is pressed goes in as messages, what is shown are its traits."""

    def __init__(self, sessions):
        self.before = set(threading.enumerate())
        self.box, self.got, self.answers = ChatBox(sessions), [], []
        self.box.send = self.got.append
        self.box.observe(lambda change: self.answers.append(change["new"]["said"][-1][1]), "answer")

    def press(self, action, **rest):
        self.box._handle_custom_msg({"action": action, **rest}, [])  # of ipywidgets

    def threads(self):
        return set(threading.enumerate()) - self.before

    def wait(self):
        for thread in self.threads():
            thread.join(timeout=20)
        assert not self.threads() and not self.box.busy

    def say(self, text):
        self.press("ask", text=text)
        self.wait()

    def shown(self):
        return [text for turn in self.box.transcript for _, text in turn["said"]]


@pytest.fixture
def session(model, tokenizer):
    return ChatSession(model, tokenizer, max_new_tokens=20)


@pytest.fixture
def page(session):
    page = Browser(session)
    yield page
    page.box.close()


@pytest.fixture
def pair(session, model, tokenizer):
    """The page of base and tuned."""
    base = ChatSession(model, tokenizer, max_new_tokens=20, adapter=False)
    yield (page := Browser({"base": base, "tuned": session}))
    page.box.close()


@pytest.fixture
def talking(page, session):
    """The page while an answer streams that comes to no end by itself."""
    begun = threading.Event()
    session.max_new_tokens = 30_000
    session.model.config.max_position_embeddings += 30_000
    Scripted(session, "▁a", begun.set, then="▁a")
    page.press("ask", text="你好")
    assert begun.wait(20)
    yield page
    session.model.config.max_position_embeddings -= 30_000


def test_answer_streams_in_and_stays(page, session, tokenizer):
    page.say(QUESTION)
    said = session.messages[1]["content"]
    assert "东京" in said and page.shown() == [QUESTION, said]
    *partial, last = page.answers
    assert partial and last == "" and all(said.startswith(text.strip()) for text in partial)
    used, room = session.context
    new = len(tokenizer.tokenize(said)) + 1  # with the end token
    assert f"prompt {used} of {room} tokens · answer {new} tokens · " in page.box.status
    assert "tokens/s · first after" in page.box.status and "old turns" not in page.box.status


def test_fast_answer_is_drawn_less_often_than_it_has_pieces(page, session):
    session.max_new_tokens = 100
    Scripted(session, then="▁a")
    page.say("你好")
    assert 1 < len(page.answers) < 50 and session.messages[1]["content"].count("a") == 100
    assert all(later.startswith(earlier) for earlier, later in pairwise(page.answers[:-1]))


def test_stop_ends_within_one_token_and_leaves_no_thread(page, session):
    Scripted(session, *["▁a"] * 4, lambda: page.press("stop"), then="▁a")
    page.say("你好")
    assert session.messages[-1]["content"] == "a a a a a" == page.shown()[1] and page.box.trouble == ""


def test_nothing_is_taken_while_an_answer_streams_and_the_message_is_given_back(talking, session):
    assert talking.box.busy and talking.shown() == ["你好"]
    talking.press("ask", text="再见")
    talking.press("regenerate")
    talking.press("change", name="temperature", value="1")
    assert len(talking.threads()) == 1 and talking.got == [{"refused": "再见"}]
    talking.press("stop")
    talking.wait()
    assert talking.shown() == ["你好", session.messages[1]["content"]] and session.temperature == 0


def test_reset_during_an_answer_clears_everything(talking, session):
    talking.press("reset")
    assert not talking.threads() and session.messages == [] == talking.shown()
    assert not talking.box.busy and talking.box.status == ""


def test_buttons_without_an_answer_do_nothing(page, session):
    for action in ("stop", "regenerate", "close", "no such action"):
        page.press(action)
    page.say("  \n")
    assert session.messages == [] and page.got == [] and page.box.comm


def test_settings_reach_the_session(page, session):
    for name, value in SETTINGS.items():
        page.press("change", name=name, value=value if name == "adapter" else str(value))
    assert {name: getattr(session, name) for name in SETTINGS} == SETTINGS == page.box.settings
    page.press("reset")
    assert page.shown() == ["只用中文。"]
    page.say(QUESTION)
    assert session.stats.new_tokens == 7


NONSENSE = {"temperature": "nan", "max_new_tokens": "2.5", "seed": "9" * 30, "top_p": ""}


@pytest.mark.parametrize(("name", "value"), NONSENSE.items())
def test_setting_that_makes_no_sense_is_refused_in_a_sentence(page, name, value):
    before = dict(page.box.settings)
    page.press("change", name=name, value=value)
    assert f"{name} cannot be '{value}': give a" in page.box.trouble and page.box.settings == before
    page.press("change", name="top_p", value="0.5")
    assert page.box.trouble == "" and page.box.settings == before | {"top_p": 0.5}


def test_model_without_an_adapter_is_offered_none(model, tokenizer):
    page = Browser(ChatSession(model.get_base_model(), tokenizer, adapter=False, max_new_tokens=4))
    page.say("你好")
    assert set(page.box.settings) == set(SETTINGS) - {"adapter"} and page.shown()[1]
    page.box.close()


def test_what_is_wrong_is_said_and_the_message_given_back(page, session):
    page.say("很长。" * 1000)
    assert "Shorten it" in page.box.trouble and session.messages == [] == page.shown()
    assert page.got == [{"refused": "很长。" * 1000}]
    Scripted(session, fail)
    page.say("你好")
    assert page.box.trouble == "CUDA out of memory" and not page.box.busy
    page.say("再见")
    assert page.box.trouble == "" and [one["role"] for one in session.messages] == ["user", "assistant"] * 2


def test_turns_that_no_longer_fit_are_counted(page, session):
    session.max_new_tokens = session.model.config.max_position_embeddings - 40
    for _ in range(4):
        page.say("你好")
    said = f"{session.forgotten} old turns no longer fit the context window"
    assert session.forgotten and said in page.box.status


def test_control_codes_are_shown_and_a_page_without_a_kernel_has_the_conversation(page, session):
    view = "application/vnd.jupyter.widget-view+json"
    empty, _ = page.box._repr_mimebundle_()
    assert "where the notebook runs" in empty["text/html"] and view in empty
    page.say("\x1b[31m<b>")
    assert page.shown()[0] == "␛[31m<b>" and session.messages[0]["content"] == "\x1b[31m<b>"
    shown = page.box._repr_mimebundle_()[0]["text/html"]
    assert "<b>You:</b> ␛[31m&lt;b&gt;" in shown and session.messages[1]["content"] in shown


def test_a_question_goes_to_both_models_and_each_answers_in_its_column(pair):
    for question, named in ((QUESTION, ("Tokyo", "东京")), ("那它的货币呢？", ("yen", "日元"))):
        pair.say(question)
        said = pair.box.transcript[-1]["said"]
        assert [name for name, _ in said] == ["base", "tuned"]
        assert all(word in text for word, (_, text) in zip(named, said, strict=True))
    assert [line.split(": prompt")[0] for line in pair.box.status.splitlines()] == ["base", "tuned"]
    cells = re.findall(r'colspan="(.)"><b>(.+?):</b>', pair.box._repr_mimebundle_()[0]["text/html"])
    assert cells == [("2", "You"), ("1", "base"), ("1", "tuned")] * 2
    pair.press("change", name="temperature", value="9")
    before = pair.shown()
    pair.press("regenerate")
    assert pair.shown() == before[:4]  # the old answers are gone at once
    pair.wait()
    assert pair.shown()[:4] == before[:4] and not set(before[4:]) & set(pair.shown()[4:])
    pair.press("reset")
    assert pair.shown() == [] and "adapter" not in pair.box.settings


def test_models_beside_each_other_stay_at_the_same_question_whatever_happens(pair, session):
    base, _ = pair.box.sessions
    Scripted(base, lambda: pair.press("stop"), then="▁a")
    pair.say("你好")
    before = pair.shown()
    session.max_new_tokens = 30_000  # no question fits beside such an answer
    pair.say("再见")
    pair.press("regenerate")
    pair.wait()
    assert "Shorten it" in pair.box.trouble and pair.got[0] == {"refused": "再见"}
    assert pair.shown() == before and len(before) == 3
    session.reset()
    for sessions in ({}, {"base": base, "tuned": session}, [base], {"base": base.model}):
        with pytest.raises(ValueError, match="asked the same"):
            ChatBox(sessions)


def test_front_end_never_sets_html(page):
    script = str(page.box._esm)
    ways = "innerHTML outerHTML insertAdjacentHTML document.write DOMParser eval Function("
    assert "textContent" in script and [way for way in ways.split() if way in script] == []
