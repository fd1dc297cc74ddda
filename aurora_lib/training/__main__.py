"""`python -m aurora_lib.training`: what notebook 04 trains, from a terminal."""

import argparse
import os
import tomllib
from pathlib import Path

import torch

from aurora_lib.course import ScaleError, start
from aurora_lib.model import AdapterError, memory
from aurora_lib.training.callbacks import TrainingError
from aurora_lib.training.recipe import tune

# errors whose message is written for the reader; anything else is a mistake of ours and keeps its traceback
EXPLAINED = (ScaleError, AdapterError, TrainingError, memory.DoesNotFit, ValueError, OSError, ImportError)
OPTIONS = tomllib.loads(Path(__file__).with_name("options.toml").read_text(encoding="utf-8"))
TYPES = {"text": str, "int": int, "float": float, "path": lambda path: Path(path).expanduser()}


def main() -> None:
    """Parse the command line (`options.toml`), tune, and end an expected failure in one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.training",
        description="Tune the base model as notebook 04 does. Ctrl-C stops after the step in flight; the "
        "same command then goes on from there.",
    )
    for name, about in OPTIONS.items():
        parser.add_argument(f"--{name}", **about | {"type": TYPES[about.get("type", "text")]})
    asked = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    if {"max_steps", "num_train_epochs"} & asked.keys():
        asked.setdefault("minutes", 0.0)  # who names an end wants that one
    if "minutes" in asked:
        os.environ["AURORA_MINUTES"] = str(asked.pop("minutes"))
    for value in asked.values():
        if isinstance(value, int | float) and not 0 < value < float("inf"):
            parser.error(f"every number must be above 0, and one is {value}")
    if (out := asked.get("out")) and out.exists() and not (out / "adapter_config.json").is_file():
        parser.error(f"--out {out} is there already and holds no adapter. Name a new folder.")
    if chosen := asked.pop("scale", None):
        os.environ["AURORA_SCALE"] = chosen
        # importing aurora_lib has chosen the number of threads by the scale that was set before
        torch.set_num_threads(1 if chosen == "tiny" else os.cpu_count())
    try:
        tune(start("04"), **asked)
    except KeyboardInterrupt as stopped:
        at_once = "Stopped at once. The same command begins at the last checkpoint."
        parser.exit(130, f"{stopped or at_once}\n")
    except EXPLAINED as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
