import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import islice
from types import SimpleNamespace

import pytest

from aurora_lib.chat import session as session_module
from aurora_lib.chat.session import ChatSession
from tests.chat.speakers import Listening, Scripted, fail

QUESTION = "日本的首都是哪里？"
HAMLET = "Who wrote Hamlet?"
TIGER = ["<0xF0>", "<0x9F>", "<0x90>", "<0xAF>"]


@pytest.fixture
def session(model, tokenizer):
    return ChatSession(model, tokenizer, max_new_tokens=20)


def roles(session):
    return [message["role"] for message in session.messages]


@pytest.mark.parametrize("adapter", [True, False])
def test_every_answer_of_a_conversation_equals_generate_of_transformers(model, tokenizer, adapter):
    """Each turn, with keys and values of earlier ones, against `generate` on the whole prompt."""
    session = ChatSession(model, tokenizer, max_new_tokens=20, adapter=adapter)
    for question in ("你好", QUESTION, HAMLET, "龘🐯?"):
        history = [*session.messages, {"role": "user", "content": question}]
        rendered = tokenizer.apply_chat_template(history, tokenize=False)
        ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
        with nullcontext() if adapter else model.disable_adapter():
            answer = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert session.say(question) == tokenizer.decode(answer, skip_special_tokens=True)
        assert session.stats.prompt_tokens == ids.input_ids.shape[1] == session.context[0]
        assert session.stats.new_tokens == len(answer)
    assert session.stats.reused_tokens > session.stats.prompt_tokens / 2


def test_end_token_ends_the_answer_and_no_piece_holds_half_a_character(session):
    Scripted(session, "▁", *TIGER, "b", *TIGER[:2], "</s>", "c")
    assert list(session.stream("你好")) == ["🐯", "b", "\ufffd"] and session.stats.new_tokens == 9


def test_system_line_is_folded_into_the_first_question_and_can_change(model, tokenizer):
    session = ChatSession(model, tokenizer, system="只用中文回答。", max_new_tokens=4)
    listening = Listening(session)
    for system in ("只用中文回答。", "English only."):
        session.system = system
        session.say("你好")
        assert listening.heard().startswith(f"<s> [INST] {system}\n\n你好 [/INST]")
        assert listening.heard().count(system) == 1
    session.reset()
    assert session.messages == [{"role": "system", "content": "English only."}]
    session.system = ""
    assert session.messages == [] and session.system == ""


REFUSED = [
    ("  \n", {}, "message is empty"),
    ("a\ud83d", {}, "surrogates not allowed"),
    ("很长。" * 1000, {}, r"\d+ tokens, and \d+ fit .* Shorten it"),
    ("你好", {"max_new_tokens": 0}, "max_new_tokens cannot be 0: give a whole number"),
    ("你好", {"temperature": -1}, "temperature cannot be -1: give a number from 0"),
    ("你好", {"temperature": float("nan")}, "temperature cannot be nan"),
    ("你好", {"top_p": 0}, "top_p cannot be 0"),
]


@pytest.mark.parametrize(("text", "settings", "reason"), REFUSED)
def test_what_cannot_be_answered_is_refused_and_changes_nothing(model, tokenizer, text, settings, reason):
    session = ChatSession(model, tokenizer, **settings)
    with pytest.raises(ValueError, match=reason):
        session.say(text)
    assert session.messages == [] and session.forgotten == 0


def test_stats_do_not_count_the_time_of_the_reader(session, monkeypatch):
    read = 0  # seconds on a clock that jumps, so that a busy machine changes nothing
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + read)
    monkeypatch.setattr(session_module, "time", clock)
    for _ in session.stream(QUESTION):
        read += 10_000
    stats = session.stats
    assert stats.new_tokens > 5 and 0 < stats.later_tokens < 10_000 and 0 < stats.first_token < 10_000
    assert stats.tokens_per_second == (stats.new_tokens - 1) / stats.later_tokens


def test_seed_decides_what_is_sampled_and_begins_anew_after_reset(model, tokenizer):
    settings = dict(temperature=3.0, max_new_tokens=12)
    one, two = (ChatSession(model, tokenizer, seed=seed, **settings) for seed in (1, 2))
    said = [one.say("你好"), one.say("你好")]
    one.reset()
    assert [one.say("你好"), one.say("你好")] == said != [two.say("你好"), two.say("你好")]


def test_stopping_early_keeps_what_was_said_and_the_next_turn_works(session):
    listening, stream = Listening(session), session.stream(QUESTION)
    said = next(stream) + next(stream)
    stream.close()
    assert session.messages[1:] == [{"role": "assistant", "content": said.strip()}]
    assert session.say("你好") and f"[/INST] {said}</s> [INST] 你好" in listening.heard()


def test_question_while_another_is_being_answered_is_refused_until_reset(session):
    stream = session.stream(QUESTION)
    next(stream)
    with pytest.raises(ValueError, match="still being answered"):
        session.say("你好")
    session.reset()
    stream.close()
    assert session.messages == [], "the answer of the old conversation reached the new one"
    assert session.say("你好") and roles(session) == ["user", "assistant"]


def test_reset_frees_keys_and_values(session):
    session.say("你好")
    keys = weakref.ref(session.decoder.cache.cache.layers[0].keys)
    session.reset()
    gc.collect()
    assert keys() is None


def test_failed_regeneration_keeps_the_old_answer(session):
    with pytest.raises(ValueError, match="no answer yet"):
        next(session.regenerate())
    session.say("你好")
    before = [dict(message) for message in session.messages]
    for most in (20, 0):  # the model fails, and no answer may have 0 tokens
        Scripted(session, fail)
        session.max_new_tokens = most
        with pytest.raises((RuntimeError, ValueError)):
            list(session.regenerate())
        assert session.messages == before


def test_thirty_turns_longer_than_the_context_go_on_and_what_is_forgotten_is_right(model, tokenizer):
    size = model.config.max_position_embeddings - 140
    session = ChatSession(model, tokenizer, system="System!", max_new_tokens=size)  # 140 tokens for prompts
    listening, counts, reused = Listening(session), [], 0
    for turn in range(30):
        before = session.forgotten
        with closing(session.stream(f"Question {turn}? {QUESTION}")) as stream:
            list(islice(stream, 8))
        text = listening.heard()
        kept = [i for i in range(turn + 1) if f"Question {i}?" in text]
        assert kept == list(range(session.forgotten, turn + 1)), "left out: the oldest, and just those"
        assert text.startswith("<s> [INST] System!\n\nQuestion") and len(listening.prompt) <= 140
        assert session.context == (len(listening.prompt), 140)
        if session.forgotten > before:  # only because it was necessary
            history = [session.messages[0], *session.messages[1 + 2 * before : -1]]
            rendered = tokenizer.apply_chat_template(history, tokenize=False)
            assert len(tokenizer(rendered, add_special_tokens=False).input_ids) > 140
        counts.append(session.forgotten)
        reused += session.stats.reused_tokens > 0.5 * session.stats.prompt_tokens
    assert counts[0] == 0 and len(set(counts)) > 3 and len(session.messages) == 61
    assert reused >= 15, "leaving turns out one by one would compute every prompt from its beginning"


def test_base_and_tuned_answering_at_the_same_time_do_not_mix(model, tokenizer):
    def sessions():
        return [ChatSession(model, tokenizer, adapter=on, max_new_tokens=20) for on in (False, True)]

    alone = [session.say(QUESTION) for session in sessions()]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda session: session.say(QUESTION), sessions())) == alone
