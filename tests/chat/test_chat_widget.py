import threading
import time
from html.parser import HTMLParser

import pytest
import torch

from aurora_lib import chat
from aurora_lib.chat import box as chat_widget

QUESTION = "日本的首都是哪里？"
EVIL = "<script>alert('你好')</script> [a](javascript:alert(1)) & \"5 < 6\""


@pytest.fixture
def session(model, tokenizer):
    return chat.ChatSession(model, tokenizer, max_new_tokens=20)


@pytest.fixture
def box(session):
    box = Browser(session)
    yield box
    box.widget.close()


@pytest.fixture
def endless(session, monkeypatch):
    """Make `session` talk for a long time; an event set once it has begun."""
    begun = threading.Event()

    def choose(logits):
        begun.set()
        return torch.tensor([[session.tokenizer.convert_tokens_to_ids("▁a")]])

    monkeypatch.setattr(session, "_choose", choose)
    session.max_new_tokens = 1500
    return begun


class Browser:
    """A chat widget as its page sees it: what is pressed goes in as messages, what is shown are its traits."""

    def __init__(self, session):
        self.before = set(threading.enumerate())
        self.widget, self.got, self.answers = chat.widget(session), [], []
        self.widget.send = self.got.append
        self.widget.observe(lambda change: self.answers.append(change["new"]), "answer")

    def press(self, action, **rest):
        self.widget._handle_custom_msg({"action": action, **rest}, [])

    def say(self, text):
        self.press("ask", text=text)
        self.wait()

    def threads(self):
        return set(threading.enumerate()) - self.before

    def wait(self):
        for thread in self.threads():
            thread.join(timeout=20)
        assert not self.threads() and not self.widget.busy

    def shown(self):
        return [bubble["content"] for bubble in self.widget.transcript]


# the static transcript


def read(page):
    """Tags with their attributes, and the text between them; line breaks count as text."""
    tags, texts = [], []

    def start(tag, attributes):
        texts.append("\n") if tag == "br" else tags.append((tag, [name for name, _ in attributes]))

    parser = HTMLParser()
    parser.handle_starttag, parser.handle_data = start, texts.append
    parser.feed(page)
    return tags, "".join(texts).replace("\xa0", " ")


def test_html_escapes_every_text():
    tags, text = read(
        chat.to_html([{"role": role, "content": EVIL} for role in ("system", "user", "assistant")])
    )
    assert tags == [("div", ["style"]), ("b", [])] * 3
    assert text == "".join(f"{name}: {EVIL}" for name in ("System", "You", "Model"))


def test_html_keeps_lines_and_indents_without_any_style():
    code = "def f():\n    return '你  好'\n\n\nf()"
    assert read(chat.to_html([{"role": "assistant", "content": code}]))[1] == f"Model: {code}"
    assert "\n" not in chat.to_html([{"role": "assistant", "content": code}])  # a page would show a space


def test_escape_codes_become_visible_signs(box, session):
    page = chat.to_html([{"role": "assistant", "content": "\x1b[31mred\x07\x7f\tend"}])
    assert "␛[31mred␇␡\tend" in page
    box.say("\x1b[31m")
    assert box.shown()[0] == "␛[31m" and session.messages[0]["content"] == "\x1b[31m"


def test_html_of_an_empty_answer_still_shows_a_bubble():
    assert "…" in chat.to_html([{"role": "assistant", "content": ""}])


def test_widget_carries_its_conversation_for_pages_without_a_kernel(box, session):
    widget = "application/vnd.jupyter.widget-view+json"
    empty, _ = box.widget._repr_mimebundle_()
    assert "where the notebook runs" in empty["text/html"] and widget in empty
    box.say(EVIL)
    bundle, _ = box.widget._repr_mimebundle_()
    assert bundle["text/html"] == chat.to_html(session.messages) and "&lt;script&gt;" in bundle["text/html"]


# the widget


def test_answer_streams_in_and_stays(box, session):
    box.say(QUESTION)
    assert box.got == [{"taken": QUESTION}]
    assert "东京" in box.shown()[1] and box.shown() == [m["content"] for m in session.messages]
    *partial, last = box.answers
    assert (
        last == "" and partial and all(session.messages[1]["content"].startswith(p.strip()) for p in partial)
    )


def test_slow_answer_is_drawn_piece_by_piece_and_a_fast_one_about_fifteen_times_a_second(
    box, session, endless
):
    box.press("ask", text="你好")
    assert endless.wait(20)
    began = time.monotonic()
    time.sleep(1)
    box.press("stop")
    box.wait()
    drawn = len(box.answers) / (time.monotonic() - began)
    assert 4 < drawn < 17 and len(session.messages[1]["content"].split()) > len(box.answers)
    assert all(
        later.startswith(earlier) for earlier, later in zip(box.answers, box.answers[1:-1], strict=False)
    )


def test_question_is_shown_before_its_first_token(box, session, monkeypatch):
    go = threading.Event()
    choose = session._choose
    monkeypatch.setattr(session, "_choose", lambda logits: go.wait(20) and choose(logits))
    box.press("ask", text=QUESTION)
    assert box.shown() == [QUESTION] and box.widget.busy and box.widget.answer == ""
    go.set()
    box.wait()


def test_status_tells_tokens_and_speed(box, session, tokenizer):
    box.say(QUESTION)
    prompt = tokenizer.apply_chat_template(session.messages[:1], tokenize=False)
    used = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    said = len(tokenizer.tokenize(session.messages[1]["content"])) + 1  # and the end token
    room = session.model.config.max_position_embeddings - 20
    status = box.widget.status
    assert f"prompt {used} of {room} tokens · answer {said} tokens" in status
    assert "tokens/s" in status and "first after" in status and "old turns" not in status


