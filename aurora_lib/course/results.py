"""`start` a notebook, record what it measured, set that beside the paper and the runs recorded here."""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from aurora_lib.course import paper
from aurora_lib.course.machine import GIB, peak_rss, write_whole
from aurora_lib.course.scale import ROOT, Scale, ScaleError, choose

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
RECORDED = ROOT / "results"
SECONDS, MEMORY = "notebook time [s]", "notebook peak memory [GiB]"

# How far a value may lie from the recorded one, by the unit in its label; time is a matter of the machine.
TOLERANCE = {"share": 0.05, "GiB": 0.25, "loss": 0.2}

_runs: dict[str, tuple[Scale, float]] = {}  # notebook -> its scale, and when it began


def start(notebook: str) -> Scale:
    """Choose the scale, print it with device, versions and reason, and start the clock of this notebook.

    `notebook` is its number, such as "03". Raises ScaleError for a scale that does not exist or cannot run
    here, and for a folder of runs that cannot be made.
    """
    scale = choose()
    try:
        scale.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{scale.runs} cannot be made ({error.strerror})"
        raise ScaleError(f"{reason}: set AURORA_RUNS to a folder of yours.") from error
    begin(notebook, scale)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Aurora, notebook {notebook}: scale {scale.name!r} on {scale.device} ({scale.reason})")
    print(f"base model {Path(scale.base_model).name} · Python {platform.python_version()} · {packages}")
    tiny, t4, h100 = (cost(notebook, where) for where in ("tiny", "t4", "h100"))
    costs = f"tiny on two cores {tiny}; mid on a T4 {t4}; full on an H100 {h100}"
    print(f"recorded cost of this notebook: {costs}", flush=True)
    return scale


def begin(notebook: str, scale: Scale) -> None:
    """Start the clock of `notebook` at `scale`."""
    _runs[notebook] = scale, time.time()


def record(notebook: str, values: dict[str, float]) -> Path:
    """Write `values` (label -> number; units in brackets, as in "memory [GiB]") to `runs/<scale>/results/`.

    Time since `start` and the peak memory (of a GPU, if any) are added. Raises RuntimeError before `start`.
    """
    scale, began = _begun(notebook)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    whole = dict(notebook=notebook, scale=scale.name, device=scale.device, date=time.strftime("%Y-%m-%d"))
    whole |= dict(base_model=Path(scale.base_model).name, python=platform.python_version(), cores=cores)
    peak = torch.cuda.max_memory_reserved() / GIB if scale.device == "cuda" else peak_rss()
    whole["values"] = values | {SECONDS: round(time.time() - began, 1), MEMORY: round(peak, 3)}
    # numbers of numpy and torch become Python's
    text = json.dumps(whole, indent=1, ensure_ascii=False, default=lambda value: value.item())
    return write_whole(_path(notebook, scale), text + "\n")


def recorded(notebook: str, where: str, what: str = "values") -> dict:
    """The values committed for `notebook` at `where` ("tiny", "h100", "counted"); empty if nobody measured.

    `what` may be "series": memory over time, {label: {"seconds": [...], ...}}.
    """
    return _read(RECORDED / where / f"{notebook}.json").get(what, {})


def cost(notebook: str, where: str) -> str:
    """Time and peak memory of `notebook` as recorded at `where` ("tiny" or "h100"), in a few words."""
    values = recorded(notebook, where)
    return f"{values[SECONDS]:.0f} s, {values[MEMORY]:.1f} GiB" if values else "not measured"


def yours(notebook: str, scale: Scale) -> dict[str, float]:
    """The values of your own last run of `notebook` at `scale`. Raises RuntimeError if there is none."""
    if not (values := _read(_path(notebook, scale)).get("values")):
        raise RuntimeError(f'Nothing recorded yet: results.record("{notebook}", {{...}}) comes first.')
    return values


def compare(notebook: str) -> pd.DataFrame:
    """The closing table of a notebook: paper | recorded on H100 | recorded tiny | yours | as recorded?

    Rows are the figures of your run. "not measured" is written where nobody measured.
    """
    scale, _ = _begun(notebook)
    h100, tiny = recorded(notebook, "h100"), recorded(notebook, "tiny")
    rows = {}
    for label, value in yours(notebook, scale).items():
        figure = paper.COMPARED.get(label)
        rows[label] = {
            "paper": f"{figure.value:g}" if figure else "",
            "recorded on H100": _show(h100.get(label)),
            "recorded tiny": _show(tiny.get(label)),
            "yours": _show(value),
            "yours as recorded tiny?": _verdict(label, value, tiny.get(label)) * (scale.name == "tiny"),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _begun(notebook: str) -> tuple[Scale, float]:
    if notebook not in _runs:
        raise RuntimeError(f'Run the set-up cell first: scale = aurora_lib.start("{notebook}")')
    return _runs[notebook]


def _path(notebook: str, scale: Scale) -> Path:
    return scale.runs / "results" / f"{notebook}.json"


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _show(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _verdict(label: str, value: float, reference: float | None) -> str:
    unit = label.rpartition("[")[2].removesuffix("]")
    if reference is None or unit == "s" or unit.endswith("/s"):
        return ""
    if unit not in TOLERANCE or "predicted" in label:  # what is computed is the same everywhere
        return "yes (same)" if value == reference else f"no: expected {_show(reference)}"
    # shares are compared as they stand, sizes and losses relative to the recorded value
    allowed = TOLERANCE[unit] * (1 if unit == "share" else abs(reference))
    return f"{'yes' if abs(value - reference) <= allowed else 'no'} (±{allowed:.2g})"
