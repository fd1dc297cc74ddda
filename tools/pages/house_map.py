"""Draw `docs/house.svg`, the rooms of `aurora_lib` and who imports whom: `python -m tools.pages.house_map`.

The rooms are the steps of a staircase, by their floors in pyproject.toml. At a dot, the room on its left
imports from the room below it. Lines are rounded, so that few changes make the picture an old one.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, PICTURE = ROOT / "aurora_lib", ROOT / "docs" / "house.svg"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAYERS = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]  # from the top down
FLOORS = [floor.replace("aurora_lib.", "").split(" | ") for floor in LAYERS]
ROOMS = [room for floor in FLOORS for room in floor]
# grey lines and opaque boxes: readable on a white page and on a black one
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img">
<title>The rooms of aurora_lib on their floors, and who imports whom</title>
<style>text {{ font: 15px sans-serif; text-anchor: middle; fill: #1f2328 }} .small {{ font-size: 12px }}
rect {{ fill: #dce8f7; stroke: #4a78b0 }} path {{ fill: none; stroke: #8b949e; stroke-width: 1.5 }}
.floor {{ stroke-dasharray: 2 5 }} circle, .tip {{ fill: #d9822b; stroke: none }}</style>"""


def imports(path: Path) -> Iterator[tuple[str, ast.alias, ast.stmt]]:
    """Every import in a file, functions included: (module, what is taken, statement)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = "." * getattr(node, "level", 0) + (getattr(node, "module", None) or "")
            yield from ((module or taken.name, taken, node) for taken in node.names)


def lines(folder: Path) -> int:
    paths = [path for path in folder.rglob("*") if path.suffix in (".py", ".js", ".css")]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def imported(room: str) -> set[str]:
    """The other rooms that `room` imports from."""
    found = [item for path in (LIBRARY / room).glob("*.py") for item in imports(path)]
    names = [f"{module}.{taken.name}..".split(".")[:2] for module, taken, _ in found]
    return {name for root, name in names if root == "aurora_lib"} & set(ROOMS) - {room}


def svg() -> str:
    """The text of the picture."""
    at = {room: (10 + 88 * i, 10 + 54 * i) for i, room in enumerate(ROOMS)}
    width, height = at[ROOMS[-1]][0] + 140, at[ROOMS[-1]][1] + 50
    paths = [f'<path class="floor" d="M10 {at[floor[0]][1] - 7}H{width - 10}"/>' for floor in FLOORS[1:]]
    dots, boxes = [], []
    for room, (x, y) in at.items():
        for below, top in (at[other] for other in ROOMS if other in imported(room)):
            paths.append(f'<path d="M{x + 130} {y + 20}H{below + 65}V{top}"/>')
            dots.append(f'<circle cx="{below + 65}" cy="{y + 20}" r="4.5"/>')
            dots.append(f'<path class="tip" d="M{below + 65} {top}l-5 -9h10z"/>')
        size = round(lines(LIBRARY / room), -2)
        boxes.append(f'<rect x="{x}" y="{y}" width="130" height="40" rx="6"/>')
        boxes.append(f'<text x="{x + 65}" y="{y + 17}">{room}</text>')
        boxes.append(f'<text class="small" x="{x + 65}" y="{y + 33}">{size:,} lines</text>')
    return "\n".join([HEAD.format(width, height), *paths, *dots, *boxes, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8", newline="\n")
