"""What the course asks of the machine: memory used, over time too, and files written whole or not at all."""

import sys
import threading
import time
import weakref
from pathlib import Path

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30


def peak_rss() -> float:
    """Highest resident memory of this process so far, in GiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB  # macOS counts bytes, Linux KiB


def write_whole(path: Path, text: str) -> Path:
    """Write `text` (UTF-8) beside `path`, then put it there: a kill or a full disk leaves the old file.

    Makes the folder. Raises OSError where the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        return unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


class Tensors(TorchDispatchMode):
    """Counts the bytes of the tensors made under it, as CUDA's allocator does: `now` and `peak`.

    `held`: tensors made before, which are not counted. Workspaces that a kernel takes are not seen.
    """

    def __init__(self, held=()):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        for storage in (tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"):
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class profile:
    """Memory over time: `with machine.profile("cpu") as timeline: ...; timeline.mark("load"); ...`.

    Bytes allocated meanwhile (on CUDA `reserved` are all that are), as `memory.predict` predicts. `seconds`,
    `used` and `reserved` grow while it runs, `marks` is a list of (seconds, phase).
    """

    def __init__(self, device: str | torch.device, interval: float = 0.02):
        self.cuda = torch.device(device).type == "cuda"
        self.interval, self._tensors = interval, Tensors()
        self.seconds, self.used, self.reserved, self.marks = [], [], [], []

    def __enter__(self) -> "profile":
        if self.cuda:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
            self._held = torch.cuda.memory_allocated()  # by models loaded before
        else:
            self._tensors.__enter__()
        self._begin, self._stop = time.perf_counter(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        if not self.cuda:
            self._tensors.__exit__(*exception)
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        done = False
        while not done:
            done = self._stop.wait(self.interval if self.seconds else 0)  # once more after the end
            if self.cuda:
                used, reserved = torch.cuda.memory_allocated() - self._held, torch.cuda.memory_reserved()
            else:
                used = reserved = self._tensors.now
            self.seconds.append(time.perf_counter() - self._begin)
            self.used.append(used)
            self.reserved.append(reserved)

    def mark(self, phase: str) -> None:
        """A phase begins now."""
        self.marks.append((time.perf_counter() - self._begin, phase))

    @property
    def peak(self) -> float:
        """Highest use in GiB, whatever was sampled: the count of CUDA's allocator, or of `Tensors`."""
        peak = torch.cuda.max_memory_allocated() - self._held if self.cuda else self._tensors.peak
        return peak / GIB
