"""Run every notebook unmodified, two at a time, and print what each took: `make course`."""

import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from aurora_lib.course import Scale, ScaleError, choose, results

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# What a notebook takes from another. 04 does not wait for 02: it cleans the same rows itself, in seconds.
AFTER = {"05": {"04"}, "06": {"04"}, "07": {"04"}}
FIRST = ("04", "05", "07")  # the longest chain, so that nobody waits for it at the end


def at_once(scale: Scale) -> int:
    """How many notebooks run side by side: at `tiny` each takes a core, at `full` the whole GPU."""
    return 2 if scale.name == "tiny" else 1


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`, executed in a fresh kernel of this Python. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        coalesce_streams=True,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=ERROR"],  # newer kernels warn at every start about local TCP
    )
    client.execute()
    return notebook


def run(path: Path, into: Path) -> tuple[float, str]:
    """Execute the notebook at `path`, write it into a folder; seconds, and "" or what went wrong."""
    started = time.time()
    try:
        nbformat.write(execute(path), into / path.name)
    except CellExecutionError as error:
        return time.time() - started, f"{error.ename}: {error.evalue}"
    except KeyboardInterrupt:
        return time.time() - started, "stopped"
    return time.time() - started, ""


def run_all(paths: list[Path], scale: Scale) -> str:
    """Run each notebook after those it needs, print a row each; "" or what was wrong in the first to fail."""
    into = scale.runs / "notebooks"
    into.mkdir(parents=True, exist_ok=True)
    waiting = sorted(paths)
    if at_once(scale) > 1:
        waiting.sort(key=lambda path: path.stem[:2] not in FIRST)
    todo, running = {path.stem[:2] for path in paths}, {}
    with ProcessPoolExecutor(at_once(scale), get_context("spawn")) as pool:
        while waiting or running:
            for path in [path for path in waiting if not AFTER.get(path.stem[:2], set()) & todo]:
                if len(running) < at_once(scale):
                    waiting.remove(path)
                    running[pool.submit(run, path, into)] = path
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                path, (seconds, wrong) = running.pop(done), done.result()
                if wrong:
                    print(f"{path.stem:<22}   failed; the other that runs is still brought to its end")
                    return f"{wrong}\n\nTo see where: make lab, and run {path.name}"
                todo.discard(path.stem[:2])
                peak = results.yours(path.stem[:2], scale)[results.MEMORY]
                print(f"{path.stem:<22}{seconds:>9.1f}{peak:>10.2f}", flush=True)
    return ""


def before_after(values: dict[str, float]) -> pd.DataFrame:
    """What tuning changed: figures "..., base [unit]" and "..., tuned [unit]" of notebook 04."""
    pairs = {name: name.replace(", base", ", tuned") for name in values if ", base" in name}
    rows = [(f"{values[base]:.4g}", f"{values[tuned]:.4g}") for base, tuned in pairs.items()]
    return pd.DataFrame(rows, [name.replace(", base", "") for name in pairs], ["base", "tuned"])


def main() -> int:
    try:
        scale = choose()
    except ScaleError as error:
        print(error)
        return 1
    print(f"The Aurora course at scale {scale.name!r} ({scale.reason}), {at_once(scale)} at a time\n")
    print(f"{'notebook':<22}{'seconds':>9}{'peak GiB':>10}", flush=True)
    began = time.time()
    try:
        wrong = run_all(sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")), scale)
    except KeyboardInterrupt:
        wrong = "Stopped."
    if wrong:
        print(f"\n{wrong}")
        return 1
    print(f"{'all':<22}{time.time() - began:>9.1f}\n")
    values = results.yours("04", scale)
    n = values["held-out prompts per language"]
    print(f"Before and after tuning. Shares: of {n} facts a language that it never saw;", end=" ")
    print("loss: on conversations held out of training.\n")
    print(before_after(values).to_string(), "\n")
    where = os.path.relpath(scale.runs / "notebooks")
    print(f"The executed notebooks are in {where}. To work through the course yourself: make lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
