"""`python -m aurora_lib.training`: what notebook 04 trains, from a terminal."""

import argparse
import contextlib
import os
from pathlib import Path

import torch

from aurora_lib.course import ScaleError, start
from aurora_lib.model import AdapterError, memory
from aurora_lib.training.callbacks import TrainingError
from aurora_lib.training.recipe import tune

# errors whose message is written for the reader; anything else is a mistake of ours and keeps its traceback
EXPLAINED = (ScaleError, AdapterError, TrainingError, memory.DoesNotFit)
EXPLAINED += (ValueError, OSError, ImportError)


def arguments() -> argparse.ArgumentParser:
    """The command line. What is left out keeps the recipe's value."""
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.training",
        description="Tune the base model as notebook 04 does. Ctrl-C stops after the step in flight; the "
        "same command then goes on from there.",
        epilog="Several GPUs: accelerate launch --config_file configs/ddp.yaml -m aurora_lib.training",
    )
    add, folder = parser.add_argument, "folder of the adapter (default: runs/<scale>/adapter)"
    optimizer = "such as paged_adamw_8bit, or the paper's kind, adamw_torch_4bit (pip install torchao)"
    minutes = "stop after so long and save adapter and checkpoint; the same command goes on"
    batch = "conversations at once on a device"
    add("--scale", choices=["tiny", "full"], help="overrides AURORA_SCALE")
    add("--out", type=lambda path: Path(path).expanduser(), help=folder)
    add("--learning-rate", type=float, help="peak of the cosine schedule")
    add("--epochs", type=float, dest="num_train_epochs", help="passes over the data")
    add("--max-steps", type=int, help="end after so many optimizer steps, instead of --epochs")
    add("--batch", type=int, dest="per_device_train_batch_size", help=batch)
    add("--optim", help=optimizer)
    add("--save-steps", type=int, help="optimizer steps between checkpoints")
    add("--max-minutes", type=float, dest="minutes", help=minutes)
    add("--price-per-hour", type=float, help="of the machine, in your currency: predicts what the run costs")
    return parser


def main() -> None:
    """Parse the command line, tune, and end an expected failure in one sentence."""
    parser = arguments()
    asked = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    for value in asked.values():
        if isinstance(value, int | float) and not 0 < value < float("inf"):
            parser.error(f"every number must be above 0, and one is {value}")
    if (out := asked.get("out")) and out.exists() and not (out / "adapter_config.json").is_file():
        parser.error(f"--out {out} is there already and holds no adapter. Name a new folder.")
    if chosen := asked.pop("scale", None):
        os.environ["AURORA_SCALE"] = chosen
        # importing aurora_lib has chosen the number of threads by the scale that was set before
        torch.set_num_threads(1 if chosen == "tiny" else os.cpu_count())
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":  # under accelerate only the main process speaks
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            tune(start("04"), **asked)
        except KeyboardInterrupt as stopped:
            at_once = "Stopped at once. The same command begins at the last checkpoint."
            parser.exit(130, f"{stopped or at_once}\n")
        except EXPLAINED as error:
            parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
