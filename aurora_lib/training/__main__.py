"""`python -m aurora_lib.training`: what notebook 04 trains, from a terminal."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

# errors whose message is written for the reader; anything else is a mistake of ours and keeps its traceback
from aurora_lib.course.scale import ScaleError, start
from aurora_lib.data.sources import DataError
from aurora_lib.model import memory, nf4
from aurora_lib.model.adapters import AdapterError
from aurora_lib.training.callbacks import NoGradient
from aurora_lib.training.recipe import tune
from aurora_lib.training.running import SaveError, Stopped

EXPLAINED = (ScaleError, DataError, AdapterError, SaveError, NoGradient, memory.DoesNotFit)
EXPLAINED += (nf4.ModelFileError, ValueError, ImportError)


def _above_zero(kind: type):
    """For argparse: a number of `kind` above 0."""

    def number(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, and is {text}")
        return value

    number.__name__ = f"{kind.__name__} above 0"
    return number


def main() -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.training",
        description="Tune the base model as notebook 04 does, from a terminal. Ctrl-C stops after the step in flight; "
        "the same command then goes on from there.",
        epilog="Several GPUs: accelerate launch --config_file configs/ddp.yaml -m aurora_lib.training --scale full",
    )
    parser.add_argument("--scale", choices=["tiny", "full"], help="overrides AURORA_SCALE")
    parser.add_argument("--out", type=Path, help="folder of the adapter (default: runs/<scale>/adapter)")
    parser.add_argument("--learning-rate", type=_above_zero(float), help="peak of the cosine schedule")
    parser.add_argument(
        "--epochs", type=_above_zero(float), dest="num_train_epochs", help="passes over the data"
    )
    parser.add_argument(
        "--max-steps", type=_above_zero(int), help="end after so many optimizer steps, instead of --epochs"
    )
    parser.add_argument(
        "--batch",
        type=_above_zero(int),
        dest="per_device_train_batch_size",
        help="conversations at once on a device",
    )
    parser.add_argument(
        "--optim",
        help="such as paged_adamw_8bit, or the paper's kind, adamw_torch_4bit (pip install torchao)",
    )
    parser.add_argument("--save-steps", type=_above_zero(int), help="optimizer steps between checkpoints")
    parser.add_argument(
        "--max-minutes",
        type=_above_zero(float),
        help="stop after so long and save adapter and checkpoint; the same command goes on",
    )
    parser.add_argument(
        "--price-per-hour",
        type=_above_zero(float),
        help="of the machine, in your currency: predicts what the run costs",
    )
    options = vars(parser.parse_args())
    if (out := options["out"]) and out.exists() and not (out / "adapter_config.json").is_file():
        parser.error(f"--out {out} is there already and holds no adapter. Name a new folder.")
    chosen = options.pop("scale")
    if chosen and os.environ.get("AURORA_SCALE") != chosen:
        # again from the start, since the scale decides the number of threads when libraries are imported
        os.environ["AURORA_SCALE"] = chosen
        os.execv(sys.executable, [sys.executable, "-m", "aurora_lib.training", *sys.argv[1:]])
    own = dict(out=options.pop("out"), minutes=options.pop("max_minutes"))
    own["price_per_hour"] = options.pop("price_per_hour")
    changes = {name: value for name, value in options.items() if value is not None}
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":  # under accelerate only the main process speaks
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            tune(start("04"), **own, **changes)
        except Stopped as stopped:
            parser.exit(130, f"{stopped}\n")
        except KeyboardInterrupt:
            parser.exit(130, "Stopped before training began.\n")
        except EXPLAINED as error:
            parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
