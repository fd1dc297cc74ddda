"""The house stays small, its walls stand. A room is a folder of `aurora_lib`; its `__init__` is its face."""

import ast
import importlib
import inspect
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.pages import house_map
from tools.pages.house_map import LIBRARY, ROOMS, ROOT, imports, lines

FACES = {room: importlib.import_module(f"aurora_lib.{room}") for room in ROOMS}


def names(face: Path) -> list[str]:
    """What a face shows: the names that it imports from the library."""
    taken = [taken for module, taken, _ in imports(face) if module.startswith("aurora_lib")]
    return [one.asname or one.name for one in taken]


NAMES = {f"aurora_lib.{room}": names(LIBRARY / room / "__init__.py") for room in ROOMS}
NAMES["aurora_lib"] = [*names(LIBRARY / "__init__.py"), *ROOMS]


def past_a_face(path: Path) -> list[str]:
    """What the file takes from the library, other than from its own room, without going through a face."""
    own = f"aurora_lib.{path.relative_to(LIBRARY).parts[0]}" if path.is_relative_to(LIBRARY) else "no room"
    faults, faces = [], {}  # faces: by what they are called in this file
    for module, taken, node in imports(path):
        whole = isinstance(node, ast.Import)
        if module.split(".")[0] in ("", "aurora_lib"):
            through = module == "aurora_lib" if whole else taken.name in NAMES.get(module, ())
            if not through and not f"{module}.".startswith(f"{own}."):
                faults.append(f"line {node.lineno}: {module} {'' if whole else taken.name}")
            face = f"{module}.{taken.name}"
            faces |= {name: name for name in NAMES} if whole else {taken.asname or taken.name: face}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):  # `from aurora_lib import chat`, then `chat.session`
            face = faces.get(ast.unparse(node.value))
            if face in NAMES.keys() - {own} and node.attr not in NAMES[face]:
                faults.append(f"line {node.lineno}: {face} {node.attr}")
    return faults


def test_library_rooms_and_tests_stay_within_their_lines():
    limits = {"aurora_lib": 7000, "tests": 7500} | {f"aurora_lib/{room}": 1200 for room in ROOMS}
    sizes = [(folder, lines(ROOT / folder), limit) for folder, limit in limits.items()]
    too_large = [f"{folder}: {n} lines, not {limit}" for folder, n, limit in sizes if n > limit]
    assert not too_large, "\n".join(too_large)


@pytest.mark.parametrize("folder", ["aurora_lib", "tests", "tools", "notebooks/text", "notebooks/solutions"])
def test_no_line_of_code_is_longer_than_110_characters(folder):
    too_long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} characters"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 110 and not (folder == "notebooks/text" and line.startswith("#"))
    ]
    assert not too_long, "\n".join(too_long)


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_is_a_docstring_and_at_most_twelve_names_that_exist(room):
    face, names = FACES[room], NAMES[f"aurora_lib.{room}"]
    assert face.__doc__ and 0 < len(names) == len(set(names)) <= 12, f"{len(names)} names"
    assert [name for name in names if not hasattr(face, name)] == []
    modules = {path.stem for path in (LIBRARY / room).glob("*.py")}
    hidden = [name for name in names if name in modules and not inspect.ismodule(getattr(face, name))]
    assert hidden == [], "a function or class hides the module of that name"


def test_no_name_stands_in_two_faces():
    shown = [(name, room) for room in ROOMS for name in NAMES[f"aurora_lib.{room}"]]
    twice = [f"{name}: {room}, {dict(shown)[name]}" for name, room in shown if room != dict(shown)[name]]
    assert not twice, "\n".join(twice)


@pytest.mark.parametrize("folder", ["aurora_lib", "notebooks/text", "notebooks/solutions"])
def test_rooms_are_entered_through_their_faces(folder):
    walls = {path.relative_to(ROOT): past_a_face(path) for path in sorted((ROOT / folder).rglob("*.py"))}
    faults = [f"{path}, {fault}" for path, found in walls.items() for fault in found]
    assert not faults, "\n".join(faults)


def test_imports_run_down_only_and_in_no_circle():
    """The contracts are in pyproject.toml; import-linter reads the code and imports nothing."""
    rooms = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert rooms == set(ROOMS), "every room has a floor"
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo", "pyproject.toml"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_imported_package_is_declared():
    """A package of an optional group may be imported within a function or a `try` only."""
    project = house_map.PYPROJECT["project"]
    extras = project["optional-dependencies"]
    groups = (project["dependencies"], extras["optimizers"])
    declared, optional = ({canonicalize_name(Requirement(line).name) for line in group} for group in groups)
    distributions, missing = packages_distributions(), set()
    for path in sorted(LIBRARY.rglob("*.py")):
        for module, _, node in imports(path):
            package = module.partition(".")[0]
            wanted = {canonicalize_name(name) for name in distributions.get(package, [package])}
            ours = package in sys.stdlib_module_names or package in ("", "aurora_lib")
            if not ours and not wanted & (declared | (optional if node.col_offset else set())):
                missing.add(f"{'/'.join(wanted)}: {path.relative_to(ROOT)}, line {node.lineno}")
    assert not missing, "\n".join(sorted(missing))


def test_the_picture_of_the_house_is_current():
    assert house_map.PICTURE.read_text(encoding="utf-8") == house_map.svg(), "python -m tools.pages.house_map"
