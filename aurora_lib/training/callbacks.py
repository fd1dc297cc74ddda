"""What watches a training run: an alarm for a zero gradient, a meter, held-out questions, a live picture."""

import io
import math
import time

import psutil
import torch
from transformers import ProgressCallback, TrainerCallback

from aurora_lib.course import machine
from aurora_lib.evaluation import load_probes, probe
from aurora_lib.model import memory

PANELS = {  # keys of `trainer.state.log_history`
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "memory_gib": "memory [GiB]",
}
SHARES = {  # what `Watch` adds to it
    "zh_in_zh": "Chinese answered in Chinese",
    "zh_right": "Chinese answered right",
    "en_in_en": "English answered in English",
}


EARLY = (2, 5, 10)  # steps: most moves at the beginning
TICKS = (0, *EARLY, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


class TrainingError(RuntimeError):
    """A run that learns nothing, or whose checkpoint cannot be written; the message says what to do."""


class ZeroGradientAlarm(TrainerCallback):
    """Raises TrainingError where the gradient is zero: nothing is learned, however the loss looks."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        norm = (logs or {}).get("grad_norm", 1.0)
        skipped = args.fp16 and not math.isfinite(norm)  # fp16's scale was too large: a smaller one is tried
        if not norm > 0 and not skipped:
            seen = f"The gradient norm is {norm:g} at step {state.global_step}: nothing is being learned."
            remedy = "Load the base with aurora_lib.model.load_model, which keeps it trainable on every CPU."
            raise TrainingError(f"{seen} {remedy}")


class Meter(TrainerCallback):
    """Adds `tokens_per_second`, `memory_gib` and `seconds` to the log, and has the last step logged too.

    Tokens are those read since the entry before: questions and answers, but no padding (needs
    `include_num_input_tokens_seen="non_padding"`). Memory is the highest allocated so far on CUDA, the
    resident set of this process on a CPU. Seconds are of training, before an interruption too.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.time, self.tokens = training_clock(state), state.num_input_tokens_seen
        self.begin = self.time - training_seconds(state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        now, tokens = training_clock(state), state.num_input_tokens_seen
        used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0  # 0 in a run on the CPU
        extra = {"seconds": round(now - self.begin, 1)}
        extra |= {"memory_gib": round((used or psutil.Process().memory_info().rss) / machine.GIB, 3)}
        if tokens > self.tokens:
            extra["tokens_per_second"] = round((tokens - self.tokens) / (now - self.time), 1)
        self.time, self.tokens = now, tokens
        for entry in (logs, state.log_history[-1]):
            entry.update(extra)


def training_clock(state) -> float:
    """Seconds that go by while this process trains, and not while a `Watch` looks."""
    return time.perf_counter() - getattr(state, "paused", 0.0)


def training_seconds(state) -> float:
    """Seconds that a run has trained, interruptions left out, as `Meter` logs them."""
    return next((entry["seconds"] for entry in state.log_history[::-1] if "seconds" in entry), 0.0)


class Watch(TrainerCallback):
    """Asks held-out questions before the first step, early on, every `every` steps and at the end.

    Adds SHARES to the log, `answer`, that to the first question, which is printed, and `validation`, the mean
    loss of the validation set's sources. It leaves random numbers and `training_clock` alone: a run ends with
    the same weights without it. After EARLY it takes at most a third of the time, of a slow model a tenth.
    """

    def __init__(self, trainer, tokenizer, every: int = 20, questions: int = 12, max_new_tokens: int = 48):
        probes = load_probes(held_out=True)
        self.trainer, self.tokenizer, self.every = trainer, tokenizer, every
        self.probes, self.settings = probes[:: len(probes) // questions], dict(max_new_tokens=max_new_tokens)
        self.next = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        print(self.probes[0]["zh"]["question"])
        if not state.global_step:
            self._look(state)

    def on_step_end(self, args, state, control, **kwargs):
        step, ready = state.global_step, time.monotonic() >= self.next
        if step >= state.max_steps or step in EARLY or (step % self.every == 0 and ready):
            log = control.should_log
            self._look(state)
            control.should_log = log  # evaluating has written a log, and cleared this

    def _look(self, state) -> None:
        began = time.perf_counter()
        with torch.random.fork_rng():
            found = self.trainer.evaluate() if self.trainer.eval_dataset else {}
        losses = [value for name, value in found.items() if name.endswith("_loss")]
        said = probe(self.trainer.model, self.tokenizer, self.probes, progress=False, **self.settings)
        asked = ("zh_in_zh", "in_language"), ("zh_right", "correct"), ("en_in_en", "in_language")
        entry = {name: said.score(name[:2], what).accuracy for name, what in asked}
        entry |= {"validation": sum(losses) / len(losses)} if losses else {}
        state.log_history.append(entry | dict(step=state.global_step, answer=said.rows[0]["answer"]))
        print(f"step {state.global_step:5}  {said.rows[0]['answer']}", flush=True)
        spent = time.perf_counter() - began
        state.paused = getattr(state, "paused", 0.0) + spent
        self.next = time.monotonic() + spent * (2 if spent < 3 else 9)


class Bar(ProgressCallback):
    """transformers' bar, without a line for every entry of the log, and with the steps that are left now."""

    def on_step_end(self, args, state, control, **kwargs):
        self.training_bar.total = state.max_steps
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


def plot(log_history: list[dict], predicted: memory.MemoryBudget | None = None):
    """PANELS and SHARES by step, from `trainer.state.log_history`; `predicted`: a line beside the memory."""
    from matplotlib.figure import Figure  # not pyplot: nothing stays open, and nothing is shown twice

    figure = Figure(figsize=(10, 5), layout="constrained")
    loss, *others = PANELS
    axes = figure.subplot_mosaic([[loss, loss, "answers", "answers"], others])

    def draw(panel, key, label=None):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        marker = "." if len(points) < 30 else None
        axes[panel].plot(*zip(*points, strict=True) if points else ([], []), marker=marker, label=label)

    for key, title in PANELS.items():
        draw(key, key, "conversations being learned" if key == loss else None)
        axes[key].set_title(title, fontsize=10)
    draw("loss", "validation", "validation set")
    for key, label in SHARES.items():
        draw("answers", key, label)
    axes["answers"].set_title("answers to a few held-out questions [share]", fontsize=10)
    axes["answers"].set_ylim(-0.05, 1.05)
    for ax in axes.values():
        ax.set_xlabel("step", fontsize=8)
        ax.tick_params(labelsize=8)
    for key in ("loss", "answers"):
        axes[key].legend(fontsize=8)
        axes[key].set_xscale("symlog", linthresh=10)  # most moves in the first steps
        last = max((entry["step"] for entry in log_history), default=10)
        axes[key].set_xlim(0, last + 1)
        axes[key].set_xticks(ticks := [t for t in TICKS if t <= last], labels=ticks)
    if any(len(line.get_xdata()) for line in axes["loss"].lines):
        axes["loss"].set_yscale("log")
    if predicted is not None:
        label = f"predicted tensors: {predicted.total:.2f} GiB"
        axes["memory_gib"].axhline(predicted.total, color="black", linestyle="--", label=label)
        axes["memory_gib"].legend(fontsize=8)
    axes["memory_gib"].set_ylim(bottom=0)
    return figure


class LivePlot(TrainerCallback):
    """`plot`, updated in place while a notebook trains: a saved notebook holds a single PNG."""

    def __init__(self, predicted: memory.MemoryBudget | None = None):
        self.predicted, self.handle, self.next = predicted, None, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.handle = None  # each `train` has a picture of its own
        self._draw(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if time.monotonic() >= self.next:
            self._draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(state)

    def _draw(self, state) -> None:
        began, png = time.monotonic(), io.BytesIO()
        plot(state.log_history, self.predicted).savefig(png, format="png", dpi=80)
        from IPython.display import Image, display

        picture = Image(png.getvalue())
        if self.handle:
            self.handle.update(picture)
        else:
            self.handle = display(picture, display_id=True)
        now = time.monotonic()
        self.next = now + max(2, 20 * (now - began))  # drawing never takes more than 5 % of the time
