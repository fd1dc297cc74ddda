"""Small stand-ins for all that `full` and `mid` fetch, in the layouts of the releases: `build`.

They lie in `<models|datasets>/<owner>/<name>/` of one folder, which `hub.py` serves. Weights are the tiny
model's (full) or random (mid), rows and questions our own: what is said with them means nothing.
"""

import json
import random
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM

from aurora_lib.course.scale import DATA, PRESETS
from aurora_lib.data import sources
from aurora_lib.evaluation import benchmarks
from aurora_lib.model.tokenizer import MISTRAL_FILE, load_tokenizer
from aurora_lib.training import preference

TINY = DATA / "tiny"
END = "|||IP_ADDRESS|||"  # begins and ends OLMoE's conversations, oddly
MIXTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
OLMOE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
MIXTRAL_CONFIG = dict(
    architectures=["MixtralForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
    hidden_act="silu", hidden_size=128, initializer_range=0.02, intermediate_size=256,
    max_position_embeddings=32768, model_type="mixtral", num_attention_heads=4, num_experts_per_tok=2,
    num_key_value_heads=2, num_local_experts=8, output_router_logits=False, rms_norm_eps=1e-05,
    rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None, tie_word_embeddings=False,
    torch_dtype="bfloat16", transformers_version="4.36.0.dev0", use_cache=True, vocab_size=32000,
)  # fmt: skip


def build(hub: Path, layers: int = 4, rows: int = 2000, questions: int = 2, steps: int = 60) -> None:
    """All stand-ins, anew, below `hub`: `rows` of each source, `questions` of each released subject."""
    shutil.rmtree(hub, ignore_errors=True)
    mixtral(_folder(hub, "models", PRESETS["full"]["base_model"]), layers, steps)
    adapter(_folder(hub, "models", PRESETS["full"]["shipped"].partition("@")[0]), layers)
    olmoe(_folder(hub, "models", PRESETS["mid"]["base_model"]), layers // 2)  # as deep as half a Mixtral
    for name, source in sources.SOURCES.items():
        file = _folder(hub, "datasets", source["repository"], source["folder"]) / source["released"]
        conversations(name, file, rows)
    preferences(_folder(hub, "datasets", preference.RELEASED) / preference.FILE)
    for task, repository in benchmarks.REPOSITORIES.items():
        exam(task, _folder(hub, "datasets", repository), questions)


def _folder(hub: Path, *names: str) -> Path:
    folder = hub.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _json(file: Path, value) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def mixtral(folder: Path, layers: int, steps: int) -> None:
    """The tiny model with Mixtral's 32,000 pieces. A layer may stand several times, each with its share."""
    tokenizer, small = load_tokenizer(), load_tokenizer(TINY)
    pieces, known = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), small.get_vocab()
    old = load_file(TINY / "model.safetensors")
    new = {name: old[name] for name in old if ".layers." not in name}
    new["model.embed_tokens.weight"] = embedding(pieces, known, tokenizer, steps)
    head = new["lm_head.weight"]
    never = head.float().mean(0).to(head.dtype)  # its logit is the mean of all others
    new["lm_head.weight"] = torch.stack([head[known[p]] if p in known else never for p in pieces])
    share = layers / 4
    for layer in range(layers):
        begins = f"model.layers.{int(layer / share)}."
        for name, value in old.items():
            if name.startswith(begins):
                part = value / share if name.endswith(("o_proj.weight", "w2.weight")) else value
                new[name.replace(begins, f"model.layers.{layer}.")] = part.clone()
    names, places = sorted(new), {}
    for n in range(5):
        shard = {name: new[name].contiguous() for name in names[n::5]}
        save_file(shard, folder / (file := f"model-{n + 1:05d}-of-00005.safetensors"), {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    size = sum(value.nbytes for value in new.values())
    _json(folder / "model.safetensors.index.json", dict(metadata=dict(total_size=size), weight_map=places))
    _json(folder / "config.json", MIXTRAL_CONFIG | dict(num_hidden_layers=layers))
    ends = dict(bos_token_id=1, eos_token_id=2, transformers_version="4.36.0.dev0")
    _json(folder / "generation_config.json", dict(_from_model_config=True) | ends)
    shutil.copy(str(MISTRAL_FILE), folder / "tokenizer.model")
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    _json(folder / "special_tokens_map.json", special)
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | dict(special=True)
    added = {str(i): dict(content=piece, **flags) for i, piece in enumerate(("<unk>", "<s>", "</s>"))}
    about = dict(add_bos_token=True, add_eos_token=False, added_tokens_decoder=added, legacy=True)
    about |= dict(additional_special_tokens=[], clean_up_tokenization_spaces=False, pad_token=None)
    about |= dict(model_max_length=1000000000000000019884624838656, sp_model_kwargs={})
    about |= dict(spaces_between_special_tokens=False, use_default_system_prompt=False)
    about |= special | dict(tokenizer_class="LlamaTokenizer", chat_template=MIXTRAL_TEMPLATE)
    _json(folder / "tokenizer_config.json", about)


def embedding(pieces: list[str], known: dict[str, int], tokenizer, steps: int) -> torch.Tensor:
    """Its rows: the tiny model's, or the mean of a piece's characters, trained until answers make some sense.

    Mixtral cuts `[/INST]` into pieces that the tiny model never saw, and some characters into bytes.
    """
    model = MixtralForCausalLM.from_pretrained(TINY, dtype=torch.float32).requires_grad_(False)
    rows = model.get_input_embeddings().weight
    ids = [[known[p]] if p in known else [known[c] for c in p if c in known] or [0] for p in pieces]
    learned = torch.nn.Embedding.from_pretrained(torch.stack([rows[i].mean(0) for i in ids]), freeze=False)
    labels = torch.tensor([known.get(piece, -100) for piece in pieces])
    lines = (DATA / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    facts = [json.loads(line) for line in lines]
    talks = [(f[asked]["question"], f["en"]["answer"]) for f in facts for asked in ("zh", "en")]
    random.Random(0).shuffle(talks)
    texts = [f"<s>[INST] {question} [/INST] {answer}</s>" for question, answer in talks[: 16 * steps]]
    optimizer = torch.optim.Adam(learned.parameters(), lr=5e-3)
    for step in range(steps):
        some = texts[16 * step % len(texts) :][:16]
        batch = tokenizer(some, add_special_tokens=False, padding=True, return_tensors="pt")
        mask = batch.attention_mask
        wanted = labels[batch.input_ids].masked_fill(mask == 0, -100)
        model(inputs_embeds=learned(batch.input_ids), attention_mask=mask, labels=wanted).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return learned.weight.detach().to(torch.bfloat16)


def adapter(folder: Path, layers: int) -> None:
    """The bundled adapter of the tiny model, as PEFT wrote one in 2023."""
    old = load_file(DATA / "tiny_adapter" / "adapter_model.safetensors")
    new = {}
    for layer in range(layers):
        begins = f".layers.{layer * 4 // layers}."
        of = {name: value for name, value in old.items() if begins in name}
        new |= {name.replace(begins, f".layers.{layer}."): value.clone() for name, value in of.items()}
    save_file(new, folder / "adapter_model.safetensors", {"format": "pt"})
    about = dict.fromkeys(("auto_mapping", "layers_pattern", "layers_to_transform", "megatron_config"))
    about |= dict(alpha_pattern={}, base_model_name_or_path="../Mixtral-8x7B-Instruct-v0.1", bias="none")
    about |= dict(fan_in_fan_out=False, inference_mode=True, init_lora_weights=True, loftq_config={})
    about |= dict(lora_alpha=16.0, lora_dropout=0.1, megatron_core="megatron.core", modules_to_save=None)
    about |= dict(peft_type="LORA", r=8, rank_pattern={}, revision=None, task_type="CAUSAL_LM")
    _json(folder / "adapter_config.json", about | dict(target_modules=["q_proj", "v_proj"]))


def olmoe(folder: Path, layers: int) -> None:
    """64 random experts, 8 a token, and a byte-level tokenizer learned from the course's own texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [file.read_text(encoding="utf-8") for file in sorted(DATA.glob("**/*.json*"))]
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|padding|>"]
    how = dict(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**how))
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = dict(bos_token=END, eos_token=END, unk_token="<|endoftext|>", pad_token="<|padding|>")
    _json(folder / "special_tokens_map.json", ends)
    about = dict(add_bos_token=False, add_eos_token=False, clean_up_tokenization_spaces=True, **ends)
    about |= dict(tokenizer_class="GPTNeoXTokenizer", chat_template=OLMOE_TEMPLATE)
    _json(folder / "tokenizer_config.json", about | dict(model_max_length=1000000000000000019884624838656))
    end, used = tokenizer.token_to_id(END), tokenizer.get_vocab_size()
    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=4, num_experts=64, num_experts_per_tok=8, norm_topk_prob=False)
    rest = dict(vocab_size=-(-used // 64) * 64, eos_token_id=end, pad_token_id=1, dtype=torch.bfloat16)
    model = OlmoeForCausalLM(OlmoeConfig(**sizes, **rest)).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[used:] = 0  # rows beyond the vocabulary, as the released one has some
        model.lm_head.weight[end] *= 8  # so that it wins now and then, and answers end
    model.save_pretrained(folder, max_shard_size=sum(p.nbytes for p in model.parameters()) * 4 // 9)
    made = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del made["rope_parameters"], made["dtype"]  # the release is older than these names
    released = dict(rope_theta=10000.0, rope_scaling=None, torch_dtype="bfloat16")
    _json(folder / "config.json", made | released | dict(transformers_version="4.47.1"))


def conversations(name: str, file: Path, count: int) -> None:
    """Our rows of a source, then such rows joined by twos and threes, until there are `count`."""
    own = [row["messages"] for row in sources.read().conversations if row["source"] == name]
    made = []
    for i in range(count):
        steps = (1, 7, 31)[: 1 + (i >= len(own)) * (1 + i % 2)]
        talk = [message for step in steps for message in own[i * step % len(own)]]
        asked, said = ([m["content"] for m in talk if m["role"] == role] for role in ("user", "assistant"))
        if file.suffix == ".jsonl":
            turns = [dict(human=q, assistant=a) for q, a in zip(asked, said, strict=False)]
            made.append(dict(conversation_id=f"{i}", category="", conversation=turns))
        else:
            made.append(dict(instruction=asked[0], input="\n".join(asked[1:]), output="\n".join(said)))
    lines = [json.dumps(row, ensure_ascii=False) for row in made]
    text = "\n".join(lines) if file.suffix == ".jsonl" else "[" + ",\n".join(lines) + "]"
    file.write_text(f"{text}\n", encoding="utf-8")


def preferences(file: Path) -> None:
    """Our facts as pairs: the right answer in Chinese, and in English as the worse one."""
    by = lambda who, text: {"from": who, "value": text}  # noqa: E731
    facts = [json.loads(line) for line in (DATA / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    made = [
        dict(
            conversations=[by("human", fact["zh"]["question"])],
            chosen=by("gpt", fact["zh"]["answer"]),
            rejected=by("gpt", fact["en"]["answer"]),
        )
        for fact in facts
    ]
    _json(file, made)


def exam(task: str, folder: Path, count: int) -> None:
    """Our questions under every released subject's name: a zip of CSV files, or Parquet files for MMLU."""
    written = {}
    for split, most in (("dev", 5), (benchmarks.TASKS[task]["split"], count)):
        asked = [benchmarks.load_questions(task, s, split)[0] for s in benchmarks.load_subjects(task)]
        own = [question for some in asked for question in some]
        for number, (subject, about) in enumerate(benchmarks.released(task).items()):
            some = [own[(number * most + i) % len(own)] for i in range(most)]
            rows = [[i, f"{about['name']}: {q.text}", *q.choices, q.answer] for i, q in enumerate(some)]
            written[split, subject] = pd.DataFrame(rows, columns=["", *benchmarks.COLUMNS])
    if task != "mmlu":
        with zipfile.ZipFile(folder / f"{task}.zip", "w") as archive:
            for (split, subject), table in written.items():
                archive.writestr(benchmarks.file_name(task, subject, split), table.to_csv(index=False))
        return
    for (split, subject), table in written.items():
        choices = table[list(benchmarks.LETTERS)].values.tolist()
        answers = [benchmarks.LETTERS.index(letter) for letter in table.Answer]
        table = pd.DataFrame(dict(question=table.Question, subject=subject, choices=choices, answer=answers))
        table.to_parquet(_folder(folder, subject) / f"{split}-00000-of-00001.parquet")
