import threading
from html.parser import HTMLParser

import ipywidgets
import pytest
import torch

from aurora_lib import adapters, chat, nf4, tokenizer
from aurora_lib.scale import DATA

QUESTION = "日本的首都是哪里？"
HAMLET = "Who wrote Hamlet?"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small gain nothing from a second thread, and lose much where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def words():
    return tokenizer.load(DATA / "tiny")


@pytest.fixture(scope="module")
def model():
    base = nf4.load(DATA / "tiny", dtype=torch.float32, device="cpu")
    return adapters.load_adapter(base, DATA / "tiny_adapter")


@pytest.fixture
def session(model, words):
    return chat.ChatSession(model, words, max_new_tokens=20)


@pytest.fixture
def prompts(model, monkeypatch):
    """The ids of every prompt put to the model (its first step, without a cache)."""
    seen, run = [], model.forward

    def forward(*args, **kwargs):
        if kwargs["past_key_values"] is None:
            seen.append(kwargs["input_ids"])
        return run(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    return seen


def speak(session, monkeypatch, tokens):
    """Make `session` say these tokens, then the end token, whatever its model finds likely."""
    ids = iter([*session.tokenizer.convert_tokens_to_ids(tokens), session.tokenizer.eos_token_id])
    monkeypatch.setattr(session, "_choose", lambda logits: torch.tensor([[next(ids)]]))


# sessions


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_streamed_pieces_joined_are_what_say_returns(model, words, temperature):
    streaming, saying = (
        chat.ChatSession(model, words, max_new_tokens=12, temperature=temperature, seed=3) for _ in range(2)
    )
    for question in ("你好", HAMLET):
        pieces = list(streaming.stream(question))
        assert len(pieces) > 3 and all(pieces)
        assert "".join(pieces) == saying.say(question)
    assert streaming.messages == saying.messages and len(saying.messages) == 4


def test_seed_decides_what_is_sampled(model, words):
    def talk(seed):
        return chat.ChatSession(model, words, temperature=3.0, seed=seed, max_new_tokens=12).say("你好")

    assert talk(1) == talk(1) != talk(2)


def test_same_talk_after_reset_gives_the_same_answers(model, words):
    session = chat.ChatSession(model, words, temperature=3.0, max_new_tokens=12)
    first = [session.say("你好"), session.say("你好")]
    session.reset()
    assert session.messages == []
    assert [session.say("你好"), session.say("你好")] == first


@pytest.mark.parametrize("question", ["你好", QUESTION, HAMLET, "龘🐯?"])
def test_answer_equals_generate_of_transformers(model, words, session, question):
    chat_ids = words.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
    ids = words(chat_ids, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=20, do_sample=False)
    assert session.say(question) == words.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)


def test_second_turn_sees_the_first(words, session, prompts):
    session.say(QUESTION)
    session.say("你好")
    first, second = (words.decode(ids[0]) for ids in prompts)
    assert second.startswith(first) and second.count("[INST]") == 2
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


def test_sessions_share_no_state(model, words, session):
    alone = session.say("你好")
    other = chat.ChatSession(model, words, max_new_tokens=20)
    other.say(HAMLET)
    assert other.say("你好") and len(other.messages) == 4
    assert len(session.messages) == 2 and session.messages[1]["content"] == alone


def test_stopping_early_keeps_what_was_said_and_the_next_turn_works(words, session, prompts):
    stream = session.stream(QUESTION)
    said = next(stream) + next(stream)
    stream.close()
    assert session.messages[1:] == [{"role": "assistant", "content": said.strip()}]
    assert session.say("你好")
    assert f"[/INST] {said}</s> [INST] 你好" in words.decode(prompts[-1][0])


def test_failure_while_answering_keeps_the_conversation_usable(session, monkeypatch):
    def fail(logits):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(session, "_choose", fail)
        session.say("你好")
    assert session.say("你好")


def test_system_message_is_folded_into_the_first_question(model, words, prompts):
    session = chat.ChatSession(model, words, system="只用中文回答。", max_new_tokens=4)
    session.say("你好")
    session.say("再见")
    text = words.decode(prompts[-1][0])
    assert text.startswith("<s> [INST] 只用中文回答。\n\n你好 [/INST]") and text.count("只用中文") == 1
    session.reset()
    assert session.messages == [{"role": "system", "content": "只用中文回答。"}]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_message_is_refused(session, text):
    with pytest.raises(ValueError, match="message is empty"):
        session.say(text)
    assert session.messages == []


# the context window


