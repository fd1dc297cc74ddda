"""The places to run: what Binder, Colab, conda, a devcontainer and GitHub Actions read is what they can read.

Needs no PyTorch. With repo2docker at hand, in an environment of its own, its reading of binder/ is tested too:
`pip install jupyter-repo2docker pytest pyyaml`, then `python -m pytest --noconftest tests/test_places.py`.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
from tools.pages import environments as write_environments  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = SpecifierSet(PROJECT["requires-python"])
# "Upgrading ipython, ipykernel, tornado, prompt-toolkit or pyzmq can cause your runtime to repeatedly crash", says Colab
KERNEL = {"ipykernel", "tornado", "prompt-toolkit", "pyzmq"}


def packages(lines: list[str]) -> dict[str, str]:
    """Version by canonical name of lines such as `torch==2.13.0`."""
    found = [line.split("==") for line in lines if not line.startswith(("-", "#"))]
    return {canonicalize_name(name): version for name, version in found}


def pip_lines(path: str) -> list[str]:
    environment = yaml.safe_load((ROOT / path).read_text())
    return next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))


def colab_lines() -> list[str]:
    return [line for line in (ROOT / "binder/colab.txt").read_text().splitlines() if line[0] != "#"]


CONSTRAINTS = packages((ROOT / "constraints.txt").read_text().splitlines())
DIRECT = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_files_read_and_pin_every_direct_dependency_as_constraints_do(path):
    environment = yaml.safe_load((ROOT / path).read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"] and "pip" in environment["dependencies"]
    (python,) = (line for line in environment["dependencies"] if str(line).startswith("python="))
    assert python.removeprefix("python=") in PYTHONS
    pinned = packages(pip_lines(path))
    assert pinned.items() <= CONSTRAINTS.items() and pinned.keys() >= DIRECT
    # what those packages need in their turn is pinned as well: here, or for Binder by postBuild
    local = [line for line in pip_lines(path) if line.startswith(("-c", "-e"))]
    assert local == ([] if path.startswith("binder") else ["-c constraints.txt", "-e ."])


def test_colab_gets_the_same_pins_and_keeps_its_kernel():
    assert (ROOT / "binder/colab.txt").read_text() == write_environments.colab()
    pinned = packages(colab_lines())
    assert pinned.items() <= CONSTRAINTS.items()
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


@pytest.fixture
def recorded(tmp_path):
    """Runs a script with a Python that only notes in which folder it was asked for what."""
    for name in ("python", "python3"):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\necho "$(pwd) $*" >> {tmp_path}/asked\n')
        stub.chmod(0o755)

    def run(script, cwd):
        environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(["bash", str(script)], cwd=cwd, env=environ, check=True, capture_output=True)
        return [line.removeprefix(f"{ROOT} ") for line in (tmp_path / "asked").read_text().splitlines()]

    return run


def test_binder_and_colab_install_the_course_from_the_folder_they_are_in(recorded, tmp_path):
    (asked,) = recorded(ROOT / "binder/postBuild", ROOT)  # repo2docker calls it as ./binder/postBuild
    assert asked.startswith("-m pip install") and asked.endswith(" -c constraints.txt -e .")
    (tmp_path / "asked").unlink()
    uninstall, packages, course = recorded(ROOT / "binder/colab", tmp_path)
    assert uninstall.startswith("-m pip uninstall") and uninstall.endswith("torchvision torchaudio")
    assert packages.endswith(" -r binder/colab.txt")
    assert course.endswith(" --no-deps -e .")


def test_binder_starts_what_it_is_asked_to_at_tiny():
    program = "import os, sys; print(os.environ['AURORA_SCALE'], sys.argv[1:])"
    command = [ROOT / "binder/start", sys.executable, "-c", program, "a b", "*"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "tiny ['a b', '*']\n"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only in a git checkout")
def test_scripts_of_binder_are_executable_in_git():
    listed = subprocess.run(
        ["git", "ls-files", "-s", "binder"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    modes = {line.split("\t")[1]: line.split()[0] for line in listed.splitlines()}
    assert {modes[f"binder/{name}"] for name in ("postBuild", "start")} == {"100755"}


def test_repo2docker_reads_binder_as_meant(monkeypatch):
    app = pytest.importorskip(
        "repo2docker.app", reason="repo2docker is not installed (see the head of this file)"
    )
    monkeypatch.chdir(ROOT)
    chosen = app.Repo2Docker()
    first = next(pack for pack in chosen.buildpacks if pack(chosen.base_image).detect())
    pack = first(chosen.base_image)
    pack.platform = "linux/amd64"
    assert first.__name__ == "CondaBuildPack" and pack.python_version == "3.11"
    assert pack.get_build_script_files()  # raises where there is no frozen base environment of that Python
    assert pack.get_post_build_scripts() == ["binder/postBuild"]
    assert pack.get_start_script().endswith("/binder/start")
    rendered = pack.render()
    update = rendered.index('env update -p ${NB_PYTHON_PREFIX} --file "binder/environment.yml"')
    assert (
        update
        < rendered.index("COPY --chown=1000:1000 src/ ${REPO_DIR}/")
        < rendered.index("./binder/postBuild")
    )


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_table_of_places_in_the_readme_is_current(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == write_environments.filled(name) and text.count("<!-- places -->") == 2
    assert "mybinder.org" in text and "colab.research.google.com" in text


def test_badges_open_the_first_notebook_of_whoever_publishes_this():
    table = write_environments.places("README.md", "https://github.com/someone/my-aurora.git")
    for link in (
        "https://mybinder.org/v2/gh/someone/my-aurora/main?urlpath=lab/tree/notebooks/00_start_here.ipynb",
        "https://colab.research.google.com/github/someone/my-aurora/blob/main/notebooks/00_start_here.ipynb",
    ):
        assert f"]({link})" in table
        assert (ROOT / re.search(r"notebooks/\S+ipynb", link)[0]).is_file()
    chinese = write_environments.places("README.zh.md", "https://github.com/someone/my-aurora")
    assert chinese.count("/notebooks/zh/00_start_here.ipynb)") == 2
    # without an address there is no badge that leads nowhere
    assert "badge" not in write_environments.places("README.md", "")


def test_size_on_binder_was_measured_with_the_pinned_pytorch():
    size = json.loads((ROOT / "binder/size.json").read_text())
    assert size["torch"] == f"{CONSTRAINTS['torch']}+cpu" and 1 < size["installed [GiB]"] < 4


def test_devcontainer_sets_up_with_a_python_and_a_command_that_exist():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert re.match(r"python:(3\.\d+)-", container["image"])[1] in PYTHONS
    command = container["postCreateCommand"].split()
    planned = subprocess.run(
        [*command, "-n", "-B"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert " --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt -e '.[dev]'" in planned


def test_ci_runs_make_test_with_every_python_that_is_promised():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    job = workflow["jobs"]["test"]
    promised = [f"3.{minor}" for minor in range(8, 30) if f"3.{minor}" in PYTHONS]
    assert job["strategy"]["matrix"]["python"] == promised
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test TORCH=cpu"]
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert all(python in text for python in promised)
