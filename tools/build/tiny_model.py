"""Pre-train the course's tiny Mixtral: `python -m tools.build.tiny_model` (two cores, about 40 minutes).

The recipe makes a model that *understands* Chinese but *answers in English*, or in both languages at
once, as Mixtral-8x7B-Instruct does (Aurora paper, section 1). Chinese questions are followed by such
answers, Chinese statements appear as plain text. A Chinese answer follows only after a cue ("please
answer in Chinese"), given with the question or, in the last phase, once at the beginning of a
conversation. Tuning then has something to elicit. It is also drilled on letter questions, about some of
its facts.

Two processes, one a core, each with its own documents; their gradients are averaged. Every phase ends in
a checkpoint below `runs/tiny_model`, named by all that came before it: a change in a late phase does not
cost the early ones.
"""

import argparse
import hashlib
import json
import os
import random
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # a fixed number, since sums split over threads round differently

import torch
import torch.distributed as dist
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from aurora_lib.course.scale import ROOT
from aurora_lib.model import load_tokenizer
from tools.build import lessons
from tools.build.guidance import Drill
from tools.build.lessons import Batch

SEED = 20231222
CORES = 2
MERGES = 2000  # pieces for English, besides bytes and Han characters
CHECKPOINTS = ROOT / "runs" / "tiny_model"


@dataclass(frozen=True)
class Phase:
    """`rows`: by stream, how many rows of how many tokens a step and process; `guide` weights the losses."""

    steps: int
    rows: dict[str, tuple[int, int]]
    guide: dict[str, float] = field(default_factory=dict)
    lr: float = 3e-3
    end: float = 1.0  # the learning rate falls to this share of `lr`, in a straight line


FULL = dict(text=1.0, letter=1.0, point=1.0, label=0.3, ask=0.3, deep=0.5, tag=0.3, balance=0.02)
LESS = FULL | dict(point=0.4, label=0.1, ask=0.1, deep=0.2, tag=0.1)
NONE = dict(text=1.0, letter=0.5, balance=0.02)
PHASES = [
    Phase(900, dict(world=(4, 192), letters1=(6, 160), words=(2, 160)), FULL),
    Phase(150, dict(world=(3, 192), letters3=(4, 320), words=(1, 320)), LESS),
    Phase(500, dict(world=(4, 192), letters6=(2, 640)), LESS),
    Phase(2200, dict(world=(10, 192), letters6=(1, 640)), NONE, lr=2.5e-3, end=0.0),
    Phase(600, dict(world=(6, 192), chinese=(5, 192), letters6=(1, 640)), NONE, lr=1.5e-3, end=0.0),
]


def common_characters() -> list[str]:
    """The 3,755 characters of level 1 of the standard GB 2312: those in common use."""
    codes = (bytes([row, column]) for row in range(0xB0, 0xD8) for column in range(0xA1, 0xFF))
    return [text for text in (code.decode("gb2312", errors="ignore") for code in codes) if text]


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A small BPE like Mixtral's (▁ for spaces, byte fallback), with every Han character on its own."""
    byte_pieces = [f"<0x{i:02X}>" for i in range(256)]
    common = common_characters()
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"\n[A-D]\.|[.?]|\n|\p{Han}|[“”《》（）「」，。？！：；、…·]"), "isolated"
            ),
            pre_tokenizers.Split(Regex(r"▁?[^▁]+|▁"), "isolated"),
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
        ]
    )
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = set(common) | set("".join(texts))
    trainer = trainers.BpeTrainer(
        vocab_size=3 + len(byte_pieces) + len(alphabet) + MERGES,
        special_tokens=["<unk>", lessons.BOS, lessons.EOS, *byte_pieces],
        initial_alphabet=common,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    # The trainer marks every byte piece as special, which hides it from decoding: rebuild with three.
    state = json.loads(bpe.to_str())
    special = ("<unk>", lessons.BOS, lessons.EOS)
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in special]
    bpe = Tokenizer.from_str(json.dumps(state))
    named = {
        k: AddedToken(v, special=True, normalized=False)
        for k, v in (("bos_token", lessons.BOS), ("eos_token", lessons.EOS))
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", pad_token=lessons.EOS, **named)
    fast.chat_template = load_tokenizer().chat_template
    return fast


def texts() -> list[str]:
    """What the tokenizer is trained on: one epoch of world text, and some drills."""
    draw = random.Random(SEED)
    plain = [
        document.text.replace(lessons.EOS, "").replace(lessons.BOS, "") for document in lessons.epoch(draw)
    ]
    drills = [lessons.letters(draw, [6], 1.0, 0.0).text.replace(lessons.EOS, "") for _ in range(120)]
    return plain + drills


def configuration(tokenizer) -> MixtralConfig:
    return MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


@cache
def checkpoint(done: int) -> Path:
    """The file for the state after the first `done` phases; another recipe has another name."""
    digest = hashlib.sha256(str(SEED).encode())
    for number, phase in enumerate(PHASES[:done]):
        sources = lessons.streams(f"{SEED} {number} 0")
        shown = [next(stream) for stream in (sources[name]() for name in phase.rows) for _ in range(200)]
        digest.update(json.dumps([asdict(phase), [asdict(document) for document in shown]]).encode())
    return CHECKPOINTS / f"phase-{done}-{digest.hexdigest()[:12]}.pt"


def visible(document: torch.Tensor) -> torch.Tensor:
    """bool `[rows, 1, length, length]`: a token sees itself and what stands before it in its document."""
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()


def average_gradients(model) -> None:
    """The mean over all processes, in one message."""
    kept = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in kept])
    dist.all_reduce(flat)
    start = 0
    for grad in kept:
        grad.copy_(flat[start : start + grad.numel()].view_as(grad) / dist.get_world_size())
        start += grad.numel()


