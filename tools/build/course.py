"""Run every notebook in order, unmodified, and print what each took: `make course`."""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from aurora_lib.course import results, scale

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


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


def main() -> int:
    try:
        chosen = scale.choose()
    except scale.ScaleError as error:
        print(error)
        return 1
    print(f"The Aurora course at scale {chosen.name!r} ({chosen.reason})\n", flush=True)
    print(f"{'notebook':<22}{'seconds':>9}{'peak GiB':>10}", flush=True)
    began = time.time()
    done = chosen.runs / "notebooks"
    done.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        print(f"{path.stem:<22}", end="", flush=True)
        started = time.time()
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            print(
                f"   failed\n\n{error.ename}: {error.evalue}\n\nTo see where: make lab, and run {path.name}"
            )
            return 1
        nbformat.write(notebook, done / path.name)
        peak = results.yours(path.stem[:2], chosen)[results.MEMORY]
        print(f"{time.time() - started:>9.1f}{peak:>10.2f}", flush=True)
    print(f"{'all':<22}{time.time() - began:>9.1f}\n")
    n = results.yours("04", chosen)["held-out prompts per language"]
    print(f"Before and after tuning, on {n} facts per language that tuning never saw:\n")
    print(results.before_after(chosen).to_string(), "\n")
    print(
        f"The executed notebooks are in {os.path.relpath(done)}. To work through the course yourself: make lab"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
