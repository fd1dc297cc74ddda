"""Kill a `tiny` training run at random moments, resume it, and compare its adapter with an undisturbed run's.

    python -m tools.record.kill_training --kills 20 --seed 0

Every attempt is a process of its own that does what `python -m aurora_lib.training` does: it loads the base
from disk, goes on from what it finds there, and dies by SIGKILL between the moment it says that training
begins and some seconds later. To spare the imports, attempts are forked from one process that has imported
the libraries and done nothing else. Where a run gets to its end before all kills are spent, it is compared
and the next one begins. Exits with 1 on any difference.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time

from aurora_lib import training
from aurora_lib.course import Scale, choose
from aurora_lib.data import clean_conversations, save_conversations

SAVE_STEPS = 2  # often, so that some kills fall into the writing of a checkpoint
LIMIT = 600  # seconds an attempt may take


def attempt(scale: Scale, steps: int, kill_after: float | None) -> tuple[str, float]:
    """One process of training; returns what it printed and the seconds since its training began.

    `kill_after`: seconds from then to SIGKILL; None lets it finish. Raises RuntimeError if it ends in an
    error.
    """
    log = scale.runs / "attempt.log"
    log.write_text("")
    if (child := os.fork()) == 0:
        status = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1), os.dup2(file, 2)
            training.recipe.tune(scale, max_steps=steps, save_steps=SAVE_STEPS)
            status = 0
        finally:
            os._exit(status)
    began, started = None, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if began is None and "Training from step" in log.read_text(errors="replace"):
            began = now
        if done:
            break
        late = now - started > LIMIT
        if late or (kill_after is not None and began is not None and now - began >= kill_after):
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if late:
                raise RuntimeError(f"an attempt took more than {LIMIT} s")
            break
        time.sleep(0.02)
    text = log.read_text(errors="replace")
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"an attempt failed:\n{text[-3000:]}")
    return text, time.monotonic() - (began or time.monotonic())


def digest(scale: Scale) -> str:
    """The SHA-256 of the adapter's weights."""
    return hashlib.sha256((scale.runs / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def fresh(scale: Scale) -> None:
    """Remove adapter and checkpoints, so that the next attempt begins at step 0."""
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(scale.runs / name, ignore_errors=True)


def last_step(text: str) -> int:
    """The step the progress bar showed last."""
    return int((re.findall(r"(\d+)/\d+ \[", text.split("Training from step")[-1]) or ["0"])[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    draw, differences, damaged = random.Random(options.seed), [], 0
    with tempfile.TemporaryDirectory(prefix="kill_training-") as folder:
        scale = choose({"AURORA_SCALE": "tiny", "AURORA_RUNS": folder})
        scale.runs.mkdir(parents=True)
        if (child := os.fork()) == 0:
            save_conversations(clean_conversations(scale), scale)
            os._exit(0)
        os.waitpid(child, 0)
        _, seconds = attempt(scale, options.steps, None)
        expected = digest(scale)
        print(f"undisturbed: {options.steps} steps in {seconds:.1f} s, adapter {expected[:16]}", flush=True)
        fresh(scale)
        window = 2 * seconds / (options.kills + 1)  # seconds: so that the kills spread over about one run
        print(f"{'kill':>4} {'second':>7} {'began at':>9} {'reached':>8} {'damaged checkpoints passed over'}")
        kill, reached = 0, 0
        while True:
            after = draw.uniform(0, window) if kill < options.kills else None
            text, second = attempt(scale, options.steps, after)
            resumed = int((re.findall(r"Resuming from checkpoint-(\d+)", text) or ["0"])[-1])
            passed = re.findall(r"(checkpoint-\d+) was not written completely \((.*?)\)", text)
            damaged += len(passed)
            # a step is lost only if no checkpoint was due since
            if reached - resumed > SAVE_STEPS:
                differences.append(f"kill {kill}: step {reached} was reached, step {resumed} resumed")
            ended = (scale.runs / "adapter" / "adapter_model.safetensors").is_file()
            kill += after is not None and not ended
            reached = max(resumed, last_step(text))  # the bar says 0 until the first step is made
            name = "end" if ended else str(kill)
            told = ", ".join(f"{checkpoint}: {why}" for checkpoint, why in passed)
            print(f"{name:>4} {second:>7.2f} {resumed:>9} {reached:>8} {told}", flush=True)
            if ended:
                if digest(scale) != expected:
                    differences.append(f"after {kill} kills the adapter is {digest(scale)[:16]}")
                if kill == options.kills:
                    break
                fresh(scale)
                reached = 0
    for difference in differences:
        print(f"DIFFERENT: {difference}")
    if not differences:
        print(f"{kill} kills, half-written checkpoints passed over: {damaged}")
        print("every adapter has the same bytes as the undisturbed one")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