def test_oldest_turns_are_left_out_and_counted(model, words, prompts, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 100)
    session = chat.ChatSession(model, words, system="System!", max_new_tokens=10)
    for i in range(8):
        session.say(f"Question {i}?")
        if i == 0:
            assert session.forgotten == 0
    assert all(ids.shape[1] <= 90 for ids in prompts)
    last = words.decode(prompts[-1][0])
    kept = [i for i in range(8) if f"Question {i}?" in last]
    assert 0 < session.forgotten == kept[0] and kept == list(range(kept[0], 8))
    assert "[INST] System!" in last and len(session.messages) == 17


def test_message_that_is_too_long_is_refused_and_changes_nothing(session, model, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 60)
    session.say("你好")
    before = list(session.messages), session.forgotten
    with pytest.raises(ValueError, match=r"\d+ tokens, and 40 fit .* Shorten it"):
        session.say("很长。" * 40)
    assert (session.messages, session.forgotten) == before
    assert session.say("你好")


# base beside tuned


def test_session_without_adapter_answers_like_the_base(model, words, session):
    base = chat.ChatSession(model, words, adapter=False, max_new_tokens=20)
    with model.disable_adapter():
        expected = chat.ChatSession(model, words, max_new_tokens=20).say(QUESTION)
    assert base.say(QUESTION) == expected != session.say(QUESTION)


def test_interleaved_streams_of_base_and_tuned_do_not_mix(model, words, session):
    untuned = chat.ChatSession(model, words, adapter=False, max_new_tokens=20)
    alone = [untuned.say(QUESTION), session.say(QUESTION)]
    untuned.reset()
    session.reset()
    streams, said = [untuned.stream(QUESTION), session.stream(QUESTION)], ["", ""]
    for _ in range(20):
        for i, stream in enumerate(streams):
            said[i] += next(stream, "")
    assert said == alone


def test_paused_base_stream_leaves_the_adapter_on(model, words, session):
    expected = session.say(QUESTION)
    session.reset()
    paused = chat.ChatSession(model, words, adapter=False).stream(QUESTION)
    next(paused)
    assert session.say(QUESTION) == expected


def test_model_without_adapter_can_be_asked_for_its_base(model, words):
    plain = chat.ChatSession(model.get_base_model(), words, adapter=False, max_new_tokens=4)
    assert plain.say(HAMLET)


def test_compare_returns_both_answers_with_their_languages(model, words, session):
    session.say("你好")  # forgotten: every prompt is put afresh
    base = chat.ChatSession(model, words, adapter=False, max_new_tokens=20)
    rows = chat.compare([QUESTION, HAMLET], base, session)
    assert [row["prompt"] for row in rows] == [QUESTION, HAMLET]
    assert (rows[0]["base language"], rows[0]["tuned language"]) == ("en", "zh")
    assert "Tokyo" in rows[0]["base"] and "东京" in rows[0]["tuned"]
    assert len(session.messages) == 2 and session.messages[0]["content"] == HAMLET


# pieces


TIGER = ["<0xF0>", "<0x9F>", "<0x90>", "<0xAF>"]


def test_bytes_of_a_character_are_held_back_until_it_is_whole(session, monkeypatch):
    speak(session, monkeypatch, ["▁a", *TIGER, *TIGER, "b"])
    assert list(session.stream("你好")) == ["a", "🐯", "🐯", "b"]
    assert session.messages[-1]["content"] == "a🐯🐯b"


def test_answer_that_begins_with_bytes_has_no_replacement_character(session, monkeypatch):
    speak(session, monkeypatch, ["▁", *TIGER])
    assert list(session.stream("你好")) == ["🐯"]


def test_character_that_stays_incomplete_is_shown_last(session, monkeypatch):
    speak(session, monkeypatch, ["▁a", *TIGER[:2]])
    *pieces, last = session.stream("你好")
    assert pieces == ["a"] and set(last) == {"\ufffd"}


def test_end_token_ends_the_answer(session, monkeypatch):
    speak(session, monkeypatch, ["▁a", "</s>", "b"])
    assert session.say("你好") == "a"


# HTML


def test_html_escapes_every_text():
    evil = "<script>alert('你好')</script> & \"5 < 6\""
    made = chat.to_html([{"role": role, "content": evil} for role in ("system", "user", "assistant")])
    tags, texts = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, [name for name, _ in attrs]))
    parser.handle_data = texts.append
    parser.feed(made)
    assert tags == [("div", ["style"]), ("b", [])] * 3
    assert "".join(texts) == "".join(f"{name}: {evil}" for name in ("System", "You", "Model"))