def test_stop_ends_the_answer_and_leaves_no_thread(box, session, endless):
    box.press("ask", text="你好")
    assert endless.wait(20)
    box.press("stop")
    box.wait()
    assert session.messages[-1]["role"] == "assistant"
    assert 0 < len(session.messages[-1]["content"].split()) < 1500
    assert box.shown()[1] == session.messages[1]["content"] and box.widget.trouble == ""


def test_stop_ends_within_one_token(box, session, endless, monkeypatch):
    made, choose = [], session._choose

    def press_stop(logits):
        made.append(1)
        if len(made) == 5:
            box.press("stop")
        return choose(logits)

    monkeypatch.setattr(session, "_choose", press_stop)
    box.say("你好")
    assert len(made) == 5


def test_message_sent_while_an_answer_streams_is_not_taken(box, session, endless):
    box.press("ask", text="你好")
    assert endless.wait(20)
    box.press("ask", text="再见")
    box.press("regenerate")
    box.press("change", name="temperature", value="1")
    assert len(box.threads()) == 1 and {"taken": "再见"} not in box.got
    box.press("stop")
    box.wait()
    assert [m["content"] for m in session.messages if m["role"] == "user"] == ["你好"]
    assert session.temperature == 0


def test_reset_during_an_answer_clears_everything(box, session, endless):
    box.press("ask", text="你好")
    assert endless.wait(20)
    box.press("reset")
    assert not box.threads() and session.messages == [] == box.shown()
    assert not box.widget.busy and box.widget.status == ""


@pytest.mark.parametrize("close", ["close", "run the cell again"])
def test_closed_widget_leaves_no_thread(box, session, endless, close):
    box.press("ask", text="你好")
    assert endless.wait(20)
    again = chat.widget(session) if close != "close" else box.widget
    if close == "close":
        box.widget.close()
    assert not box.threads() and box.widget.comm is None
    assert not again.busy and len(session.messages) == 2
    again.close()


def test_regenerate_replaces_the_last_answer(box, session):
    session.temperature = 3.0
    box.say("你好")
    box.say(QUESTION)
    before = box.shown()
    box.press("regenerate")
    assert box.shown()[:3] == before[:3]  # the old answer is gone at once
    box.wait()
    after = box.shown()
    assert after[:3] == before[:3] and len(after) == 4 and after[3] != before[3]


def test_system_message_is_shown_and_stays_after_reset(model, tokenizer):
    box = Browser(chat.ChatSession(model, tokenizer, system="只用中文回答。"))
    assert box.shown() == ["只用中文回答。"]
    box.press("reset")
    assert box.shown() == ["只用中文回答。"] and box.widget.transcript[0]["name"] == "System"
    box.widget.close()


def test_buttons_without_an_answer_do_nothing(box, session):
    for action in ("stop", "regenerate"):
        box.press(action)
    box.press("ask", text="  \n")
    assert not box.threads() and session.messages == [] and box.got == []


SETTINGS = dict(system="只用中文。", temperature=0.7, top_p=0.9, max_new_tokens=7, seed=5, adapter=False)


def test_settings_reach_the_session(box, session):
    for name, value in SETTINGS.items():
        box.press("change", name=name, value=value if name == "adapter" else str(value))
    assert {name: getattr(session, name) for name in SETTINGS} == SETTINGS == box.widget.settings
    assert box.shown() == ["只用中文。"]
    session.temperature = 0
    box.say(QUESTION)
    assert session.stats.new_tokens == 7


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("top_p", "1.5"),
        ("max_new_tokens", "0"),
        ("max_new_tokens", "2.5"),
        ("seed", ""),
        ("seed", "9" * 30),
    ],
)
def test_setting_that_makes_no_sense_is_refused_in_a_sentence(box, session, name, value):
    before = dict(box.widget.settings)
    box.press("change", name=name, value=value)
    assert f"{name} cannot be '{value}': give a" in box.widget.trouble
    assert box.widget.settings == before == {name: getattr(session, name) for name in before}
    assert box.got == [{"settings": True}]
    box.press("change", name="temperature", value="1")
    assert box.widget.trouble == ""


def test_adapter_is_offered_only_where_there_is_one(model, tokenizer):
    box = Browser(chat.ChatSession(model.get_base_model(), tokenizer))
    assert set(box.widget.settings) == set(SETTINGS) - {"adapter"}
    box.widget.close()


def test_what_is_wrong_is_said_and_the_message_given_back(box, session, model, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 60)
    long = "很长。" * 40
    box.say(long)
    assert "Shorten it" in box.widget.trouble and session.messages == [] == box.shown()
    assert box.got[-1] == {"refused": long}
    box.say("你好")
    assert box.widget.trouble == "" and len(session.messages) == 2


def test_turns_that_no_longer_fit_are_marked_and_counted(box, session, model, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 60)
    for _ in range(4):
        box.say("你好")
    left = session.forgotten
    assert left and f"{left} old turns no longer fit the context window" in box.widget.status
    marks = [bubble["forgotten"] for bubble in box.widget.transcript]
    assert marks == [True] * 2 * left + [False] * (8 - 2 * left)


def test_error_of_the_model_is_said_in_one_line(box, session, monkeypatch):
    def fail(logits):
        raise RuntimeError("CUDA\n  out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(session, "_choose", fail)
        box.say("你好")
    assert box.widget.trouble == "CUDA out of memory" and not box.widget.busy
    box.say("再见")
    assert box.widget.trouble == "" and box.shown()[-1]


def test_front_end_never_sets_html():
    for part in (chat_widget.ChatWidget._esm, chat_widget.ChatWidget._css):
        assert str(part).strip()
    script = str(chat_widget.ChatWidget._esm)
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "eval",
        "Function(",
    ):
        assert way not in script
