"""notebooks/text/*.py and notebooks/zh/text/*.md -> notebooks/zh/*.ipynb: the notebooks in Chinese.

    python -m tools.build.chinese [04 ...]             builds all, or those named
    python -m tools.build.chinese --missing [04 ...]   prints what is to be translated, ready to paste

Only Markdown cells are translated; code and outputs are those of the English notebook. In `notebooks/zh/text`
every translation stands below the hash of its English cell: a translation of an older text is noticed.
"""

import argparse
import hashlib
import re
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

import nbformat

from tools.build import notebooks as build_notebooks
from tools.build.notebooks import NOTEBOOKS

# Numbers of notebooks without a Chinese edition so far. Links lead to the English ones.
NOT_YET: tuple[str, ...] = ()

ZH = NOTEBOOKS / "zh"
MARK = re.compile(r"^<!-- en ([0-9a-f]{8}) -->\n", re.MULTILINE)
LINK = re.compile(r"\]\(((\d\d)_\w+\.ipynb)\)")


@dataclass(frozen=True)
class Gap:
    """An English cell without its translation, a translation without its English cell, or one of each."""

    stem: str
    cell: str | None
    english: str | None
    older: str | None

    def __str__(self) -> str:
        if self.english is None:
            return f"{self.stem}: a translation of no cell, delete it: {self.older.splitlines()[0][:60]}"
        state = "has no translation" if self.older is None else "is translated from an older text"
        return f"{self.stem}, cell {self.cell} {state}: {self.english.splitlines()[0][:60]}"


def stems() -> list[str]:
    """The names of all notebooks, translated or not."""
    return sorted(path.stem for path in (NOTEBOOKS / "text").glob("*.py"))


def cell_hash(source: str) -> str:
    """What a translation remembers of its English cell."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def english(stem: str) -> nbformat.NotebookNode:
    """The English notebook from its text, without outputs."""
    return build_notebooks.convert(NOTEBOOKS / "text" / f"{stem}.py")


def translations(stem: str) -> dict[str, str]:
    """Hash of the English cell -> Chinese text, in the order of the file; empty where there is no file.

    Raises ValueError for text above the first hash, and for a hash that stands there twice.
    """
    path = ZH / "text" / f"{stem}.md"
    if not path.is_file():
        return {}
    head, *parts = MARK.split(path.read_text(encoding="utf-8"))
    hashes, texts = parts[::2], parts[1::2]
    if head.strip() or len(set(hashes)) < len(hashes):
        twice = next((mark for mark in hashes if hashes.count(mark) > 1), None)
        wrong = "has text above its first hash" if head.strip() else f"translates {twice} twice"
        raise ValueError(f"{path.name} {wrong}. Every translation stands below one line `<!-- en HASH -->`.")
    return {mark: text.strip() for mark, text in zip(hashes, texts, strict=True) if text.strip()}


def gaps(stem: str) -> list[Gap]:
    """What is to be translated, or deleted, before this notebook can be built."""
    cells = {cell_hash(cell.source): cell for cell in english(stem).cells if cell.cell_type == "markdown"}
    chinese = translations(stem)
    old, new = list(chinese), list(cells)
    found = []
    for _, i, i_end, j, j_end in SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        missing = [cells[mark] for mark in new[j:j_end] if mark not in chinese]
        left_over = [chinese[mark] for mark in old[i:i_end] if mark not in cells]
        for cell, older in zip_longest(missing, left_over):
            found.append(Gap(stem, cell and cell.id, cell and cell.source, older))
    return found


def localise(text: str) -> str:
    """Links to notebooks that have no Chinese edition lead one folder up."""
    return LINK.sub(lambda link: f"](../{link[1]})" if link[2] in NOT_YET else link[0], text)


def build(stem: str) -> str:
    """The Chinese notebook as JSON: translated prose, the English code, its outputs if they are of this code.

    Raises ValueError naming the cells that are not translated.
    """
    if missing := gaps(stem):
        raise ValueError("\n".join(map(str, missing)))
    chinese = translations(stem)
    notebook = english(stem)
    executed = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    current = executed.metadata["aurora"]["source"] == notebook.metadata["aurora"]["source"]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = localise(chinese[cell_hash(cell.source)])
        elif current:
            cell.outputs = executed.cells[number].outputs
            cell.execution_count = executed.cells[number].execution_count
    origin = f"of the execution of notebooks/{stem}.ipynb, which has the same code" if current else "none"
    notebook.metadata["aurora"] |= {"language": "zh", "outputs": origin}
    return nbformat.writes(notebook) + "\n"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("notebooks", nargs="*", help='such as "04" or "04_finetune"; all if none is named')
    arguments.add_argument(
        "--missing", action="store_true", help="print what is to be translated; build nothing"
    )
    given = arguments.parse_args()
    chosen = [s for s in stems() if not given.notebooks or s.startswith(tuple(given.notebooks))]
    if given.missing:
        for gap in (gap for stem in chosen for gap in gaps(stem)):
            print(f"\n===== {gap}")
            if gap.english is not None:
                print(f"\n<!-- en {cell_hash(gap.english)} -->\n{gap.english}")
            if gap.older is not None:
                print(f"\n===== older translation\n{gap.older}")
        return 0
    failed = False
    for stem in chosen:
        if stem[:2] in NOT_YET:
            print(f"{stem}: not translated yet (NOT_YET in tools/build/chinese.py)")
            continue
        try:
            text = build(stem)
        except ValueError as error:
            failed = True
            print(f"{error}\nTo see the text: python -m tools.build.chinese --missing {stem[:2]}")
            continue
        (ZH / f"{stem}.ipynb").write_text(text, encoding="utf-8")
        print(stem)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
