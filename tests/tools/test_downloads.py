import re
import subprocess
import sys

import pytest

from aurora_lib.course.scale import FULL, PRESETS, ROOT
from tools.pages import downloads

PAGE = (ROOT / "docs" / "downloads.md").read_text(encoding="utf-8")


def test_the_page_holds_the_commands_that_are_printed_and_no_others(capsys):
    downloads.main()
    free, *printed = capsys.readouterr().out.splitlines()
    assert re.search(r"[\d,]+ GB are free for ", free)
    assert printed == [line for line in PAGE.splitlines() if line.startswith("hf ")]
    assert f"/disk/{FULL['base_model'].split('/')[1]}`" in PAGE


def test_every_commit_on_the_page_is_one_the_course_uses():
    pinned = {FULL["revision"], PRESETS["mid"]["revision"], downloads.ADAPTER[1]}
    assert set(re.findall(r"\b[0-9a-f]{40}\b", PAGE)) == pinned
    assert downloads.ADAPTER[1] in (ROOT / "aurora_lib" / "course" / "paper.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["hf download", "hf cache verify"])
def test_the_installed_hf_knows_every_option(command):
    lines = [line for line in downloads.commands() if line.startswith(command)]
    options = {word for line in lines for word in line.split() if word.startswith("--")}
    ask = [sys.executable, "-m", "huggingface_hub.cli.hf", *command.split()[1:], "--help"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert options and all(option in answer for option in options)
