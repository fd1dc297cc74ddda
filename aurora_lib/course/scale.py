"""Scale presets: everything that differs between `tiny` and `full`, and nothing else."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from aurora_lib.course.hub import endpoint_fault
from aurora_lib.course.machine import GIB

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"


class ScaleError(RuntimeError):
    """The scale asked for does not exist or cannot run here; the message says what to do."""


@dataclass(frozen=True)
class Scale:
    """One size at which the whole course runs.

    `AURORA_MODEL`, `AURORA_DATA`, `AURORA_BENCHMARKS`, `AURORA_ADAPTER` and `AURORA_RUNS` override names and
    paths. `learning_rate`, `epochs` and `length` (tokens) are those of training; `full` has the paper's.
    """

    name: str
    device: str
    reason: str
    base_model: str
    revision: str | None
    data: Path | None
    benchmarks: Path | None
    runs: Path
    adapter: str | None
    learning_rate: float
    epochs: float
    batch: int
    accumulation: int
    length: int
    save_steps: int
    max_new_tokens: int

    @property
    def loading(self) -> dict:
        """What `load_model` is told beside the model: CPUs compute in fp32, as bf16 would only be slower."""
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        return dict(revision=self.revision, dtype=dtype, device=self.device)


_both = dict(epochs=3, batch=2, accumulation=4)
TINY = dict(base_model=str(DATA / "tiny"), revision=None, data=DATA / "rows", benchmarks=DATA / "benchmarks")
TINY |= _both | dict(learning_rate=1e-2, length=256, save_steps=50, max_new_tokens=48)
FULL = dict(base_model="mistralai/Mixtral-8x7B-Instruct-v0.1", data=None, benchmarks=None)
FULL |= dict(revision="125c431e2ff41a156b9f9076f744d2f35dd6e67a")
FULL |= _both | dict(learning_rate=5e-5, length=1024, save_steps=1000, max_new_tokens=256)


def choose(environ=os.environ) -> Scale:
    """The scale to run at: `tiny` unless `AURORA_SCALE` says otherwise. `~` in a path is the home folder.

    Raises ScaleError for an unknown name, `full` without a CUDA GPU, and a wrong HF_ENDPOINT. Whether the
    model fits that GPU is for its memory budget to say, in `load_model` and before a training.
    """
    if fault := endpoint_fault(environ):
        raise ScaleError(f"{fault}.")
    name = environ.get("AURORA_SCALE") or "tiny"
    if name not in ("tiny", "full"):
        remedy = "Set it to 'tiny' or 'full', or unset it for 'tiny'."
        raise ScaleError(f"AURORA_SCALE={name!r} does not exist. {remedy}")
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    seen = f"{gpu.name} with {gpu.total_memory / GIB:.1f} GiB" if gpu else "no CUDA GPU"
    if name == "full" and not gpu:
        remedy = "Unset AURORA_SCALE to run all at 'tiny' on the CPU, or rent a GPU (README, 'Going full')."
        raise ScaleError(f"AURORA_SCALE=full needs a CUDA GPU, and this machine has none. {remedy}")
    if environ.get("AURORA_SCALE"):
        reason = f"AURORA_SCALE={name}; {seen}"
    elif gpu:
        tried = "could be tried with AURORA_SCALE=full, where the memory budget decides"
        reason = f"AURORA_SCALE is not set; {seen} {tried}"
    else:
        reason = f"the default, since AURORA_SCALE is not set; {seen} here"
    preset = dict(TINY if name == "tiny" else FULL)
    given = {key: os.path.expanduser(value) for key, value in environ.items() if key.startswith("AURORA_")}
    if given.get("AURORA_MODEL"):
        preset |= dict(base_model=given["AURORA_MODEL"], revision=None)
    for key in ("data", "benchmarks"):
        if place := given.get(f"AURORA_{key.upper()}"):
            preset[key] = Path(place).resolve()
    preset["runs"] = Path(given.get("AURORA_RUNS") or ROOT / "runs").resolve() / name
    preset |= dict(device="cuda" if name == "full" else "cpu", adapter=given.get("AURORA_ADAPTER"))
    return Scale(name=name, reason=reason, **preset)
