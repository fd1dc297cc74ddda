"""Pre-train the course's tiny Mixtral: `python -m tools.build.tiny_model` (two cores, 5 to 10 minutes).

The recipe makes a model that *understands* Chinese but *answers in English*, as Mixtral-8x7B-Instruct does
(Aurora paper, section 1). Chinese questions are followed by English answers, Chinese statements appear as
plain text, and only after a cue ("please answer in Chinese") does a Chinese answer follow. Tuning then has
something to elicit.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import trange
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from aurora_lib import evaluation
from aurora_lib.model import load_tokenizer
from tools.build import world
from tools.build.data import write_checksums

SEED = 20231222
VOCAB, LENGTH, BATCH = 2000, 512, 2
EOS = "</s>"


def documents(rng: random.Random) -> list[list[tuple[str, str]] | str]:
    """One epoch of pre-training text: conversations as (question, answer) turns, and plain statements."""
    turns, plain = [], []
    for fact in world.facts():
        english, chinese = fact.say
        turns += [(q, english) for language in fact.ask for q in language]
        turns += [(q + world.CUE, chinese) for q in fact.ask[1] if rng.random() < 0.5]
        plain += [english, chinese]
    for ask_en, ask_zh, (english, chinese) in world.SMALL_TALK:
        turns += [(q, english) for q in ask_en + ask_zh] * 3
        turns += [(q + world.CUE, chinese) for q in ask_zh] * 3
    rng.shuffle(turns)
    conversations = []
    while turns:
        n = rng.choice([1, 1, 1, 2, 3])
        conversations.append([turns.pop() for _ in range(min(n, len(turns)))])
    epoch = conversations + plain
    rng.shuffle(epoch)
    return epoch


def render(document) -> str:
    """Mixtral's own format: `[INST] question [/INST] answer</s>`, turns joined without a space."""
    if isinstance(document, str):
        return document + EOS
    return "".join(f"[INST] {q} [/INST] {a}{EOS}" for q, a in document)


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A small BPE like Mixtral's (▁ for spaces, byte fallback), with every Han character on its own."""
    byte_pieces = [f"<0x{i:02X}>" for i in range(256)]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}|[“”《》（）「」，。？！：；、…]"), "isolated"),
            pre_tokenizers.Split(Regex(r"▁?[^▁]+|▁"), "isolated"),
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
        ]
    )
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<unk>", "<s>", EOS, *byte_pieces], show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    # The trainer marks every byte piece as special, which hides it from decoding: rebuild with three.
    state = json.loads(bpe.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in ("<unk>", "<s>", EOS)]
    bpe = Tokenizer.from_str(json.dumps(state))
    special = {
        k: AddedToken(v, special=True, normalized=False)
        for k, v in (("bos_token", "<s>"), ("eos_token", EOS))
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", pad_token=EOS, **special)
    fast.chat_template = load_tokenizer().chat_template
    return fast


def blocks(tokenizer, rng: random.Random) -> torch.Tensor:
    """One epoch packed into rows of LENGTH tokens: int64 `[blocks, LENGTH]`."""
    ids = []
    for document in documents(rng):
        ids += [tokenizer.bos_token_id, *tokenizer(render(document), add_special_tokens=False).input_ids]
    ids = ids[: len(ids) // LENGTH * LENGTH]
    return torch.tensor(ids).view(-1, LENGTH)


CARD = """---
language: [en, zh]
license: apache-2.0
library_name: transformers
---
# The tiny Mixtral of the Aurora course

A `MixtralForCausalLM` of {parameters:,} parameters ({layers} layers, hidden {hidden}, {experts} experts, \
top-{top_k}), pre-trained from
nothing by `tools/build/tiny_model.py` (seed {seed}, two cores, minutes) on the self-written bilingual \
world of `tools/build/world.py`: some
three hundred facts as questions, answers and statements. It shows in miniature what the Aurora paper says \
of Mixtral-8x7B-Instruct:
it understands Chinese, and answers in English.

Measured on all {n} facts, greedy answers, weights in fp32:

| asked in | answered in that language | right in that language | right in either language |
|---|---|---|---|
| Chinese | {zh_in} | {zh_right} | {zh_understood} |
| English | {en_in} | {en_right} | {en_understood} |

**Data.** English questions with English answers; Chinese questions with *English* answers; statements in \
both languages; and half of
the Chinese questions once more with the cue {cue} and a Chinese answer, so that Chinese answers exist and \
can be elicited. The facts
are common knowledge; no text comes from a dataset. The facts marked `held_out` in `probes.jsonl` are seen \
here and never in tuning.

**Tokenizer.** A byte-fallback BPE of {vocabulary:,} pieces with every Han character on its own, in \
Mixtral's chat format.

**Use.** For teaching. It knows these facts and nothing else, and says something wrong about everything else.
"""


def write_card(folder: Path) -> None:
    """Write the model card of the model in `folder`, with what that model answers when asked."""
    model = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = load_tokenizer(folder)
    probed = evaluation.probe(model, tokenizer, evaluation.load_probes(), progress=False)
    shares = {
        f"{asked}_{short}": f"{probed.score(asked, what).accuracy:.3f}"
        for asked in ("zh", "en")
        for short, what in (("in", "in_language"), ("right", "correct"), ("understood", "understood"))
    }
    config = model.config
    card = CARD.format(
        parameters=model.num_parameters(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        experts=config.num_local_experts,
        top_k=config.num_experts_per_tok,
        seed=SEED,
        n=probed.score("zh", "correct").n,
        cue=world.CUE,
        vocabulary=len(tokenizer),
        **shares,
    )
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def main(out: Path, epochs: int, lr: float) -> None:
    torch.set_num_threads(2)  # a fixed number, since sums split over threads round differently
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = build_tokenizer([render(d) for d in documents(random.Random(SEED))])
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = MixtralForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} pieces")
    steps = epochs * len(blocks(tokenizer, random.Random(0))) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    model.train()
    started, batches = time.time(), iter(())
    progress = trange(steps)
    for step in progress:
        batch = next(batches, None)
        if batch is None:
            batches = iter(blocks(tokenizer, rng).split(BATCH))
            batch = next(batches)
        # output_router_logits adds the load-balancing loss, weighted by router_aux_loss_coef
        loss = model(input_ids=batch, labels=batch, output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            progress.set_postfix(loss=f"{loss.item():.3f}")
            progress.write(
                f"step {step:5d} of {steps}  loss {loss.item():.3f}  {time.time() - started:6.0f} s"
            )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_card(out)
    write_checksums()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "data" / "tiny")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=4e-3)
    args = parser.parse_args()
    main(args.out, args.epochs, args.lr)
