"""Two CPU processes (gloo) started by `accelerate launch` with the files in `configs/`, against one process.

Both see the same eight conversations in a step, so they differ only in the order in which floats are added:
fp32 losses near 14 and gradient norms near 2 by some 1e-6. Adam divides each gradient by its own size, so
where one is nearly zero it turns that rounding into a weight; adapters are therefore compared as a whole, to
a thousandth of their norm. `test_distributed.py FOLDER RUNS` is what the processes run.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import DistributedType, PartialState
from datasets import Dataset, disable_progress_bars
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.tensor import DTensor

from aurora_lib import training
from aurora_lib.course.scale import ROOT, choose
from aurora_lib.model import load_model, load_tokenizer, nf4, save_adapter
from tests.training.test_running import At

CONFIGS = ROOT / "configs"
PER_PROCESS = dict(per_device_train_batch_size=1)  # accumulation 4, two processes
SECONDS = 400  # only for what hangs: a launch takes 15 s, and longer where others use the cores
# answers of very different lengths, so that a mean over ranks is not a mean over tokens
TALK = [
    [
        {"role": "user", "content": f"{number} 加 {number} 是多少？"},
        {"role": "assistant", "content": f"{number} 加 {number} 是 {2 * number}。" * (1 + 3 * (number % 4))},
    ]
    for number in range(24)
]


def train(folder: Path, interrupted: bool = False, **changes) -> None:
    """Three steps of eight conversations; loss, gradient norms and bytes to JSON, the adapter beside it.

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
    log, modules = made.state.log_history, list(made.model.modules())
    stacks = [getattr(m, key) for m in modules for key in getattr(m, "quant_states", {})]
    found = dict(
        losses=[row["loss"] for row in log if "loss" in row],
        gradient_norms=[row["grad_norm"] for row in log if "grad_norm" in row],
        stacks=[stack.nbytes for stack in stacks],
        local=[stack.to_local().nbytes for stack in stacks if isinstance(stack, DTensor)],
    )
    (folder / f"rank{made.args.process_index}.json").write_text(json.dumps(found))
    save_adapter(made, tiny, folder / "adapter")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(folder, per_device_train_batch_size=2)
    return folder


def launch(config, folder, runs):
    """Start two processes, wait, and leave none behind, whatever happens."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / config]
    command += ["--num_processes", "2", __file__, folder, json.dumps(runs)]
    own = dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, env=os.environ | own, **pipes)
    try:
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said[-4000:]
    finally:
        if process.poll() is None:  # the launcher gives its processes sessions of their own
            tree = psutil.Process(process.pid)
            for each in (*tree.children(recursive=True), tree):
                each.kill()
            process.wait()


def found(folder):
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same_training(folder, alone):
    (single,), both = found(alone), found(folder)
    assert len(both) == 2 and len(single["losses"]) == 3 and min(single["gradient_norms"]) > 0
    for rank in both:
        assert rank["losses"] == pytest.approx(single["losses"], abs=1e-5)
        assert rank["gradient_norms"] == pytest.approx(single["gradient_norms"], abs=1e-5)
    ours, theirs = weights(folder), weights(alone)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert weight.norm() > 0  # lora_B began at zero
        assert (ours[name] - weight).norm() < 1e-3 * weight.norm(), name


def test_ddp_gives_the_loss_of_one_process_at_the_same_global_batch(alone, tmp_path):
    by_rank = dict(average_tokens_across_devices=False, max_steps=1)
    launch("ddp.yaml", tmp_path, {"averaged": PER_PROCESS, "by_rank": PER_PROCESS | by_rank})
    assert_same_training(tmp_path / "averaged", alone)
    # a mean of the ranks' own means is another loss, and this comparison sees it
    assert abs(found(tmp_path / "by_rank")[0]["losses"][0] - found(alone)[0]["losses"][0]) > 1e-3


def test_fsdp2_halves_the_packed_experts_and_trains_stops_and_resumes_as_one_process(alone, tmp_path):
    again = PER_PROCESS | dict(interrupted=True, activation_checkpointing=True)
    launch("fsdp2.yaml", tmp_path, {"plain": PER_PROCESS, "resumed": again})
    (single,) = found(alone)
    assert len(single["stacks"]) == 8 and not single["local"]
    for name in ("plain", "resumed"):
        assert_same_training(tmp_path / name, alone)
        for rank in found(tmp_path / name):
            assert rank["stacks"] == single["stacks"]
            assert rank["local"] == [size // 2 for size in single["stacks"]]
    plain, resumed = (weights(tmp_path / name) for name in ("plain", "resumed"))
    assert all(torch.equal(plain[name], resumed[name]) for name in plain)


def test_the_pages_memory_command_predicts_less_for_a_shard_than_for_the_whole(capsys):
    page = (CONFIGS / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r'python -c "\n(.*?)"\n', page, re.DOTALL)
    exec(command, {})
    ddp, fsdp2 = map(float, re.findall(r"total +([\d.]+) GiB", capsys.readouterr().out))
    assert ddp / 2 < fsdp2 < 0.75 * ddp


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bars()
    for name, changes in json.loads(sys.argv[2]).items():
        train(Path(sys.argv[1]) / name, **changes)
    if distributed.is_initialized():
        distributed.destroy_process_group()
