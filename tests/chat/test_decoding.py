import re
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aurora_lib.chat import decoding
from aurora_lib.chat.decoding import Decoder, TextStream
from aurora_lib.course.scale import DATA
from aurora_lib.model import load_adapter, load_model, load_tokenizer, tokenizer

SAME = dict(atol=1e-4, rtol=1e-4)  # of logits around 10: what another order of additions may do in fp32


def load():
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    return load_adapter(base, DATA / "tiny_adapter")


@pytest.fixture(scope="module")
def model():
    return load()


@torch.no_grad()
def whole(model, ids):
    """The reference: everything computed at once, without a cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def turns(seed=0):
    """Prompts of a conversation of random tokens: each begins with the last one and its answer."""
    generator, ids = torch.Generator().manual_seed(seed), []
    for length in (5, 12, 1, 20, 3):
        ids = ids + torch.randint(3, 2000, (length,), generator=generator).tolist()
        yield ids


# the cache


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("fixed", [False, True])
def test_every_token_of_every_turn_gets_the_logits_of_computing_everything(
    model, monkeypatch, fixed, adapter
):
    monkeypatch.setattr(decoding, "SMALLEST_ROOM", 16)  # the conversation outgrows its cache twice
    decoder, rooms = Decoder(model, fixed=fixed), set()
    for prompt in turns():
        for _ in range(4):
            logits = decoder.logits(prompt, adapter=adapter)
            if adapter:
                expected = whole(model, prompt)
            else:
                with model.disable_adapter():
                    expected = whole(model, prompt)
            torch.testing.assert_close(logits, expected, **SAME)
            prompt = [*prompt, int(logits.argmax())]
        rooms.add(decoder._cache.room)
    assert len(rooms) == (3 if fixed else 1)


@pytest.mark.parametrize("fixed", [False, True])
def test_only_what_is_new_is_computed(model, monkeypatch, fixed):
    decoder, lengths, run = Decoder(model, fixed=fixed), [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda ids, **rest: lengths.append(ids.shape[1]) or run(ids, **rest)
    )
    ids = list(range(100, 130))
    for prompt in (ids, [*ids, 7], [*ids, 7, 8, 9], [*ids[:20], 5], [*ids[:20], 5], [9, *ids]):
        decoder.logits(prompt)
    # a token more; two more; another end; the last again, since its logits are asked for; another beginning
    assert lengths == [30, 1, 2, 1, 1, 31]
    decoder.logits([9, *ids, 3], adapter=False)
    decoder.logits([9, *ids, 3], adapter=True)
    assert lengths[6:] == [32, 32], "keys and values of the other adapter were reused"


@pytest.mark.parametrize("fixed", [False, True])
def test_shorter_prompt_after_a_longer_one_sees_nothing_of_it(model, fixed):
    decoder = Decoder(model, fixed=fixed)
    decoder.logits(list(range(100, 160)))
    ids = list(range(100, 120))
    torch.testing.assert_close(decoder.logits(ids), whole(model, ids), **SAME)


@pytest.mark.parametrize("fixed", [False, True])
def test_interrupt_within_the_model_does_not_spoil_the_cache(model, monkeypatch, fixed):
    decoder, ids = Decoder(model, fixed=fixed), list(range(100, 120))
    decoder.logits(ids)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    layers = model.get_base_model().model.layers
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(layers[1], "forward", interrupt)  # layer 0 has the new token by then
        decoder.logits([*ids, 5])
    torch.testing.assert_close(decoder.logits([*ids, 5]), whole(model, [*ids, 5]), **SAME)


class Replayed:
    """What a captured graph does, without one: the step again, its result where the last one was."""

    def __init__(self, cache):
        self.cache, self.times = cache, 0

    def replay(self):
        self.times += 1
        self.cache.logits.copy_(self.cache.step())


@pytest.mark.parametrize("adapter", [True, False])
def test_steps_are_replayed_once_they_are_captured(model, monkeypatch, adapter):
    """All but the capture itself, which needs CUDA."""
    made = []

    def capture(cache):
        length = int(cache.cache.get_seq_length())
        cache.logits = cache.step().clone()
        cache.rewind(length)
        cache.graph = Replayed(cache)
        made.append(cache)

    monkeypatch.setattr(decoding, "can_capture", lambda model: True)
    monkeypatch.setattr(decoding.FixedCache, "capture", capture)
    decoder, plain = Decoder(model), Decoder(model, fixed=False)
    # a replayed graph holds the adapter as it was; here the step is run anew, so it must be switched by hand
    if not adapter:
        monkeypatch.setattr(
            Replayed, "replay", lambda self, run=Replayed.replay: off(model, lambda: run(self))
        )
    for prompt in turns():
        for _ in range(3):
            logits = decoder.logits(prompt, adapter=adapter).clone()
            torch.testing.assert_close(logits, plain.logits(prompt, adapter=adapter), **SAME)
            prompt = [*prompt, int(logits.argmax())]
    assert len(made) == 1 and made[0].graph.times >= 10
    decoder.logits(prompt, adapter=not adapter)
    assert len(made) == 2, "the graph of one adapter state was used for the other"


def off(model, function):
    with model.disable_adapter():
        return function()


def test_failed_capture_is_told_and_decoding_goes_on(model, monkeypatch):
    def capture(cache):
        cache.step()  # the warm-up moves the cache on
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decoding, "can_capture", lambda model: True)
    monkeypatch.setattr(decoding.FixedCache, "capture", capture)
    decoder, ids = Decoder(model), list(range(100, 120))
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        decoder.logits(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prompt in ([*ids, 5], [*ids, 5, 6]):
            torch.testing.assert_close(decoder.logits(prompt), whole(model, prompt), **SAME)


def test_cache_grows_where_nothing_can_be_captured(model):
    assert not decoding.can_capture(model)
    assert not Decoder(model).fixed


# a merged adapter


def test_merged_adapter_is_another_rounding_and_takes_the_base_with_it(tokenizer):
    model = load()
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "日本的首都是哪里？"}], tokenize=False
    )
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    tuned, decoder = whole(model, ids), Decoder(model)
    base = decoder.logits(ids, adapter=False)
    decoder.logits(ids)
    decoding.merge(model)
    merged = whole(model, ids)
    # nearer to the tuned model than the base is, and not the same
    assert 0 < (merged - tuned).norm() < 0.5 * (base - tuned).norm()
    torch.testing.assert_close(decoder.logits([*ids, 5]), whole(model, [*ids, 5]), **SAME)
    with pytest.raises(decoding.MergedAdapterError, match="load it afresh"):
        decoder.logits(ids, adapter=False)
    torch.testing.assert_close(decoder.logits(ids), merged, **SAME)
    for again in (model, load().get_base_model()):
        with pytest.raises(decoding.MergedAdapterError, match="nothing to merge"):
            decoding.merge(again)


# text


REAL, TINY = load_tokenizer(), load_tokenizer(DATA / "tiny")
SPIECES = tokenizer.sentencepiece_model()
AWKWARD = [
    "🐯",
    "👩‍👩‍👧‍👦",
    "🇨🇳",
    "龘",
    "é",
    "\u200d",
    "\ufe0f",
    "\ufffd",
    " ",
    "  ",
    "\n",
    "▁",
    "<0x41>",
    "中文",
    "a",
    "𠮷",
    "\x00",
]


def pieces(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*map(stream.add, ids), stream.finish()]


@pytest.mark.parametrize("tokenizer", [REAL, TINY], ids=["real", "tiny"])
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(AWKWARD)).map("".join)))
def test_spoken_text_is_the_decoded_text_whatever_it_is(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    said = pieces(tokenizer, ids)
    assert "".join(said) == tokenizer.decode(ids, skip_special_tokens=True)
    assert sum("\ufffd" in piece for piece in said) == text.count("\ufffd")


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 31999), st.integers(3, 258))))
def test_any_tokens_give_what_sentencepiece_gives(ids):
    """Broken bytes are one U+FFFD to us and one each to SentencePiece; `decode` of transformers agrees where none is."""
    said = "".join(pieces(REAL, ids))
    known = [i for i in ids if i > 2]  # unknown and control tokens are not shown
    assume(
        known[:1] != [35]
    )  # a space spelled as a byte, in front: transformers strips it, SentencePiece does not
    decoded = REAL.decode(known)
    if "\ufffd" not in decoded:
        assert said == decoded
    assert re.sub("\ufffd+", "\ufffd", said) == re.sub("\ufffd+", "\ufffd", SPIECES.decode(known))


def test_characters_are_shown_as_soon_as_they_are_whole():
    assert pieces(REAL, REAL("a🐯龘b", add_special_tokens=False).input_ids) == [
        *["a", "", "", "", "🐯", "", "", "龘", "b", ""]
    ]


def test_character_cut_off_is_one_replacement_character():
    tiger = REAL("a🐯", add_special_tokens=False).input_ids
    assert pieces(REAL, [*tiger, *tiger[1:3]])[-1] == "\ufffd"
    assert "".join(pieces(REAL, [*tiger, *tiger[1:3], *REAL.convert_tokens_to_ids(["b"])])) == "a🐯\ufffdb"


def test_long_answer_costs_the_same_per_token(monkeypatch):
    """Counted, not timed: no call may be handed more than the one token."""
    seen, convert = [], REAL.convert_ids_to_tokens
    monkeypatch.setattr(REAL, "convert_ids_to_tokens", lambda ids: seen.append(ids) or convert(ids))
    monkeypatch.setattr(REAL, "decode", None)
    ids = REAL("你好，世界 🐯 " * 50, add_special_tokens=False).input_ids
    assert "".join(pieces(REAL, ids)) == "你好，世界 🐯 " * 50
    assert seen == ids


def test_token_beyond_the_vocabulary_says_nothing():
    assert "".join(pieces(REAL, [31_999 + 64])) == ""
