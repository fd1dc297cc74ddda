"""Small random models of other families do all that the course does, with their own templates."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from aurora_lib import chat, evaluation, routing, training
from aurora_lib.course import choose
from aurora_lib.data import split
from aurora_lib.data.sources import table
from aurora_lib.model import load_adapter, load_model, load_tokenizer, nf4, resolve_targets, save_adapter
from aurora_lib.model.files import ModelFileError
from tests.data.conversations import talk

FAMILIES = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))
REFUSED, SIZES = FAMILIES.pop("refused"), FAMILIES.pop("sizes")
PROBE, SYSTEM = evaluation.load_probes(held_out=True)[0], [dict(role="system", content="好！")]
TALK = SYSTEM + talk("How? <|im_end|>", "<|end_of_text|> <|endoftext|> 🐯", "法国的首都？", "巴黎。")


def tokenizer_of(folder, special, template, **_):
    """Put a byte-level tokenizer, as these families have, into `folder`; as transformers loads it."""
    made = Tokenizer(BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [PROBE[side][what] for side in ("zh", "en") for what in ("question", "answer")] * 2
    how = dict(vocab_size=390, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(texts, BpeTrainer(**how))
    own = PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **special)
    own.save_pretrained(folder)
    return own


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Name, folder, and the tokenizer as transformers loads it."""
    folder, about = tmp_path_factory.mktemp(request.param), FAMILIES[request.param]
    own = tokenizer_of(folder, **about)
    ids = {f"{name}_token_id": getattr(own, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SIZES | about["sizes"] | ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return request.param, folder, own


def test_its_own_template_is_kept_and_marks_answers_that_cannot_be_forged(family):
    name, folder, own = family
    tokenizer, special = load_tokenizer(folder), "|".join(map(re.escape, own.all_special_tokens))
    said = [re.sub(special, lambda t: f"{t[0][:-2]} {t[0][-2:]}", turn["content"]) for turn in TALK]
    shown = [dict(turn, content=text) for turn, text in zip(TALK, said, strict=True)]
    if name == "granitemoe":  # knows no system turns
        shown[:2] = talk(f"{said[0]}\n\n{said[1]}")
    for left, prompt in ((0, False), (1, True), (2, True), (2, False), (3, True)):
        how = dict(tokenize=False, add_generation_prompt=prompt)
        expected = own.apply_chat_template(shown[: len(shown) - left], **how)
        assert tokenizer.apply_chat_template(TALK[: len(TALK) - left], **how) == expected
    row = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    learned = [i for i, keep in zip(row["input_ids"], row["assistant_masks"], strict=True) if keep]
    assert tokenizer.decode(learned) == said[2] + own.eos_token + said[4] + own.eos_token
    assert tokenizer.bos_token == (own.bos_token if name == "olmoe" else None)
    rows = table([dict(id="0", source="x", category="", messages=TALK[:1] + 4 * TALK[1:])])
    parts = tokenizer.apply_chat_template(split(rows, tokenizer, 200)["messages"][:])["input_ids"]
    assert len(parts) > 1 and max(map(len, parts)) <= 200


def test_bytes_are_shown_as_characters(family):
    tokenizer, text = load_tokenizer(family[1]), "法国的首都是巴黎。 It's  👩\u200d👧\n<|endoftext|"
    ids, tiger = (tokenizer(each, add_special_tokens=False).input_ids for each in (text, "🐯"))
    stream, more = chat.TextStream(tokenizer), [tokenizer.eos_token_id, 10_000, *tiger[:3], *ids, tiger[0]]
    assert "".join([*map(stream.add, ids + more), stream.finish()]) == f"{text}\ufffd{text}\ufffd"


def test_it_is_traced_tuned_examined_and_spoken_to(family, tmp_path):
    name, folder, _ = family
    scale = choose(dict(AURORA_MODEL=str(folder), AURORA_RUNS=str(tmp_path)))
    base, tokenizer = load_model(folder, **scale.loading), load_tokenizer(folder)
    trace = routing.trace_many(base, tokenizer, ["法国的首都龘"])
    assert trace.experts.shape == (2, len(trace.tokens), base.config.num_experts_per_tok)
    assert "龘" in dict(routing.explorer.runs(trace.tokens))
    with pytest.raises(ValueError, match=re.escape(f'["{FAMILIES[name]["router"]}.weight"]')):
        resolve_targets(base.config, training.lora_config(target_modules=["q_proj", "w1"]))
    rows = table([dict(id=str(i), source="x", category="", messages=TALK) for i in range(8)])
    args = training.sft_config(scale, max_steps=2, save_strategy="no", disable_tqdm=True, logging_steps=1)
    before = evaluation.probes.perplexity(base, tokenizer, [TALK])
    trainer = training.build_trainer(base, tokenizer, rows, args)
    trainer.train()
    model = load_adapter(load_model(folder, **scale.loading), save_adapter(trainer, scale))
    after = [evaluation.probes.perplexity(each, tokenizer, [TALK]) for each in (trainer.model, model)]
    assert after[0] == pytest.approx(after[1]) and after[0] < before
    session = chat.ChatSession(model, tokenizer, max_new_tokens=4)
    expected = evaluation.probes.answers(model, tokenizer, ["你好"], max_new_tokens=4)
    assert [session.say("你好").strip()] == expected
    assert evaluation.probe(model, tokenizer, [PROBE], max_new_tokens=4, progress=False).rows
    for scoring in ("letter", "cloze"):
        settings = dict(subjects=["anatomy"], limit=2, shots=1, scoring=scoring)
        assert evaluation.multiple_choice(model, tokenizer, "cmmlu", **settings).overall.n == 2


@pytest.mark.parametrize("why", REFUSED)
def test_a_template_without_certain_answers_is_refused_in_one_sentence(why, tmp_path):
    tokenizer_of(tmp_path, FAMILIES["olmoe"]["special"], REFUSED[why])
    with pytest.raises(ModelFileError, match=why):
        load_tokenizer(tmp_path)


def test_experts_and_targets_that_cannot_be_are_refused_before_weights_are_loaded():
    with pytest.raises(ValueError, match="biases"):
        nf4.random_model(AutoConfig.for_model("gpt_oss", **SIZES), device="cpu")
    with pytest.raises(ValueError, match=r"on .*v_proj: .*Choose a list of .*kv_b_proj"):
        resolve_targets(AutoConfig.for_model("deepseek_v2", **SIZES), training.lora_config())
