"""What watches a training run: an alarm, a meter, a live picture, and the way to stop between two steps."""

import io
import signal
import threading
import time

import psutil
import torch
from transformers import TrainerCallback

from aurora_lib.course import GIB
from aurora_lib.model.memory import MemoryBudget

PANELS = {  # keys of `trainer.state.log_history`
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "memory_gib": "memory [GiB]",
}


class NoGradient(RuntimeError):
    """A run that learns nothing: its gradient norm is zero, not a number, or was never logged."""


class ZeroGradientAlarm(TrainerCallback):
    """Stops a run whose gradient is exactly zero: a repacked or frozen layer learns nothing, however the loss looks."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in (logs or {}):
            require_gradient([{**logs, "step": state.global_step}])


def require_gradient(log_history: list[dict]) -> None:
    """Raise NoGradient unless `log_history` holds gradient norms and all of them are above zero."""
    norms = [(entry["step"], entry["grad_norm"]) for entry in log_history if "grad_norm" in entry]
    if not norms:
        raise NoGradient("The log holds no gradient norm, so nothing shows that anything was learned.")
    for step, norm in norms:
        if not norm > 0:
            raise NoGradient(
                f"The gradient norm is {norm:g} at step {step}: nothing is being learned. Load the base with "
                f"aurora_lib.model.nf4.load, which keeps the layers trainable on CPUs with AVX512_BF16."
            )


class Meter(TrainerCallback):
    """Adds speed and memory to the trainer's log, and sees to it that the last step is logged too.

    `tokens_per_second`: tokens the model read, questions and answers but no padding, of all processes, since the entry
    before. `memory_gib`, `memory_reserved_gib`: on CUDA the highest allocated and reserved so far, on CPU the resident
    set of this process. Needs `include_num_input_tokens_seen="non_padding"`, which `sft_config` sets.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.time, self.tokens = time.perf_counter(), state.num_input_tokens_seen

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        now, tokens = time.perf_counter(), state.num_input_tokens_seen
        extra = memory_now()
        if tokens > self.tokens:
            extra["tokens_per_second"] = round((tokens - self.tokens) / (now - self.time), 1)
        self.time, self.tokens = now, tokens
        # the averages over the whole session that transformers adds say less than the meter does
        for entry in (logs, state.log_history[-1]):
            for name in [name for name in entry if name.startswith("train_")]:
                del entry[name]
            entry.update(extra)


def memory_now() -> dict[str, float]:
    """`memory_gib` and `memory_reserved_gib`: highest allocated and reserved on CUDA, resident set on CPU."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        used, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    else:
        used = reserved = psutil.Process().memory_info().rss
    return {"memory_gib": round(used / GIB, 3), "memory_reserved_gib": round(reserved / GIB, 3)}


def plot(log_history: list[dict], predicted: MemoryBudget | float | None = None):
    """Loss, learning rate, gradient norm, tokens/s and memory by step, from a trainer's `state.log_history`.

    `predicted`: a budget or GiB, drawn as a line beside the memory. Returns a matplotlib figure.
    """
    from matplotlib.figure import Figure  # not pyplot: nothing stays open, and nothing is shown twice

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    loss, *others = PANELS  # the loss has room for two
    axes = figure.subplot_mosaic([[loss, loss, others[0]], others[1:]])
    for key, title in PANELS.items():
        ax = axes[key]
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        ax.plot(*zip(*points, strict=True) if points else ([], []), marker="." if len(points) < 30 else None)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("step", fontsize=8)
        ax.tick_params(labelsize=8)
    axes["loss"].set_yscale("log")
    memory = axes["memory_gib"]
    used = [entry["memory_gib"] for entry in log_history if "memory_gib" in entry]
    if predicted is not None:
        used.append(getattr(predicted, "total", predicted))
        memory.axhline(
            used[-1], color="black", linestyle="--", label=f"predicted tensors: {used[-1]:.2f} GiB"
        )
        memory.legend(fontsize=8)
    memory.set_ylim(0, 1.1 * max(used, default=1))
    return figure


class LivePlot(TrainerCallback):
    """`plot`, updated in place while a notebook trains; does nothing outside Jupyter.

    Every picture replaces the one before, so that a saved notebook holds a single PNG. A resumed run shows the steps
    before the interruption too. `predicted` as in `plot`.
    """

    def __init__(self, predicted: MemoryBudget | float | None = None, every: float = 2.0):
        self.predicted, self.every, self.handle, self.next = predicted, every, None, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.handle = None  # each `train` has a picture of its own
        self._draw(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if time.monotonic() >= self.next:
            self._draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(state)

    def _draw(self, state) -> None:
        if not state.is_world_process_zero or not _in_jupyter():
            return
        from IPython.display import Image, display

        began, png = time.monotonic(), io.BytesIO()
        plot(state.log_history, self.predicted).savefig(png, format="png", dpi=80)
        picture = Image(png.getvalue())
        if self.handle:
            self.handle.update(picture)
        else:
            self.handle = display(picture, display_id=True)
        took = time.monotonic() - began
        self.next = time.monotonic() + max(
            self.every, 20 * took
        )  # drawing never takes more than 5 % of the time


def _in_jupyter() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


class StopBetweenSteps(TrainerCallback):
    """Stops after the step in flight, with a checkpoint, on Ctrl-C (or SIGTERM) or when `minutes` are over.

    `with StopBetweenSteps() as stop:` around `train` takes the signals and gives them back; a second Ctrl-C, more than
    a second after the first, stops at once. Afterwards `stop.why` is None, "signal" or "time".
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

    def on_step_end(self, args, state, control, **kwargs):
        over = self.deadline is not None and time.monotonic() > self.deadline
        wish = 2 if self.asked is not None else int(over)
        if args.world_size > 1:  # all processes stop after the same step, or the others would wait for ever
            wishes = torch.tensor(wish, device=args.device)
            torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
            wish = int(wishes)
        if wish:
            self.why = "signal" if wish == 2 else "time"
            control.should_log = control.should_save = control.should_training_stop = True
