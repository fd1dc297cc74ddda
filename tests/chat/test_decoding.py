import re
import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from aurora_lib.chat import decoding
from aurora_lib.chat.decoding import Decoder, TextStream, choose_token
from aurora_lib.course import DATA
from aurora_lib.model import load_tokenizer
from aurora_lib.model.tokenizer import MISTRAL_FILE

SAME = dict(atol=1e-4, rtol=1e-4)  # of logits around 10: what another order of additions may do in fp32


@torch.no_grad()
def whole(model, ids, adapter=True):
    """The reference: everything computed at once, without a cache."""
    with nullcontext() if adapter else model.disable_adapter():
        return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def turns(*lengths):
    """Prompts of a conversation of random tokens: each begins with the last one and its answer."""
    generator, ids = torch.Generator().manual_seed(0), []
    for length in lengths:
        ids = ids + torch.randint(3, 2000, (length,), generator=generator).tolist()
        yield ids


@pytest.mark.parametrize("adapter", [True, False])
def test_every_token_of_every_turn_gets_the_logits_of_computing_everything(model, adapter):
    decoder, rooms = Decoder(model), set()
    for prompt in turns(5, 240, 20, 260, 1):  # the cache is outgrown twice
        for _ in range(3):
            logits = decoder.logits(prompt, adapter=adapter)
            torch.testing.assert_close(logits, whole(model, prompt, adapter), **SAME)
            prompt = [*prompt, int(logits.argmax())]
        rooms.add(decoder.cache.room)
    assert len(rooms) == 3


def test_only_what_is_new_is_computed(model):
    decoder, ids = Decoder(model), list(range(100, 130))
    # two tokens more; another end; the same (its last token is computed again); shorter; another beginning
    prompts = [ids, [*ids, 7, 8], [*ids[:20], 5], [*ids[:20], 5], ids[:10], [9, *ids]]
    for prompt, reused in zip(prompts, [0, 30, 20, 20, 9, 0], strict=True):
        torch.testing.assert_close(decoder.logits(prompt), whole(model, prompt), **SAME)
        assert decoder.reused == reused
    decoder.logits([9, *ids, 3], adapter=False)
    assert decoder.reused == 0, "keys and values of the other adapter were reused"


def test_interrupt_within_the_model_does_not_spoil_the_cache(model):
    decoder, ids = Decoder(model), list(range(100, 120))
    decoder.logits(ids)
    layers, interrupt = model.get_base_model().model.layers, Mock(side_effect=KeyboardInterrupt)
    hook = layers[1].register_forward_pre_hook(interrupt)  # layer 0 has the new token by then
    with pytest.raises(KeyboardInterrupt):
        decoder.logits([*ids, 5])
    hook.remove()
    torch.testing.assert_close(decoder.logits([*ids, 5]), whole(model, [*ids, 5]), **SAME)


def capturing(model, monkeypatch, capture):
    """A decoder of `model` that captures a step with this function, since the true one needs CUDA."""
    monkeypatch.setattr(decoding, "can_capture", lambda model: True)
    monkeypatch.setattr(decoding.FixedCache, "capture", capture)
    return Decoder(model)


def test_steps_are_replayed_once_they_are_captured(model, monkeypatch):
    captured, replayed = [], []

    def capture(cache):  # a graph does the step again, and leaves its result where the last one was
        length = int(cache.cache.get_seq_length())
        cache.logits = cache.step().clone()
        cache.rewind(length)
        cache.graph = SimpleNamespace(replay=lambda: replayed.append(cache.logits.copy_(cache.step())))
        captured.append(cache)

    decoder = capturing(model, monkeypatch, capture)
    for prompt in turns(5, 12, 1, 20):
        for _ in range(3):
            logits = decoder.logits(prompt).clone()
            torch.testing.assert_close(logits, whole(model, prompt), **SAME)
            prompt = [*prompt, int(logits.argmax())]
    assert len(captured) == 1 and len(replayed) >= 8
    decoder.logits(prompt, adapter=False)
    assert len(captured) == 2, "the graph of one adapter state was used for the other"


def test_failed_capture_is_told_and_decoding_goes_on(model, monkeypatch):
    def capture(cache):
        cache.step()  # the warm-up moves the cache on
        raise RuntimeError("operation not permitted when stream is capturing")

    decoder, ids = capturing(model, monkeypatch, capture), list(range(100, 120))
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        decoder.logits(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prompt in ([*ids, 5], [*ids, 5, 6]):
            torch.testing.assert_close(decoder.logits(prompt), whole(model, prompt), **SAME)


def test_sampling_follows_temperature_and_top_p():
    chances = torch.tensor([0.05, 0.5, 0.15, 0.3])
    generator = torch.Generator().manual_seed(0)

    def shares(temperature, top_p):
        drawn = [choose_token(chances.log(), temperature, top_p, generator) for _ in range(2000)]
        return torch.tensor(drawn).bincount(minlength=4) / 2000

    near = dict(atol=0.04, rtol=0)  # over three standard errors
    torch.testing.assert_close(shares(1.0, 1.0), chances, **near)
    torch.testing.assert_close(shares(0.5, 1.0), chances**2 / (chances**2).sum(), **near)
    # 0.5 is not yet 0.7, 0.5 + 0.3 is
    torch.testing.assert_close(shares(1.0, 0.7), torch.tensor([0, 0.625, 0, 0.375]), **near)
    assert shares(1.0, 0.001)[1] == 1 == shares(0, 1.0)[1]


REAL, TINY = load_tokenizer(), load_tokenizer(DATA / "tiny")
SPIECES = SentencePieceProcessor(model_file=str(MISTRAL_FILE))
AWKWARD = [*"🐯龘é\u200d\ufe0f\ufffd \n▁a\x00", "👩\u200d👩\u200d👧\u200d👦", "🇨🇳", "  ", "<0x41>", "中文"]


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
    """Broken bytes are one U+FFFD to us and one each to SentencePiece; without any, `decode` agrees."""
    said = "".join(pieces(REAL, ids))
    known = [i for i in ids if i > 2]  # unknown and control tokens are not shown
    # a space spelled as a byte, in front: transformers strips it, SentencePiece does not
    assume(known[:1] != [35])
    decoded = REAL.decode(known)
    if "\ufffd" not in decoded:
        assert said == decoded
    assert re.sub("\ufffd+", "\ufffd", said) == re.sub("\ufffd+", "\ufffd", SPIECES.decode(known))


def test_characters_are_shown_as_soon_as_they_are_whole_and_bytes_that_are_none_as_one_sign():
    ids = REAL("a🐯龘b", add_special_tokens=False).input_ids
    assert pieces(REAL, ids) == ["a", "", "", "", "🐯", "", "", "龘", "b", ""]
    assert pieces(REAL, ids[:3]) == ["a", "", "", "\ufffd"]
    assert "".join(pieces(REAL, [*ids[:3], ids[-1]])) == "a\ufffdb"
    assert pieces(REAL, [31_999 + 64]) == ["", ""], "the model has more rows than there are pieces"
