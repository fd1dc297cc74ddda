"""notebooks/text/*.py -> notebooks/*.ipynb, executed at scale tiny, outputs kept: `make notebooks`.

Names of notebooks as arguments build only those ("04" or "04_finetune"). Figures go to `results/tiny/`.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import jupytext
import nbformat

from aurora_lib.course import results
from tools.build.data import write_checksums
from tools.pages import comparison as write_comparison
from tools.pages import environments as write_environments
from tools.pages import readme as write_readme

ROOT = Path(__file__).resolve().parents[2]
WIDGET = "application/vnd.jupyter.widget-view+json"
NOTEBOOKS = ROOT / "notebooks"


def source_hash(text: Path) -> str:
    """What a built notebook remembers of its source, so that a test can tell a stale one."""
    return hashlib.sha256(text.read_bytes()).hexdigest()[:16]


def convert(text: Path) -> nbformat.NotebookNode:
    """The notebook of a py:percent file, with stable cell ids and without outputs."""
    notebook = jupytext.read(text)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{text.stem[:2]}-{number:02d}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "aurora": {"source": source_hash(text)},
    }
    return notebook


def static(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs without what lives only in a kernel: a page would show "VBox(...)", or a bar that stopped.

    A widget that brings its static version as HTML keeps that.
    """
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if data.pop(WIDGET, None) and "text/html" not in data:
            continue
        if "<progress" not in data.get("text/html", ""):
            kept.append(output)
    return kept


def as_before(made: Path, committed: Path) -> bool:
    """Whether a run gave the committed figures, and took about as long and as much memory.

    Then the committed record stays, since it is the one that the page has printed.
    """
    if not committed.is_file():
        return False
    new, old = (json.loads(path.read_text(encoding="utf-8"))["values"] for path in (made, committed))
    noisy = {label for label in new if label.endswith(("[s]", "/s]")) or label == results.MEMORY}
    near = all(
        abs(new[label] - old.get(label, 0)) <= max(new[label], old.get(label, 0)) / 2 for label in noisy
    )
    return near and {k: new[k] for k in new if k not in noisy} == {k: old[k] for k in old if k not in noisy}


def main(names: list[str]) -> None:
    from tools.build.course import execute

    for variable in ("DATA", "MODEL", "ADAPTER", "BENCHMARKS", "PREFERENCES", "RUNS"):
        os.environ.pop(f"AURORA_{variable}", None)
    os.environ |= {"AURORA_SCALE": "", "TQDM_DISABLE": "1"}  # bars are for those who wait, not for readers
    for text in sorted((NOTEBOOKS / "text").glob("*.py")):
        if names and not any(text.stem.startswith(name) for name in names):
            continue
        for kept in ("cleaning", "scores"):  # the time recorded is that of a first run
            shutil.rmtree(ROOT / "runs" / "tiny" / kept, ignore_errors=True)
        path = NOTEBOOKS / f"{text.stem}.ipynb"
        nbformat.write(convert(text), path)
        print(text.stem, flush=True)
        notebook = execute(path)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # clock times would change on every build
            if cell.cell_type == "code":
                cell.outputs = static(cell.outputs)
        notebook.metadata.pop("widgets", None)  # the state of what was just left out
        nbformat.write(notebook, path)
        made = ROOT / "runs" / "tiny" / "results" / f"{text.stem[:2]}.json"
        committed = ROOT / "results" / "tiny" / made.name
        committed.parent.mkdir(parents=True, exist_ok=True)
        if not as_before(made, committed):
            shutil.copy(made, committed)
            print("    recorded anew: the page prints the record before, so build it once more")
        if text.stem.startswith("04"):
            # notebooks 05 and 06, opened first, are to show what they show after 04
            adapter = ROOT / "runs" / "tiny" / "adapter"
            shutil.copytree(adapter, ROOT / "data" / "tiny_adapter", dirs_exist_ok=True)
            write_checksums()
    write_readme.main()
    write_environments.main()
    write_comparison.main()


if __name__ == "__main__":
    main(sys.argv[1:])
