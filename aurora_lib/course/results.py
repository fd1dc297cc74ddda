"""Record what a notebook measured, and set it beside the paper and the runs this repository recorded."""

import json
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from aurora_lib.course import paper
from aurora_lib.course.machine import peak_rss, write_whole
from aurora_lib.course.scale import ROOT, Scale

RECORDED = ROOT / "results"
SECONDS, MEMORY = "notebook time [s]", "notebook peak memory [GiB]"

# How far a value may lie from the recorded one, by the unit in its label; time is a matter of the machine.
TOLERANCE = {"share": 0.05, "GiB": 0.25, "loss": 0.2, "bits": 0.05}


@dataclass
class _Run:
    scale: Scale
    started: float


_runs: dict[str, _Run] = {}


def begin(notebook: str, scale: Scale) -> None:
    """Start the clock of `notebook`; `aurora_lib.start` calls this."""
    _runs[notebook] = _Run(scale, time.time())


def record(notebook: str, values: dict[str, float]) -> Path:
    """Write `values` (label -> number; units in brackets, as in "memory [GiB]") to `runs/<scale>/results/`.

    Time since `start` and the peak memory of this process are added. Raises RuntimeError before `start`.
    """
    run = _begun(notebook)
    values = values | {SECONDS: round(time.time() - run.started, 1), MEMORY: round(peak_rss(), 3)}
    path = _path(notebook, run.scale)
    head = dict(
        notebook=notebook, scale=run.scale.name, device=run.scale.device, date=time.strftime("%Y-%m-%d")
    )
    head |= dict(base_model=Path(run.scale.base_model).name, python=platform.python_version(), cores=_cores())
    # numbers of numpy and torch become Python's
    text = json.dumps(
        head | dict(values=values), indent=1, ensure_ascii=False, default=lambda value: value.item()
    )
    return write_whole(path, text + "\n")


def recorded(notebook: str, where: str) -> dict[str, float]:
    """The values committed for `notebook` in `results/<where>/` ("tiny" or "h100"); empty if none were
    measured."""
    path = RECORDED / where / f"{notebook}.json"
    return json.loads(path.read_text(encoding="utf-8"))["values"] if path.is_file() else {}


def cost(notebook: str, where: str) -> str:
    """Time and peak memory of `notebook` as recorded at `where` ("tiny" or "h100"), in a few words."""
    values = recorded(notebook, where)
    return f"{values[SECONDS]:.0f} s, {values[MEMORY]:.1f} GiB" if values else "not measured"


def yours(notebook: str, scale: Scale) -> dict[str, float]:
    """The values of your own last run of `notebook` at `scale`. Raises RuntimeError if there is none."""
    path = _path(notebook, scale)
    if not path.is_file():
        raise RuntimeError(f'Nothing recorded yet: results.record("{notebook}", {{...}}) comes first.')
    return json.loads(path.read_text(encoding="utf-8"))["values"]


def before_after(scale: Scale) -> pd.DataFrame:
    """What tuning changed, from your run of notebook 04: figures recorded as "..., base [unit]" and "...,
    tuned [unit]"."""
    values = yours("04", scale)
    rows = {
        label.replace(", base", ""): {
            "base": _show(value),
            "tuned": _show(values[label.replace(", base", ", tuned")]),
        }
        for label, value in values.items()
        if ", base" in label
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def compare(notebook: str) -> pd.DataFrame:
    """The closing table of a notebook: paper | recorded on H100 | recorded tiny | yours | is yours as
    recorded?

    Rows are the figures of your run. "not measured" is written where nobody measured.
    """
    scale = _begun(notebook).scale
    h100, tiny = recorded(notebook, "h100"), recorded(notebook, "tiny")
    rows = {}
    for label, value in yours(notebook, scale).items():
        figure = paper.COMPARED.get(label)
        rows[label] = {
            "paper": f"{figure.value:g}" if figure else "",
            "recorded on H100": _show(h100.get(label)),
            "recorded tiny": _show(tiny.get(label)),
            "yours": _show(value),
            "yours as recorded tiny?": _verdict(label, value, tiny.get(label))
            if scale.name == "tiny"
            else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _begun(notebook: str) -> _Run:
    if notebook not in _runs:
        raise RuntimeError(f'Run the set-up cell first: scale = aurora_lib.start("{notebook}")')
    return _runs[notebook]


def _path(notebook: str, scale: Scale) -> Path:
    return scale.runs / "results" / f"{notebook}.json"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _show(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _verdict(label: str, value: float, reference: float | None) -> str:
    unit = re.search(r"\[(.+)\]$", label)
    unit = unit[1] if unit else None
    if reference is None or unit == "s":
        return ""
    if unit not in TOLERANCE:
        return "yes (same)" if value == reference else f"no: expected {_show(reference)}"
    # shares and bits are compared as they stand, sizes and losses relative to the recorded value
    allowed = TOLERANCE[unit] * (1 if unit in ("share", "bits") else abs(reference))
    return f"{'yes' if abs(value - reference) <= allowed else 'no'} (±{allowed:.2g})"
