"""A few training steps on the tiny model, alone or started by `accelerate launch`; each run's findings go to a folder.

`distributed_run.py FOLDER RUNS`, RUNS being JSON: {name of the run: fields of `SFTConfig` that differ}.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from datasets import Dataset, disable_progress_bars
from torch import distributed
from torch.distributed.tensor import DTensor

from aurora_lib import training
from aurora_lib.course import choose
from aurora_lib.model import load_model, load_tokenizer, nf4, save_adapter
from tests.training.test_running import At

# answers of very different lengths, so that a mean over ranks is not a mean over tokens
TALK = [
    [
        {"role": "user", "content": f"{number} 加 {number} 是多少？"},
        {"role": "assistant", "content": f"{number} 加 {number} 是 {2 * number}。" * (1 + 3 * (number % 4))},
    ]
    for number in range(24)
]


def train(folder: Path, interrupted: bool = False, **changes) -> None:
    """Three steps of eight conversations each; loss, gradient norms and bytes to JSON, the whole adapter beside it.

    `interrupted`: stopped by a Ctrl-C in the main process in step 2, and resumed.
    """
    tiny = choose({"AURORA_RUNS": str(folder)})

    def trainer():
        args = training.sft_config(tiny, disable_tqdm=True, logging_steps=1, **{"max_steps": 3} | changes)
        if tiny.sharding and not torch.cuda.is_available():
            # accelerate shards on accelerators only: on CPUs it would silently run DDP instead
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        base = load_model(tiny.base_model, **tiny.loading | (nf4.SHARDED if tiny.sharding else {}))
        # without dropout, since every process draws masks of its own
        lora, rows = training.lora_config(lora_dropout=0.0), Dataset.from_dict({"messages": TALK})
        return training.build_trainer(base, load_tokenizer(tiny.base_model), rows, args, lora)

    made = trainer()
    if interrupted:
        if made.args.process_index == 0:
            made.add_callback(At(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
        with contextlib.suppress(KeyboardInterrupt):
            training.run(made)
        assert made.state.global_step == 2
        made = trainer()
    training.run(made)
    log, stacks = made.state.log_history, list(packed(made.model))
    found = dict(
        processes=made.args.world_size,
        losses=[row["loss"] for row in log if "loss" in row],
        gradient_norms=[row["grad_norm"] for row in log if "grad_norm" in row],
        stacks=[stack.nbytes for stack in stacks],
        local=[stack.to_local().nbytes for stack in stacks if isinstance(stack, DTensor)],
    )
    (folder / f"rank{made.args.process_index}.json").write_text(json.dumps(found))
    save_adapter(made, tiny, folder / "adapter")


def packed(model):
    """The packed expert stacks, sharded ones as the whole they belong to."""
    return (getattr(m, key) for m in model.modules() for key in getattr(m, "quant_states", {}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bars()
    for name, changes in json.loads(sys.argv[2]).items():
        train(Path(sys.argv[1]) / name, **changes)
    if distributed.is_initialized():
        distributed.destroy_process_group()
