"""The house itself: pins in one place, nothing that must not be in a repository, sizes."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
from aurora_lib.course import paper  # noqa: E402
from tools.pages import comparison as write_comparison  # noqa: E402
from tools.pages import environments as write_environments  # noqa: E402
from tools.pages import readme as write_readme  # noqa: E402


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_environment_files_carry_the_pins_of_constraints():
    for path, cpu in ((ROOT / "environment.yml", False), (ROOT / "binder" / "environment.yml", True)):
        assert path.read_text() == write_environments.environment(cpu=cpu)


def test_every_direct_dependency_is_pinned_and_installed_at_its_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = write_environments.pins()
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.split(r"[><=]", requirement)[0]
        assert version(name).split("+")[0] == pins[name.lower()], name


@pytest.mark.parametrize("name", write_readme.WORDS)
def test_tables_of_the_readme_are_those_of_the_records(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == write_readme.filled(name)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


def test_page_of_the_papers_numbers_is_current_and_holds_them_all():
    page = write_comparison.PAGE.read_text(encoding="utf-8")
    assert page == write_comparison.page()
    assert write_comparison.H100_PAGE.read_text(encoding="utf-8") == write_comparison.h100_page()
    numbers = set(re.findall(r"[\d.]+", page.replace(",", "")))
    wanted = [
        figure.value
        for group in (paper.CONVERSATIONS, paper.RUN, paper.MEMORY, paper.AURORA)
        for figure in group.values()
    ]
    wanted += [
        value for group in (paper.TABLE_3, paper.GENERATION_SCORES) for row in group.values() for value in row
    ]
    wanted += [value for row in paper.AURORA_BY_CATEGORY.values() for value in row.values()]
    assert [value for value in wanted if f"{value:.6g}" not in numbers] == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only in a git checkout")
def test_links_of_every_page_lead_somewhere():
    # a translation's text is read from the folder above it, and its links are tested with the notebooks there
    pages = [path for path in tracked() if path.suffix == ".md" and path.parent.name != "text"]
    assert len(pages) > 10
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\((?!http|#)([^)#\s]+)", page.read_text())
    ]
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only in a git checkout")
def test_files_and_modules_named_on_a_page_or_in_code_are_there():
    named = re.compile(
        r"\b((?:aurora_lib|tools|tests)/[\w/]+\.(?:py|js|css|md|yaml))\b|-m ((?:aurora_lib|tools)\.[\w.]*\w)"
    )
    missing = []
    for page in (path for path in tracked() if path.suffix in {".md", ".py", ".yml", ".toml", ""}):
        for file, module in named.findall(page.read_text(encoding="utf-8")):
            place = ROOT / (file or module.replace(".", "/"))
            if not (place.exists() or place.with_suffix(".py").exists()):
                missing.append(f"{page.relative_to(ROOT)}: {file or module}")
    assert missing == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only in a git checkout")
def test_the_repository_is_small():
    sizes = {path: path.stat().st_size for path in tracked()}
    assert sum(sizes.values()) < 60e6
    assert sum(size for path, size in sizes.items() if "tiny" in path.parts) < 15e6


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only in a git checkout")
def test_no_path_of_the_building_machine_is_in_the_repository():
    home = re.compile(rf"{re.escape(str(ROOT))}|{re.escape(str(Path.home()))}/")
    suffixes = {".py", ".md", ".ipynb", ".json", ".yml", ".toml", ".txt", ".cff", ""}
    found = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.suffix in suffixes and home.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
