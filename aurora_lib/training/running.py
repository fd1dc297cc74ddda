"""A run that can be stopped, killed and resumed, and then ends with the weights of an undisturbed one.

transformers writes the checkpoints and goes on from one. It lacks a way to tell whether a checkpoint is all
there, and whose it is. Both stand in `run.json`, which is written last into every checkpoint.
"""

import hashlib
import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from aurora_lib.course import write_whole
from aurora_lib.training.callbacks import TrainingError, training_clock, training_seconds

RUN_FILE = "run.json"
# Settings that decide what a run computes; a checkpoint made with others is another run's.
# fmt: off
SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "optim", "bf16",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing",
    "weight_decay", "seed", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "fp16",
    "train_sampling_strategy", "beta", "loss_type",  # the last two are of DPO
)
# fmt: on
WHERE_FROM = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")


class Stopped(KeyboardInterrupt):
    """A run stopped on request; the message says after which step. Like Ctrl-C, it ends a notebook's run."""


class _AllStepsMade(Exception):
    """The checkpoint that was loaded is the last one of its run."""


@contextmanager
def resumable(trainer: Trainer, minutes: float = 0) -> Iterator[str | None]:
    """Within it `trainer.train(resume_from_checkpoint=...)` takes what it gives: can be stopped and goes on.

    It gives the last whole checkpoint of this very run, if there is one. With `minutes` the cosine ends when
    they are over (see `CosineInTime`). Ctrl-C finishes the step in flight, writes a checkpoint and raises
    Stopped; a second one stops at once. Raises ValueError for minutes with another schedule than a cosine,
    TrainingError where a checkpoint cannot be written, or the gradient is zero.
    """
    folder, mine = Path(trainer.args.output_dir), fingerprint(trainer)
    own = [StopBetweenSteps(), Seal(mine), *([CosineInTime(minutes, trainer)] if minutes else [])]
    for callback in own:
        trainer.add_callback(callback)
    try:
        found = checkpoint_to_resume(folder, mine)
        print(f"Training from step {found.name.split('-')[1] if found else 0}.", flush=True)
        with own[0]:
            yield str(found) if found else None
    except _AllStepsMade:
        trainer.state.max_steps = trainer.state.global_step
        print(f"This run has reached its end already. To train anew, move {folder.name} away.")
    except (OSError, RuntimeError, SafetensorError) as error:
        checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
        if not checkpoint.is_dir() or not damage(checkpoint):
            raise  # it was not the writing of a checkpoint that failed
        failed = f"{checkpoint.name} could not be written to {folder} ({error})."
        remedy = "Make room and run the same again: it goes on from the checkpoint before."
        raise TrainingError(f"{failed} {remedy}") from error
    finally:
        for callback in own:
            trainer.remove_callback(callback)
    if own[0].stopped and (step := trainer.state.global_step) < trainer.state.max_steps:
        saved = f"checkpoint-{step} is saved. The same again goes on."
        raise Stopped(f"Stopped after step {step} of {trainer.state.max_steps}; {saved}")


def run(trainer: Trainer, minutes: float = 0) -> TrainOutput:
    """`trainer.train` within `resumable`; its metrics count the seconds of all sessions of this run."""
    metrics = {"train_runtime": 0.0}
    with resumable(trainer, minutes) as checkpoint:
        metrics |= trainer.train(resume_from_checkpoint=checkpoint).metrics
    metrics["train_runtime"] = training_seconds(trainer.state) or metrics["train_runtime"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return TrainOutput(trainer.state.global_step, losses[-1], metrics)


class CosineInTime(TrainerCallback):
    """Lets the learning rate fall to zero, along its half cosine, when `minutes` of training are over.

    How many steps that are, follows from the speed, measured anew at every step. `phase` goes from 0 (peak)
    to 1 (zero): each step takes it on by an equal part of what is left. Time before an interruption counts.
    """

    def __init__(self, minutes: float, trainer: Trainer):
        args = trainer.args
        if args.lr_scheduler_type != "cosine" or args.warmup_steps:
            raise ValueError(
                "Minutes end a cosine without warm-up: leave lr_scheduler_type and warmup_steps."
            )
        self.minutes, self.fewest = minutes, 1

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)  # accelerate wraps it
        reached = schedule.get_last_lr()[0] / schedule.base_lrs[0]
        self.phase = math.acos(2 * min(reached, 1) - 1) / math.pi
        if state.global_step and self.phase > 0.999:
            raise _AllStepsMade
        schedule.lr_lambdas = [lambda _: (1 + math.cos(math.pi * self.phase)) / 2] * len(schedule.lr_lambdas)
        self.begun, self.all = state.global_step, state.max_steps
        self.ends = training_clock(state) + 60 * self.minutes - training_seconds(state)
        self.left, self.times = self.all - self.begun, []
        if self.begun:
            self.fewest = 1 if self.ends > training_clock(state) else 10  # used up: it does not fall at once
            rest = "the rest" if self.fewest == 1 else f"{self.fewest} steps more"
            used = f"{training_seconds(state) / 60:.1f} of {self.minutes:g} minutes are used"
            print(f"{used}, the learning rate is at {reached:.0%} of its peak: it falls to zero in {rest}.")

    def on_optimizer_step(self, args, state, control, **kwargs):
        # after a step and before the next learning rate is set
        self.phase += (1 - self.phase) / self.left
        self.times.append(training_clock(state))
        made = len(self.times)
        self.left = self.all - self.begun - made
        if made > 2:  # the first step also warms up
            pace = (self.times[-1] - self.times[0]) / (made - 1)
            fit = round((self.ends - self.times[-1]) / pace)
            # where time is over too early, one last step brings it to zero; and there it ends
            self.left = min(self.left, max(fit, self.fewest - made, 1)) * (self.phase < 1)
        state.max_steps = self.begun + made + self.left
        if made == 3:
            steps, few = f"{state.max_steps:,} steps", "; too few to learn much" * (state.max_steps < 20)
            fit = "all of them fit" if state.max_steps == self.all else f"so many fit, about{few}"
            print(f"{pace:.2f} s a step: {steps} in {self.minutes:g} minutes ({fit}).")


class StopBetweenSteps(TrainerCallback):
    """Stops after the step in flight, with a checkpoint, on Ctrl-C or SIGTERM; `stopped` says so afterwards.

    `with StopBetweenSteps() as stop:` takes the signals and gives them back; a second Ctrl-C, more than a
    second after the first, stops at once.
    """

    def __init__(self):
        self.stopped, self.asked, self.handlers = False, None, {}

    def __enter__(self) -> "StopBetweenSteps":
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
        if self.asked is not None:
            self.stopped = True
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
    lora = trainer.model.peft_config["default"].to_dict()
    made = {"base": Path(trainer.model.config.name_or_path).name}
    made |= {"rows": len(rows), "hash of the data": digest.hexdigest()[:16]}
    made |= {name: getattr(trainer.args, name) for name in SETTINGS if hasattr(trainer.args, name)}
    made |= {name: value for name, value in lora.items() if name not in WHERE_FROM}
    # as it comes back from a file
    return json.loads(json.dumps(made, default=lambda value: sorted(map(str, value))))
