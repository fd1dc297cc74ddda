"""Write environment.yml and binder/environment.yml from pyproject.toml and constraints.txt, so that pins stand in one place."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Written by tools/write_environments.py from pyproject.toml and constraints.txt: edit those, then run it again.
name: aurora
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def pins() -> dict[str, str]:
    """Exact version by package name (lower case, hyphens), from constraints.txt."""
    lines = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in lines}


def environment(*, cpu: bool) -> str:
    """The direct dependencies at their exact pins; with `cpu`, from PyTorch's index of CPU builds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + ([] if cpu else project["optional-dependencies"]["dev"])
    names = [re.split(r"[><=]", requirement)[0] for requirement in wanted]
    lines = [f"{name}=={pins()[name.lower()]}" for name in names]
    # Binder builds the environment before it copies the repository, so the course is added by binder/postBuild.
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", *lines] if cpu else [*lines, "-e ."]
    return HEAD + "".join(f"    - {line}\n" for line in lines)


if __name__ == "__main__":
    (ROOT / "environment.yml").write_text(environment(cpu=False))
    (ROOT / "binder" / "environment.yml").write_text(environment(cpu=True))
