"""The places to run: what Binder, Colab, conda, a devcontainer and GitHub read is what they can read."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.pages import environments, readme

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = SpecifierSet(environments.project()["requires-python"])
DIRECT = {canonicalize_name(Requirement(line).name) for line in environments.project()["dependencies"]}
# Colab: "Upgrading ipython, ipykernel, tornado, prompt-toolkit or pyzmq can cause [...] crash"
KERNEL = {"ipykernel", "tornado", "prompt-toolkit", "pyzmq"}


def packages(lines: list[str]) -> dict[str, str]:
    """Version by canonical name of lines such as `torch==2.13.0`; options and comments are left out."""
    found = [line.split("==") for line in lines if not line.startswith(("-", "#"))]
    return {canonicalize_name(name): version for name, version in found}


CONSTRAINTS = packages((ROOT / "constraints.txt").read_text().splitlines())


@pytest.mark.parametrize("folder", ["", "binder"])
def test_conda_files_are_current_and_pin_every_direct_dependency_as_constraints_do(folder):
    text = (ROOT / folder / "environment.yml").read_text()
    assert text == environments.environment(cpu=folder == "binder")
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python, pip, lines = environment["dependencies"]
    assert pip == "pip" and python.removeprefix("python=") in PYTHONS
    pinned = packages(lines["pip"])
    assert pinned.items() <= CONSTRAINTS.items() and pinned.keys() >= DIRECT
    # what those packages need in their turn is pinned as well: here, or for Binder by postBuild
    local = [line for line in lines["pip"] if line.startswith(("-c", "-e"))]
    assert local == ([] if folder else ["-c constraints.txt", "-e ."])


def test_colab_gets_the_same_pins_and_keeps_its_kernel():
    text = (ROOT / "binder/colab.txt").read_text()
    pinned = packages(text.splitlines())
    assert text == environments.colab() and pinned.items() <= CONSTRAINTS.items()
    assert DIRECT - pinned.keys() == {"jupyterlab", "ipykernel"}
    needed, todo = set(), list(pinned)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            lines = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        if name != "ipython":  # ipywidgets takes any since 6.1: Colab's own stays, with what it needs
            todo += [line.name for line in lines if not line.marker or line.marker.evaluate({"extra": ""})]
    assert "torch" in needed and not needed & KERNEL


def test_binder_and_colab_install_the_course_from_the_folder_they_are_in(tmp_path):
    for name in ("python", "python3"):  # only notes in which folder it was asked for what
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$(pwd) $*" >> {tmp_path}/asked\n')
        (tmp_path / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # repo2docker calls postBuild from the repository; a Colab user may be anywhere
    for script, folder in (("postBuild", ROOT), ("colab", tmp_path)):
        subprocess.check_output(["bash", ROOT / "binder" / script], cwd=folder, env=environ)
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)
    lines = (tmp_path / "asked").read_text().splitlines()
    binder, uninstall, packages, course = (line.removeprefix(f"{ROOT} -m pip ") for line in lines)
    assert binder.startswith("install") and binder.endswith(" -c constraints.txt -e .")
    assert uninstall.startswith("uninstall") and uninstall.endswith("torchvision torchaudio")
    assert packages.endswith(" -r binder/colab.txt") and course.endswith(" --no-deps -e .")


def test_binder_starts_what_it_is_asked_to_at_tiny():
    program = "import os, sys; print(os.environ['AURORA_SCALE'], sys.argv[1:])"
    command = [ROOT / "binder/start", sys.executable, "-c", program, "a b", "*"]
    assert subprocess.check_output(command, text=True) == "tiny ['a b', '*']\n"


def test_tables_of_records_and_of_places_in_the_readmes_are_current():
    for name in readme.WORDS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text == environments.filled(name) == readme.filled(name), name
        assert "mybinder.org" in text and "colab.research.google.com" in text, name


def test_badges_open_the_first_notebook_of_whoever_publishes_this():
    table = environments.places("README.md", "https://github.com/someone/my-aurora.git")
    first = "notebooks/00_start_here.ipynb"
    assert f"](https://mybinder.org/v2/gh/someone/my-aurora/main?urlpath=lab/tree/{first})" in table
    assert f"](https://colab.research.google.com/github/someone/my-aurora/blob/main/{first})" in table
    assert (ROOT / first).is_file()
    chinese = environments.places("README.zh.md", "https://github.com/someone/my-aurora")
    assert chinese.count("/notebooks/zh/00_start_here.ipynb)") == 2
    # without an address there is no badge that leads nowhere
    assert "badge" not in environments.places("README.md", "")


def test_size_on_binder_was_measured_with_the_pinned_pytorch():
    size = json.loads(environments.SIZE.read_text())
    assert size["torch"] == f"{CONSTRAINTS['torch']}+cpu" and 1 < size["installed [GiB]"] < 4


def test_devcontainer_sets_up_with_a_python_and_a_command_that_exist():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert re.match(r"python:(3\.\d+)-", container["image"])[1] in PYTHONS
    command = [*container["postCreateCommand"].split(), "-n", "-B"]
    planned = subprocess.check_output(command, cwd=ROOT, text=True)
    assert " --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt -e '.[dev]'" in planned


def test_ci_runs_make_test_with_every_python_that_is_promised():
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]
    promised = [f"3.{minor}" for minor in range(8, 30) if f"3.{minor}" in PYTHONS]
    assert job["strategy"]["matrix"]["python"] == promised
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test TORCH=cpu"]
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert all(python in text for python in promised)
