"""A run that can be stopped, killed and resumed, and then ends with the weights of an undisturbed one.

transformers writes the checkpoints and goes on from one. It lacks a way to tell whether a checkpoint is all
there, and whose it is. Both stand in `run.json`, which is written last into every checkpoint.
"""

import hashlib
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from aurora_lib.course import write_whole
from aurora_lib.training.callbacks import TrainingError

RUN_FILE = "run.json"
# Settings that decide what a run computes; a checkpoint made with others is another run's.
# fmt: off
SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "optim", "bf16",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing",
    "weight_decay", "seed", "beta", "loss_type",  # the last two are of DPO
)
# fmt: on


class Stopped(KeyboardInterrupt):
    """A run stopped on request; the message says after which step. Like Ctrl-C, it ends a notebook's run."""


class _AllStepsMade(Exception):
    """The checkpoint that was loaded is the last one of its run."""


def run(trainer: Trainer, minutes: float | None = None) -> TrainOutput:
    """`trainer.train`, from the last whole checkpoint of this very run if there is one.

    Ctrl-C finishes the step in flight, writes a checkpoint and raises Stopped; a second one stops at once.
    After `minutes` it stops in the same way and returns. Raises TrainingError where a checkpoint cannot be
    written, or the gradient is zero.
    """
    folder, mine = Path(trainer.args.output_dir), fingerprint(trainer)
    stop, seal = StopBetweenSteps(minutes), Seal(mine)
    trainer.add_callback(stop)
    trainer.add_callback(seal)
    try:
        found = checkpoint_to_resume(folder, mine)
        print(f"Training from step {found.name.split('-')[1] if found else 0}.", flush=True)
        with stop:
            output = trainer.train(resume_from_checkpoint=str(found) if found else None)
    except _AllStepsMade:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        output = TrainOutput(trainer.state.global_step, losses[-1], {"train_runtime": 0.0})
    except (OSError, RuntimeError, SafetensorError) as error:
        checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
        if not checkpoint.is_dir() or not damage(checkpoint):
            raise  # it was not the writing of a checkpoint that failed
        failed = f"{checkpoint.name} could not be written to {folder} ({error})."
        remedy = "Make room and run the same again: it goes on from the checkpoint before."
        raise TrainingError(f"{failed} {remedy}") from error
    finally:
        trainer.remove_callback(stop)
        trainer.remove_callback(seal)
    step = trainer.state.global_step
    rest = f"step {step} of {trainer.state.max_steps}; checkpoint-{step} is saved. The same again goes on."
    if stop.why == "signal":
        raise Stopped(f"Stopped after {rest}")
    if stop.why == "time":
        print(f"The {minutes:g} minutes are over after {rest}", flush=True)
    return output


class StopBetweenSteps(TrainerCallback):
    """Stops after the step in flight, with a checkpoint, on Ctrl-C (or SIGTERM) or when `minutes` are over.

    `with StopBetweenSteps() as stop:` takes the signals and gives them back; a second Ctrl-C, more than a
    second after the first, stops at once. Afterwards `stop.why` is None, "signal" or "time".
    """

    def __init__(self, minutes: float | None = None):
        self.minutes, self.why, self.asked, self.handlers = minutes, None, None, {}

    def __enter__(self) -> "StopBetweenSteps":
        self.deadline = time.monotonic() + 60 * self.minutes if self.minutes else None
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        # launchers pass on a Ctrl-C that the terminal has sent already: two at once are one
        if self.asked is not None and time.monotonic() - self.asked > 1:
            raise KeyboardInterrupt
        self.asked = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise _AllStepsMade  # transformers would make one step more where an epoch is not over

    def on_step_end(self, args, state, control, **kwargs):
        over = self.deadline is not None and time.monotonic() > self.deadline
        if over or self.asked is not None:
            self.why = "time" if self.asked is None else "signal"
            control.should_log = control.should_save = control.should_training_stop = True


class Seal(TrainerCallback):
    """Writes `run.json` into every checkpoint, last: the run's `fingerprint`, and all files' sizes."""

    def __init__(self, run: dict):
        self.run = run

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]
        for file in files:  # onto the disk before the seal is: a power cut keeps no order of its own
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in files}
        write_whole(checkpoint / RUN_FILE, json.dumps({"run": self.run, "files": sizes}, indent=1) + "\n")


def damage(checkpoint: Path) -> str | None:
    """What is missing or cut off in a checkpoint, in a few words; None if it is whole."""
    try:
        sizes = json.loads((checkpoint / RUN_FILE).read_bytes())["files"]
    except (OSError, ValueError, KeyError):
        return f"{RUN_FILE}, written last, is missing"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or cut off"
    return None


def checkpoint_to_resume(folder: Path, run: dict) -> Path | None:
    """The newest whole checkpoint in `folder`, if it is one of `run` (a `fingerprint`).

    What cannot be used is renamed, not deleted, and a sentence says why: a half-written checkpoint (then the
    one before it is tried), or the whole folder where it is another run's.
    """
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):
        checkpoint = Path(newest)
        if reason := damage(checkpoint):
            checkpoint.rename(_free_name(folder / f"damaged-{checkpoint.name}"))
            print(f"{checkpoint.name} was not written completely ({reason}); trying the one before it.")
            continue
        theirs = json.loads((checkpoint / RUN_FILE).read_bytes())["run"]
        changed = [name for name in run if theirs.get(name) != run[name]]
        if not changed:
            print(f"Resuming from {checkpoint.name}.")
            return checkpoint
        aside = folder.rename(_free_name(folder.with_name(f"{folder.name}-other")))
        why = "; ".join(f"{name}: {theirs.get(name)}, now {run[name]}" for name in changed)
        print(f"The checkpoints in {folder.name} are another run's ({why}): they are now in {aside.name}.")
    return None


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def fingerprint(trainer: Trainer) -> dict:
    """What decides a run's outcome: base, data (number of rows, hash of all tokens), settings, adapter."""
    rows, digest = trainer.train_dataset, hashlib.sha256()
    for batch in rows.iter(1000):
        digest.update(repr(batch).encode())
    lora = trainer.model.peft_config["default"]
    made = {"base": Path(trainer.model.config.name_or_path).name}
    made |= {"rows": len(rows), "hash of the data": digest.hexdigest()[:16]}
    made |= {name: getattr(trainer.args, name) for name in SETTINGS if hasattr(trainer.args, name)}
    made |= {name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    # as it comes back from a file
    return json.loads(json.dumps(made, default=lambda value: sorted(map(str, value))))
