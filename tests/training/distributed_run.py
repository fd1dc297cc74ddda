"""A few training steps on the tiny model, alone or started by `accelerate launch`; each run's findings go to a folder.

`distributed_run.py FOLDER RUNS`, RUNS being JSON: {name of the run: fields of `SFTConfig` that differ}.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from datasets import Dataset, disable_progress_bars
from torch import distributed
from torch.distributed.tensor import DTensor

from aurora_lib import training
from aurora_lib.course import scale
from aurora_lib.model import load_model, load_tokenizer, nf4

# answers of very different lengths, so that a mean over ranks is not a mean over tokens
TALK = [
    [
        {"role": "user", "content": f"{number} 加 {number} 是多少？"},
        {"role": "assistant", "content": f"{number} 加 {number} 是 {2 * number}。" * (1 + 3 * (number % 4))},
    ]
    for number in range(24)
]


def train(folder: Path, **changes) -> None:
    """Three steps of eight conversations each; loss, gradient norms and bytes to JSON, the whole adapter beside it."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    tiny = scale.choose({"AURORA_RUNS": str(folder)})
    loading = tiny.loading | (nf4.SHARDED if sharded else {})
    base = load_model(tiny.base_model, **loading)
    resume = changes.pop("resume", None)
    settings = dict(disable_tqdm=True, logging_steps=1, max_steps=3, save_strategy="no")
    args = training.sft_config(tiny, folder / "checkpoints", **settings | changes)
    if sharded and not torch.cuda.is_available():
        # accelerate shards on accelerators only: on CPUs it would silently run DDP instead
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    # without dropout, since every process draws masks of its own
    lora = training.lora_config(tiny, lora_dropout=0.0)
    rows = Dataset.from_dict({"messages": TALK})
    trainer = training.build_trainer(base, load_tokenizer(tiny.base_model), rows, tiny, args, lora)
    trainer.train(resume_from_checkpoint=resume)
    log = trainer.state.log_history
    found = dict(
        processes=args.world_size,
        losses=[row["loss"] for row in log if "loss" in row],
        gradient_norms=[row["grad_norm"] for row in log if "grad_norm" in row],
        stacks=[stack.nbytes for stack in stacks(trainer.model)],
        local=[stack.to_local().nbytes for stack in stacks(trainer.model) if isinstance(stack, DTensor)],
    )
    adapter = {
        name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder / "adapter", state_dict=adapter, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{args.process_index}.json").write_text(json.dumps(found))


def stacks(model) -> list[torch.Tensor]:
    """The packed expert stacks, sharded ones as the whole they belong to."""
    return [getattr(m, key) for m in model.modules() for key in getattr(m, "quant_states", {})]


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bars()
    for name, changes in json.loads(sys.argv[2]).items():
        train(Path(sys.argv[1]) / name, **changes)
    if distributed.is_initialized():
        distributed.destroy_process_group()
