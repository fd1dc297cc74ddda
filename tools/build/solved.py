"""The notebooks with their exercises solved, for nbmake: `python -m tools.build.solved FOLDER`.

Each exercise cell keeps its imports and its call of the checker; the stub between becomes the solution in
`notebooks/solutions/`. An assert behind the call turns a "not yet" into an error. Of the other cells only
those are kept that an exercise needs: nbmake runs the whole notebooks as they are.
"""

import re
import symtable
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


def needed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`notebook` with no more code cells than its exercises need, by the names that they read and set."""
    wanted, kept = set(), []
    for cell in reversed([cell for cell in notebook.cells if cell.cell_type == "code"]):
        top = symtable.symtable(cell.source, "cell", "exec")
        made = {name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()}
        if CHECK.search(cell.source) or made & wanted:
            wanted = wanted - made | (outer(top) - made if CHECK.search(cell.source) else outer(top))
            kept.append(cell)
    notebook.cells = kept[::-1]
    return notebook


def outer(table: symtable.SymbolTable) -> set[str]:
    """The names that a cell reads of the notebook, within its functions too."""
    top = table.get_type() == "module"
    read = {n.get_name() for n in table.get_symbols() if n.is_referenced() and (top or n.is_global())}
    return read.union(*map(outer, table.get_children()))


def main(folder: str) -> None:
    """Write the exercises of all notebooks, solved, as one notebook into `folder`: one kernel, one start."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    whole = nbformat.v4.new_notebook()
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        whole.cells += needed(solve(nbformat.read(path, as_version=4), solutions(path.stem[:2]))).cells
    nbformat.write(whole, Path(folder) / "solved.ipynb")


if __name__ == "__main__":
    main(*sys.argv[1:])
