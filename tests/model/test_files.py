"""Folders as people have them (`field.toml`): one true sentence, and nothing is loaded."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from transformers import AutoConfig, AutoModelForCausalLM

from aurora_lib.course import DATA
from aurora_lib.model import adapters, load_model, load_tokenizer, nf4, read_config
from aurora_lib.model.files import ModelFileError
from aurora_lib.model.tokenizer import MISTRAL_FILE

FIELD = tomllib.loads(Path(__file__).with_name("field.toml").read_text(encoding="utf-8"))
NAME = "model.safetensors"


def made(case, folder):
    """`data/tiny` as `case` wants it, below `folder`."""
    place, whole = folder / "tiny", load_file(DATA / "tiny" / NAME)
    shutil.copytree(DATA / "tiny", place, ignore=shutil.ignore_patterns(*case.get("without", [])))
    for name, text in case.get("write", {}).items():
        (place / name).write_text(text)
    if gone := case.get("tensors"):
        held = {name: weight for name, weight in whole.items() if not re.search(gone, name)}
        save_file(held, place / case.get("file", NAME), metadata={"format": "pt"})
    if "cut" in case:
        (place / NAME).write_bytes((place / NAME).read_bytes()[: -case["cut"]])
    return place


@pytest.mark.parametrize("case", FIELD["folder"], ids=str)
def test_a_folder_that_cannot_be_loaded_is_one_sentence_before_it_is(case, tmp_path, monkeypatch):
    monkeypatch.setattr(nf4, "_stream", None)
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    place = case.get("place") or made(case, tmp_path)
    for load, said in ((load_model, case.get("model")), (load_tokenizer, case.get("tokenizer"))):
        if said:
            with pytest.raises(ModelFileError, match=said):
                load(place)


def test_a_base_is_known_by_its_name_wherever_it_lies():
    for known, names in FIELD["base"].items():
        found = {adapters._model_name(name).lower() in ("", "mixtral-8x7b-instruct-v0.1") for name in names}
        assert found == {known == "same"}


@pytest.mark.parametrize("tied, layout", [(True, True), (False, False)])
def test_a_head_tied_to_the_embeddings_and_fused_experts_are_whole(tied, layout, tmp_path):
    config = AutoConfig.from_pretrained(DATA / "tiny", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path, save_original_format=layout)
    assert ("lm_head.weight" in load_file(tmp_path / NAME)) is not tied
    assert read_config(tmp_path).tie_word_embeddings is tied


def test_a_sentencepiece_file_alone_gives_the_ids_of_mixtrals_own_or_is_refused(tmp_path):
    place = made({"without": ["tokenizer*"]}, tmp_path)
    shutil.copy(str(MISTRAL_FILE), place / "tokenizer.model")
    text = "<s>[INST]  你好，世界 [/INST] Answer: A</s>"
    ours, own = load_tokenizer(place), load_tokenizer()
    assert ours(text).input_ids == own(text).input_ids and ours.special_tokens_map == own.special_tokens_map
    other = tmp_path / "other"
    other.mkdir()
    kind = dict(model_prefix=str(other / "tokenizer"), model_type="unigram", vocab_size=18, minloglevel=2)
    SentencePieceTrainer.train(sentence_iterator=iter(["some words to learn from"] * 20), **kind)
    with pytest.raises(ModelFileError, match=r"model is no tokenizer of Mixtral's kind.*tokenizer\.json"):
        load_tokenizer(other)