def test_html_of_an_empty_answer_still_shows_a_bubble():
    assert "…" in chat.to_html([{"role": "assistant", "content": ""}])


# the widget


class Box:
    """A chat widget, its parts found in the widget tree, and every state of its transcript."""

    def __init__(self, session):
        self.before = set(threading.enumerate())
        parts = self.walk(chat.widget(session))
        self.buttons = {part.description: part for part in parts if isinstance(part, ipywidgets.Button)}
        (self.entry,) = (part for part in parts if isinstance(part, ipywidgets.Text))
        (self.transcript,) = (part for part in parts if isinstance(part, ipywidgets.HTML))
        (self.note,) = (part for part in parts if isinstance(part, ipywidgets.Label))

    def walk(self, part):
        return [part, *(inner for child in getattr(part, "children", ()) for inner in self.walk(child))]

    def send(self, text):
        self.entry.value = text
        self.buttons["Send"].click()

    def threads(self):
        return set(threading.enumerate()) - self.before

    def wait(self):
        for thread in self.threads():
            thread.join(timeout=20)
        assert not self.threads()


@pytest.fixture
def endless(session, monkeypatch):
    """A session that talks for a long time, and an event set once it has begun."""
    begun = threading.Event()

    def choose(logits):
        begun.set()
        return torch.tensor([[session.tokenizer.convert_tokens_to_ids("▁a")]])

    monkeypatch.setattr(session, "_choose", choose)
    session.max_new_tokens = 1500
    return session, begun


def test_widget_answers_what_is_sent(session):
    box = Box(session)
    states = []
    box.transcript.observe(lambda change: states.append(change["new"]), "value")
    box.send(QUESTION)
    assert box.entry.value == ""
    box.wait()
    assert "东京" in box.transcript.value == chat.to_html(session.messages)
    assert len(states) > 3, "the answer did not stream in"


def test_widget_answers_on_enter(session):
    box = Box(session)
    box.entry.value = QUESTION
    box.entry._handle_string_msg(None, {"event": "submit"}, [])  # what the browser sends
    box.wait()
    assert len(session.messages) == 2


def test_stop_ends_the_answer_and_leaves_no_thread(endless):
    session, begun = endless
    box = Box(session)
    box.send("你好")
    assert begun.wait(20)
    box.buttons["Stop"].click()
    assert not box.threads()
    words = session.messages[-1]["content"].split()
    assert session.messages[-1]["role"] == "assistant" and 0 < len(words) < 1500
    assert box.transcript.value == chat.to_html(session.messages)


def test_second_send_waits_for_the_first(endless):
    session, begun = endless
    box = Box(session)
    box.send("你好")
    assert begun.wait(20)
    box.send("再见")
    assert len(box.threads()) == 1 and box.entry.value == "再见"
    box.buttons["Stop"].click()
    assert [m["content"] for m in session.messages if m["role"] == "user"] == ["你好"]


def test_reset_during_an_answer_clears_everything(endless):
    session, begun = endless
    box = Box(session)
    box.send("你好")
    assert begun.wait(20)
    box.buttons["Reset"].click()
    assert not box.threads() and session.messages == [] and box.transcript.value == ""


def test_reset_shows_the_system_message_again(model, words):
    box = Box(chat.ChatSession(model, words, system="只用中文回答。"))
    shown = box.transcript.value
    box.buttons["Reset"].click()
    assert "只用中文" in shown == box.transcript.value


def test_buttons_without_an_answer_do_nothing(session):
    box = Box(session)
    box.buttons["Stop"].click()
    box.send("   ")
    assert not box.threads() and session.messages == []


def test_widget_says_what_is_wrong_and_goes_on(session, model, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 60)
    box = Box(session)
    box.send("很长。" * 40)
    box.wait()
    assert "Shorten it" in box.note.value and session.messages == []
    box.send("你好")
    box.wait()
    assert box.note.value == "" and len(session.messages) == 2


def test_widget_says_how_many_turns_no_longer_fit(session, model, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 60)
    box = Box(session)
    for _ in range(4):
        box.send("你好")
        box.wait()
    assert session.forgotten and f"{session.forgotten} old turns" in box.note.value


def test_widget_shows_an_error_of_the_model(session, monkeypatch):
    def fail(logits):
        raise RuntimeError("out of memory")

    box = Box(session)
    monkeypatch.setattr(session, "_choose", fail)
    box.send("你好")
    box.wait()
    assert "out of memory" in box.note.value
