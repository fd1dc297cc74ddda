"""What a notebook's first cell calls."""

import platform
from importlib.metadata import version
from pathlib import Path

from aurora_lib.course import results
from aurora_lib.course.scale import Scale, ScaleError, choose

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


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
    results.begin(notebook, scale)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Aurora, notebook {notebook}: scale {scale.name!r} on {scale.device} ({scale.reason})")
    print(f"base model {Path(scale.base_model).name} · Python {platform.python_version()} · {packages}")
    tiny, t4, h100 = (results.cost(notebook, where) for where in ("tiny", "t4", "h100"))
    costs = f"tiny on two cores {tiny}; mid on a T4 {t4}; full on an H100 {h100}"
    print(f"recorded cost of this notebook: {costs}", flush=True)
    return scale
