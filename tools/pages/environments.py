"""Write what the places to run need, from pyproject.toml, constraints.txt and `results/`.

environment.yml for conda, binder/environment.yml for Binder, binder/colab.txt for Colab, and the table of
places in the READMEs. A fork names its address in pyproject.toml (`[project.urls]`, Repository); this writes
badges of its own.
"""

import json
import platform
import re
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
HEAD = "# Written by tools/pages/environments.py from pyproject.toml and constraints.txt: "
HEAD += "edit those, then run it again.\n"
CONDA = """name: aurora
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11
  - pip
  - pip:
"""
CPU = "--extra-index-url https://download.pytorch.org/whl/cpu"
# Colab's page talks to its own kernel, which does not survive another ipykernel; JupyterLab would bring one.
NOT_ON_COLAB = {"jupyterlab", "ipykernel"}
SIZE = ROOT / "binder" / "size.json"
# How to get there while pyproject.toml names no address; badges take the place of it.
PLACES = (
    {
        "Binder": "[mybinder.org](https://mybinder.org), with this repository's address",
        "Colab": "[Colab](https://colab.research.google.com), tab GitHub, with this repository's address",
    },
    {
        "Binder": "[mybinder.org](https://mybinder.org)，填本仓库的地址",
        "Colab": "[Colab](https://colab.research.google.com) 的 GitHub 标签页，填本仓库的地址",
    },
)
TABLE = (
    """| place | what to know |
|---|---|
| {Binder} | The packages take {size:.1f} GiB, so a first start takes minutes. Memory is 2 GB and the \
hungriest notebook peaks at {peak:.1f} GiB: shut one down before you open the next. What you write is gone \
with the session. |
| {Colab} | The text above the first cell of code says which line to run once. At `tiny` everything \
computes on the CPU; a T4 fits `mid` (below), and not `full`. What you write is gone with the machine, \
unless `AURORA_RUNS` is a folder of a mounted drive. |
| Codespaces, or VS Code with Docker | *Reopen in container* sets up `.venv` with PyTorch's CPU build. |
| conda | `conda env create -f environment.yml`, the same pins. |
""",
    """| 地方 | 须知 |
|---|---|
| {Binder} | 软件包共 {size:.1f} GiB，第一次启动要等几分钟。内存为 2 GB，最费内存的 notebook 峰值为 {peak:.1f} \
GiB：先关掉上一个的内核，再打开下一个。会话结束，写下的东西也就没了。 |
| {Colab} | 第一个代码单元格上方的文字会告诉你要先运行哪一行。`tiny` 全部在 CPU 上计算；T4 放得下 `mid`（见下文），放不下 `full`。机器收回，写下的东西也就没了，除非把 \
`AURORA_RUNS` 设为已挂载云盘里的文件夹。 |
| Codespaces，或者 VS Code 加 Docker | “在容器中重新打开”会建好 `.venv`，装的是 PyTorch 的 CPU 版。 |
| conda | `conda env create -f environment.yml`，版本完全相同。 |
""",
)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    """Exact version by package name (lower case, hyphens), from constraints.txt."""
    lines = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in lines}


def pinned(requirements: list[str]) -> list[str]:
    names = [re.split(r"[><=]", requirement)[0] for requirement in requirements]
    return [f"{name}=={pins()[name.lower()]}" for name in names]


def environment(*, cpu: bool) -> str:
    """The direct dependencies at their exact pins; with `cpu`, from PyTorch's index of CPU builds."""
    wanted = project()["dependencies"] + ([] if cpu else project()["optional-dependencies"]["dev"])
    # Binder builds the environment before it copies the repository: binder/postBuild adds the course, and the
    # pins of what those packages need in their turn.
    lines = [CPU, *pinned(wanted)] if cpu else ["-c constraints.txt", *pinned(wanted), "-e ."]
    return HEAD + CONDA + "".join(f"    - {line}\n" for line in lines)


def colab() -> str:
    """The direct dependencies at their exact pins, less what would replace the kernel of Colab."""
    lines = [line for line in pinned(project()["dependencies"]) if line.split("==")[0] not in NOT_ON_COLAB]
    return HEAD + "".join(f"{line}\n" for line in [CPU, *lines])


def measure() -> None:
    """Add up what Binder's packages take here, into binder/size.json. Wants PyTorch's CPU build."""
    found, todo = {}, project()["dependencies"]
    while todo:
        requirement = Requirement(todo.pop())
        name = requirement.name.lower().replace("_", "-")
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        package = distribution(name)
        todo += package.requires or []
        paths = [Path(file.locate()) for file in package.files or []]
        found[name] = sum(path.stat().st_size for path in paths if path.is_file())
    torch = distribution("torch").version
    if not torch.endswith("+cpu"):
        raise SystemExit(f"torch {torch} is not the CPU build, so this would not be the size on Binder.")
    size = {"packages": len(found), "installed [GiB]": round(sum(found.values()) / 2**30, 2), "torch": torch}
    SIZE.write_text(json.dumps(size | {"python": platform.python_version()}, indent=1) + "\n")


def badges(address: str, folder: str) -> dict[str, str]:
    """A badge each for Binder and Colab, opening notebook 00 of `folder`; none without an address."""
    repository = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?", address)
    if not repository:
        return {}
    first = f"{folder}/00_start_here.ipynb"
    links = {
        "Binder": (
            "https://mybinder.org/badge_logo.svg",
            f"https://mybinder.org/v2/gh/{repository[1]}/main?urlpath=lab/tree/{first}",
        ),
        "Colab": (
            "https://colab.research.google.com/assets/colab-badge.svg",
            f"https://colab.research.google.com/github/{repository[1]}/blob/main/{first}",
        ),
    }
    return {place: f"[![{place}]({picture})]({link})" for place, (picture, link) in links.items()}


def places(name: str, address: str | None = None) -> str:
    """The table of places for a README; the repository's address is that in pyproject.toml, unless given."""
    if address is None:
        address = project().get("urls", {}).get("Repository", "")
    records = [json.loads(path.read_text()) for path in (ROOT / "results" / "tiny").glob("[0-9][0-9].json")]
    peak = max(record["values"]["notebook peak memory [GiB]"] for record in records)
    size = json.loads(SIZE.read_text())["installed [GiB]"]
    language = int(name.endswith("zh.md"))
    row = PLACES[language] | badges(address, ("notebooks", "notebooks/zh")[language])
    return TABLE[language].format(peak=peak, size=size, **row)


def filled(name: str) -> str:
    """The text of a README with its table of places written anew."""
    text = (ROOT / name).read_text(encoding="utf-8")
    before, _, after = text.split("<!-- places -->\n")
    return f"{before}<!-- places -->\n{places(name)}<!-- places -->\n{after}"


def main(arguments: list[str] = ()) -> None:
    if "--measure" in arguments:
        measure()
    (ROOT / "environment.yml").write_text(environment(cpu=False))
    (ROOT / "binder" / "environment.yml").write_text(environment(cpu=True))
    (ROOT / "binder" / "colab.txt").write_text(colab())
    for name in ("README.md", "README.zh.md"):
        (ROOT / name).write_text(filled(name), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