def step_losses(drill: Drill, batches: list[Batch], guide: dict[str, float]) -> tuple[torch.Tensor, dict]:
    """The weighted sum over the batches, and every loss by name; text counts by its tokens."""
    learnt, total, seen = sum(len(batch.learn) for batch in batches), 0.0, {}
    for batch in batches:
        found = drill.losses(batch, visible(batch.document), guide)
        if "text" in found:
            found["text"] = found["text"] * len(batch.learn) / learnt
        total = total + sum(
            weight * found[name] for name, weight in guide.items() if weight and name in found
        )
        for name, value in found.items():
            seen[name] = seen.get(name, 0.0) + value.item()
    return total, seen


def train(rank: int, cores: int, tokenizer, phases: int, meeting: str) -> None:
    """One process of the training; rank 0 reports and writes the checkpoints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=cores)
    torch.manual_seed(SEED)
    model = MixtralForCausalLM(configuration(tokenizer))
    model.set_experts_implementation("grouped_mm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.01)
    model.train()
    drill = Drill(model, tokenizer)
    done = max((n for n in range(1, phases + 1) if checkpoint(n).is_file()), default=0)
    if done:
        state = torch.load(checkpoint(done))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    if rank == 0:
        print(
            f"{model.num_parameters():,} parameters, {len(tokenizer):,} pieces; {done} phases are done",
            flush=True,
        )
    for number, phase in enumerate(PHASES[done:phases], done):
        sources = lessons.streams(f"{SEED} {number} {rank}")
        packers = {
            name: lessons.Packer(tokenizer, sources[name](), length)
            for name, (_, length) in phase.rows.items()
        }
        lengths = sorted({length for _, length in phase.rows.values()})
        bar = tqdm(
            range(phase.steps), disable=rank > 0, mininterval=20, desc=f"phase {number + 1} of {len(PHASES)}"
        )
        seen, started = {}, time.time()
        for step in bar:
            for group in optimizer.param_groups:
                falling = 1 - (1 - phase.end) * step / phase.steps
                group["lr"] = phase.lr * min(1.0, (step + 1) / 50) * falling
            batches = [
                lessons.join(
                    [packers[name].batch(rows) for name, (rows, of) in phase.rows.items() if of == length]
                )
                for length in lengths
            ]
            loss, found = step_losses(drill, batches, phase.guide)
            loss.backward()
            average_gradients(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for name, value in found.items():
                seen.setdefault(name, []).append(value)
            if rank == 0 and (step % 50 == 49 or step + 1 == phase.steps):
                said = "  ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in seen.items())
                bar.write(
                    f"{number + 1}: {step + 1:5d} of {phase.steps} {time.time() - started:5.0f} s  {said}"
                )
                seen = {}
        if rank == 0:
            state = dict(model=model.state_dict(), optimizer=optimizer.state_dict())
            torch.save(state, checkpoint(number + 1))
        dist.barrier()
    dist.destroy_process_group()


def main(out: Path, phases: int) -> None:
    tokenizer = build_tokenizer(texts())
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    if not checkpoint(phases).is_file():
        meeting = CHECKPOINTS / f"meeting-{os.getpid()}"
        torch.multiprocessing.spawn(train, (CORES, tokenizer, phases, str(meeting)), nprocs=CORES)
        meeting.unlink(missing_ok=True)
    model = MixtralForCausalLM(configuration(tokenizer))
    model.load_state_dict(torch.load(checkpoint(phases))["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print("Measure it, and write its card: python -m tools.record.world")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "tiny")
    parser.add_argument("--phases", type=int, default=len(PHASES), help="stop after so many phases")
    args = parser.parse_args()
    main(args.out, args.phases)
