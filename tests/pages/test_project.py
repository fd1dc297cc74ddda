"""The house itself: pins in one place, pages that are current, nothing that must not be in a repository."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from aurora_lib.course import paper
from aurora_lib.course.scale import ROOT
from tools.pages import comparison, environments


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("only in a git checkout")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_every_direct_dependency_is_pinned_and_installed_at_its_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.split(r"[><=]", requirement)[0]
        assert version(name).split("+")[0] == environments.pins()[name.lower()], name


def test_page_of_the_papers_numbers_is_current_and_holds_them_all():
    page = comparison.PAGE.read_text(encoding="utf-8")
    assert page == comparison.page()
    assert comparison.H100_PAGE.read_text(encoding="utf-8") == comparison.h100_page()
    numbers = set(re.findall(r"[\d.]+", page.replace(",", "")))
    figures = (paper.CONVERSATIONS, paper.RUN, paper.MEMORY, paper.AURORA)
    wanted = [figure.value for group in figures for figure in group.values()]
    for table in (paper.TABLE_3, paper.GENERATION_SCORES):
        wanted += [value for row in table.values() for value in row]
    wanted += [value for row in paper.AURORA_BY_CATEGORY.values() for value in row.values()]
    assert [value for value in wanted if f"{value:.6g}" not in numbers] == []


def test_links_of_every_page_lead_somewhere(tracked):
    # a translation's text is read from the folder above it, and its links are tested with the notebooks there
    pages = [path for path in tracked if path.suffix == ".md" and path.parent.name != "text"]
    link = re.compile(r"\]\((?!http|#)([^)#\s]+)")
    links = [(page, to) for page in pages for to in link.findall(page.read_text(encoding="utf-8"))]
    assert [f"{page.name}: {to}" for page, to in links if not (page.parent / to).exists()] == []
    assert len(links) > 50


def test_files_and_modules_named_on_a_page_or_in_code_are_there(tracked):
    file = r"\b((?:aurora_lib|tools|tests)/[\w/]+\.(?:py|js|css|md|yaml))\b"
    module = r"-m ((?:aurora_lib|tools)\.[\w.]*\w)"
    missing = []
    for page in (path for path in tracked if path.suffix in {".md", ".py", ".yml", ".toml", ""}):
        for names in re.findall(f"{file}|{module}", page.read_text(encoding="utf-8")):
            name = (names[0] or names[1].replace(".", "/")).replace("NN", "??")  # NN: a notebook's number
            if not [*ROOT.glob(name), *ROOT.glob(f"{name}.py")]:
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert missing == []


def test_the_repository_is_small(tracked):
    sizes = {path: path.stat().st_size for path in tracked}
    assert sum(sizes.values()) < 60e6
    assert sum(size for path, size in sizes.items() if "tiny" in path.parts) < 15e6


def test_no_path_of_the_building_machine_is_in_the_repository(tracked):
    home = re.compile(rf"{re.escape(str(ROOT))}|{re.escape(str(Path.home()))}/")
    suffixes = {".py", ".md", ".ipynb", ".json", ".yml", ".toml", ".txt", ".cff", ""}
    texts = {path: path.read_text(encoding="utf-8") for path in tracked if path.suffix in suffixes}
    assert [path.relative_to(ROOT).as_posix() for path, text in texts.items() if home.search(text)] == []
