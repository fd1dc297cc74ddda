"""Run every notebook in order, unmodified, and print what each took: `make course`."""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from aurora_lib import results, scale

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`, executed in a fresh kernel of this Python. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=ERROR"],  # newer kernels warn at every start about local TCP
    ).execute()
    return notebook


def main() -> int:
    chosen = scale.choose()
    print(f"The Aurora course at scale {chosen.name!r} ({chosen.reason})\n", flush=True)
    print(f"{'notebook':<22}{'seconds':>9}{'peak GiB':>10}", flush=True)
    began = time.time()
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        print(f"{path.stem:<22}", end="", flush=True)
        started = time.time()
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            print(f"   failed\n\n{error}", flush=True)
            return 1
        done = chosen.runs / "notebooks" / path.name
        done.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, done)
        peak = results.yours(path.stem[:2], chosen)[results.MEMORY]
        print(f"{time.time() - started:>9.1f}{peak:>10.2f}", flush=True)
    print(f"{'all':<22}{time.time() - began:>9.1f}\n")
    print(results.before_after(chosen).to_string(), "\n")
    shown = os.path.relpath(chosen.runs / "notebooks")
    print(f"The executed notebooks are in {shown}. To work through the course yourself: make lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
