"""No page or notebook types a measured number by hand: a tool writes it, or it is listed with a reason."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from aurora_lib.course.scale import ROOT
from aurora_lib.model import memory

UNITS = "%|[GMk]i?B|s|ms|seconds?|minutes?|hours?|tokens/s|毫秒|秒|分钟|小时|个百分点"
WORDS = "two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|forty|fifty|sixty|ninety"
WORDS += "|[一二两三四五六七八九十百]+"
NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.,])((?:\d+(?:,\d+)*(?:\.\d+)?|{WORDS})[ -]?(?:{UNITS}))(?![A-Za-z0-9_/])"
)
WRITTEN = ("docs/paper_and_ours.md",)  # by a tool from end to end, and tested to be current
# tables that a tool writes, blocks of code, rows of the map of notebooks, code, addresses
NOT_PROSE = (r"<!-- (\w+) -->.*?<!-- \1 -->", r"```.*?```", r"^\| \[0\d_.*?$", r"`[^`\n]*`", r"\]\([^)]*\)")
REASONS = tomllib.loads(Path(__file__).with_name("typed_numbers.toml").read_text(encoding="utf-8"))
ALLOWED = {number for numbers in REASONS.values() for number in numbers}


def typed(text: str) -> list[str]:
    """The numbers with a unit in a page's prose: outside tables that a tool writes and outside code."""
    for written in NOT_PROSE:
        text = re.sub(written, "", text, flags=re.S | re.M)
    return [" ".join(re.split(r"[ -]", found, maxsplit=1)) for found in NUMBER.findall(text)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only in a git checkout")
def test_every_number_with_a_unit_is_on_the_list_and_the_list_is_not_longer():
    command, found = ["git", "ls-files", "-z", "*.md", "notebooks/text/*.py"], {}
    names = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    for name in (name for name in names if name and name not in WRITTEN):
        page = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".py"):  # a notebook: what is no code
            page = "\n".join(line.removeprefix("# ") for line in page.splitlines() if line.startswith("#"))
        found |= dict.fromkeys(typed(page), name)
    assert {number: page for number, page in found.items() if number not in ALLOWED} == {}
    assert ALLOWED - found.keys() == set()


def test_counted_numbers_on_the_list_are_what_the_sizes_give():
    weights = memory.predict(memory.MIXTRAL_8X7B, quantization="bf16")
    assert f"{weights.weights:.0f} GiB" in ALLOWED
    assert f"{100 * weights.parts['experts'] / weights.weights:.0f} %" in ALLOWED
