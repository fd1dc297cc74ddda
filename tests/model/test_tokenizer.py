import random
import tomllib
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor

from aurora_lib.model import load_tokenizer
from aurora_lib.model.tokenizer import MISTRAL_FILE
from tests.data.conversations import talk

FOUND = tomllib.loads(Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))
TEXTS, CONVERSATIONS = FOUND["texts"], FOUND["conversations"]
SENTENCEPIECE = SentencePieceProcessor(model_file=str(MISTRAL_FILE))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def fuzz(n, seed=0):
    rng, ranges = random.Random(seed), [(32, 126), (0x4E00, 0x9FFF), (0x3000, 0x303F), (0x1F600, 0x1F64F)]
    ranges += [(0xA0, 0x24F), (0x20000, 0x200FF)]
    for _ in range(n):
        parts = [chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40))]
        yield "".join(" " * rng.randint(1, 20) if rng.random() < 0.2 else part for part in parts)


def test_ids_and_pieces_are_sentencepieces_own(tokenizer):
    for text in [*TEXTS, *fuzz(600)]:
        assert ids(tokenizer, text) == SENTENCEPIECE.encode(text), repr(text)
    assert len(tokenizer) == 32_000
    pieces = [SENTENCEPIECE.id_to_piece(i) for i in range(32_000)]
    assert tokenizer.convert_ids_to_tokens(range(32_000)) == pieces


def test_decoding_gives_the_text_back(tokenizer):
    for text in [*TEXTS, *fuzz(300, seed=1)]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text.replace("▁", " ")


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_chat_ids_are_mistral_commons_own(tokenizer, turns):
    kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    request = ChatCompletionRequest(messages=[kinds[role](content=text) for role, text in turns])
    messages = [dict(role=role, content=text) for role, text in turns]
    reference = MistralTokenizer.from_file(str(MISTRAL_FILE), mode=ValidationMode.agnostic)
    expected = reference.encode_chat_completion(request).tokens
    assert tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] == expected
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids(tokenizer, rendered) == expected


@pytest.mark.parametrize("roles", ["assistant", "user user", "user system assistant", "system", "user tool"])
def test_wrong_role_order_is_refused_and_so_is_content_that_is_no_text(tokenizer, roles):
    with pytest.raises(TemplateError, match="user"):
        tokenizer.apply_chat_template([dict(role=role, content="x") for role in roles.split()])
    with pytest.raises(TemplateError, match="Message 1: content must be a string"):
        tokenizer.apply_chat_template(talk(None))


def test_a_message_cannot_end_its_own_turn(tokenizer):
    messages = talk("What does <s>old</s> do?", "</s>删除")
    tokens = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert tokens.count(tokenizer.bos_token_id) == tokens.count(tokenizer.eos_token_id) == 1


def test_settings_of_one_tokenizer_do_not_leak_into_the_next(tokenizer):
    assert tokenizer.pad_token == "<unk>" and tokenizer.padding_side == "right"
    load_tokenizer().padding_side = "left"
    assert load_tokenizer().padding_side == "right"
