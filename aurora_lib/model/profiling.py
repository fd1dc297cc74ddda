"""Measure memory: over time with phases (`profile`), by counting tensors (`Tensors`), at its highest (`peak_rss`); and `trim` it."""

import ctypes
import sys
import threading
import time
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aurora_lib.course import GIB

if TYPE_CHECKING:
    from aurora_lib.model.memory import MemoryBudget


class Tensors(TorchDispatchMode):
    """Counts the bytes of the tensors made under it, as CUDA's allocator does: `now` and `peak`.

    `held`: tensors made before, which are not counted. Workspaces that a kernel takes for itself are not seen.
    """

    def __init__(self, held=()):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class profile:
    """Record this process's memory over time: `with memory.profile() as p: ...; p.mark("load"); ...`.

    On CUDA: allocated and reserved bytes; on CPU: resident set size, which includes Python and its libraries, or
    with `tensors=True` the bytes of the tensors made meanwhile, which is what `predict` predicts.
    `seconds`, `used` and `reserved` (bytes; on CPU equal to `used`) grow while it runs, `marks` is a list of
    (seconds, phase). The sampling thread stops with the `with`, also by an exception.
    """

    def __init__(
        self, device: str | torch.device | None = None, interval: float = 0.02, tensors: bool = False
    ):
        self.cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
        self.interval, self._tensors = interval, Tensors() if tensors and not self.cuda else None
        self.seconds, self.used, self.reserved, self.marks = [], [], [], []

    def __enter__(self) -> "profile":
        if self.cuda:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
        self._begin, self._stop = time.perf_counter(), threading.Event()
        self._sample()
        self._mode = self._tensors or nullcontext()
        self._mode.__enter__()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._mode.__exit__(*exception)
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self._sample()

    def _sample(self) -> None:
        if self.cuda:
            used, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        elif self._tensors:
            used = reserved = self._tensors.now
        else:
            used = reserved = psutil.Process().memory_info().rss
        self.seconds.append(time.perf_counter() - self._begin)
        self.used.append(used)
        self.reserved.append(reserved)

    def mark(self, phase: str) -> None:
        """A phase begins now."""
        self.marks.append((time.perf_counter() - self._begin, phase))

    @property
    def peak(self) -> float:
        """Highest use in GiB: allocated on CUDA (the allocator's own count), RSS or tensors on CPU."""
        counted = torch.cuda.max_memory_allocated() if self.cuda else getattr(self._tensors, "peak", 0)
        return max([*self.used, counted]) / GIB

    def plot(self, predicted: "MemoryBudget | float | None" = None, ax=None):
        """The timeline with its phases, and the prediction (a budget or GiB) as a line; returns the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(8, 3), layout="constrained")[1]
        unit, size = ("GiB", GIB) if self.peak >= 1 else ("MiB", GIB / 1024)
        what = "allocated" if self.cuda else "tensors" if self._tensors else "resident (RSS)"
        ax.plot(self.seconds, [b / size for b in self.used], label=what)
        if self.cuda:
            ax.plot(self.seconds, [b / size for b in self.reserved], label="reserved", alpha=0.5)
        if predicted is not None:
            height = getattr(predicted, "total", predicted) * GIB / size
            ax.axhline(height, color="black", linestyle="--", label=f"predicted {height:.2f} {unit}")
        for i, (seconds, phase) in enumerate(self.marks):
            ax.axvline(seconds, color="gray", linewidth=0.8)
            # at three heights, since a step is so short that its name would lie on the next
            where = dict(transform=ax.get_xaxis_transform(), rotation=90, fontsize=8)
            ax.text(seconds, 0.02 + 0.22 * (i % 3), f" {phase}", **where)
        title = f"peak {self.peak * GIB / size:.2f} {unit}"
        ax.set(xlabel="seconds", ylabel=unit, ylim=(0, None), title=title)
        ax.legend(loc="upper left", fontsize=8)
        return ax


def trim() -> None:
    """Give freed memory back to the system: glibc keeps blocks of up to 32 MiB, each expert's among them, for later."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
