"""The notebooks with their exercises solved, for nbmake: `python -m tools.build.solved FOLDER`.

Each exercise cell keeps its imports and its call of the checker; the stub between becomes the solution in
`notebooks/solutions/`. An assert behind the call turns a "not yet" into an error.
"""

import re
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CHECK = re.compile(r'^exercises\.check\("(\d\d\.\d)", (\w+)\)$', re.M)


def solutions(number: str) -> dict[str, str]:
    """{exercise: source} of `notebooks/solutions/solutions_NN.py`, each with the imports of its file."""
    source = (NOTEBOOKS / "solutions" / f"solutions_{number}.py").read_text(encoding="utf-8")
    head, *parts = re.split(r"^# (\d\d\.\d): ", source.split("\nANSWERS = ")[0], flags=re.M)
    imports = "".join(re.findall(r"^(?:import|from) .*\n", head, re.M))
    return {id: f"{imports}\n# {part.strip()}" for id, part in zip(parts[::2], parts[1::2], strict=True)}


def solve(notebook: nbformat.NotebookNode, answers: dict[str, str]) -> nbformat.NotebookNode:
    """`notebook` with every stub replaced. Raises KeyError for an exercise without a solution."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and (call := CHECK.search(cell.source)):
            id, name = call.groups()
            imports = "".join(re.findall(r"^(?:import|from) .*\n", cell.source, re.M))
            right = f'assert exercises.verdict("{id}", {name})[0] == "right"'
            cell.source = f"{imports}{answers[id]}\n\n{call.group()}\n{right}".strip()
    return notebook


def main(folder: str) -> None:
    """Write every notebook, solved, into `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        notebook = solve(nbformat.read(path, as_version=4), solutions(path.stem[:2]))
        nbformat.write(notebook, Path(folder) / path.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
