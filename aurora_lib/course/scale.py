"""Scale presets (`scales.toml`): everything that differs between `tiny`, `mid` and `full`."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch

from aurora_lib.course.hub import endpoint_fault
from aurora_lib.course.machine import GIB

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
PRESETS = tomllib.loads(Path(__file__).with_name("scales.toml").read_text(encoding="utf-8"))
TINY, FULL = PRESETS["tiny"], PRESETS["full"]


class ScaleError(RuntimeError):
    """The scale asked for does not exist or cannot run here; the message says what to do."""


@dataclass(frozen=True)
class Scale:
    """One size at which the whole course runs.

    `AURORA_MODEL`, `AURORA_DATA`, `AURORA_BENCHMARKS`, `AURORA_ADAPTER`, `AURORA_RUNS` override names and
    paths, `AURORA_MINUTES` how long notebook 04 trains, and `AURORA_DEVICE=cpu` the device. `learning_rate`,
    `epochs`, `minutes` (0: all epochs) and `length` (tokens) are those of training; `full` has the paper's.
    One of `every` released rows is read, and `questions` of a benchmark's subject are asked (None: all).
    """

    name: str
    device: str
    dtype: torch.dtype
    reason: str
    base_model: str
    runs: Path
    learning_rate: float
    epochs: float
    batch: int
    accumulation: int
    length: int
    save_steps: int
    max_new_tokens: int
    data: Path | None = None
    benchmarks: Path | None = None
    adapter: str | None = None
    revision: str | None = None
    shipped: str | None = None
    minutes: float = 0
    every: int = 1
    questions: int | None = None

    @property
    def loading(self) -> dict:
        """What `load_model` is told beside the model."""
        return dict(revision=self.revision, dtype=self.dtype, device=self.device)


def choose(environ=os.environ) -> Scale:
    """The scale to run at: `tiny` unless `AURORA_SCALE` says otherwise. `~` in a path is the home folder.

    Raises ScaleError for an unknown name, `mid` and `full` without a CUDA GPU, another device than "cpu",
    minutes that are no number, and a wrong HF_ENDPOINT. Whether the model fits that GPU is for its memory
    budget to say, in `load_model` and before a training.
    """
    if fault := endpoint_fault(environ):
        raise ScaleError(f"{fault}.")
    given = {k: os.path.expanduser(v) for k, v in environ.items() if k.startswith("AURORA_") and v}
    name, asked = given.get("AURORA_SCALE", "tiny"), given.get("AURORA_DEVICE", "")
    if name not in PRESETS:
        remedy = "Set it to 'tiny', 'mid' or 'full', or unset it for 'tiny'."
        raise ScaleError(f"AURORA_SCALE={name!r} does not exist. {remedy}")
    if asked not in ("", "cpu"):
        raise ScaleError(f"AURORA_DEVICE={asked!r} does not exist. Set it to 'cpu', or unset it for the GPU.")
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    seen = f"{gpu.name} with {gpu.total_memory / GIB:.1f} GiB" if gpu else "no CUDA GPU"
    device = "cpu" if name == "tiny" or asked else "cuda"
    if device == "cuda" and not gpu:
        built = "" if torch.version.cuda else " (it is built for CPUs; beside a GPU, make .venv anew)"
        none = f"AURORA_SCALE={name} needs a CUDA GPU, and PyTorch finds none{built}."
        remedy = "Unset AURORA_SCALE to run all at 'tiny' on the CPU, or rent a GPU (README, 'Going full')."
        raise ScaleError(f"{none} {remedy} AURORA_DEVICE=cpu does without: for notebook 02, or a rehearsal.")
    if "AURORA_SCALE" in given:
        reason = f"AURORA_SCALE={name}; {seen}" + "; AURORA_DEVICE=cpu" * bool(asked)
    elif gpu:
        tried = "could be tried with AURORA_SCALE=mid or full, where the memory budget decides"
        reason = f"AURORA_SCALE is not set; {seen} {tried}"
    else:
        reason = f"the default, since AURORA_SCALE is not set; {seen} here"
    # a T4 computes in fp16 only; CPUs in fp32, as bf16 would only be slower
    dtype = torch.bfloat16 if device == "cuda" and gpu.major >= 8 else torch.float16
    preset = PRESETS[name] | dict(device=device, dtype=dtype if device == "cuda" else torch.float32)
    if name == "tiny":
        preset |= {key: str(DATA / preset[key]) for key in ("base_model", "shipped")}
        preset |= {key: DATA / preset[key] for key in ("data", "benchmarks")}
    if model := given.get("AURORA_MODEL"):
        if Path(model).name != Path(preset["base_model"]).name:
            preset["shipped"] = None  # an adapter belongs to one base
        preset |= dict(base_model=model, revision=None)
    for key in ("data", "benchmarks"):
        if place := given.get(f"AURORA_{key.upper()}"):
            preset[key] = Path(place).resolve()
    if "AURORA_DATA" in given:
        preset["every"] = 1
    if minutes := given.get("AURORA_MINUTES"):
        if not re.fullmatch(r"\d+(\.\d+)?", minutes):
            raise ScaleError(f"AURORA_MINUTES={minutes!r} is no number of minutes. 0 trains all epochs.")
        preset["minutes"] = float(minutes)
    if preset.get("minutes"):
        preset["save_steps"] = min(preset["save_steps"], 100)  # 1000 are more than half an hour
    preset["adapter"] = given.get("AURORA_ADAPTER")
    if preset["adapter"] == "released":
        if not preset.get("shipped"):
            raise ScaleError("AURORA_ADAPTER=released: none is released for this base. Run notebook 04.")
        preset["adapter"] = preset["shipped"]
    preset["runs"] = Path(given.get("AURORA_RUNS") or ROOT / "runs").resolve() / name
    return Scale(name=name, reason=reason, **preset)
