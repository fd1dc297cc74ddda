"""The Chinese edition says what the English one says; a translation of an older text is named."""

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import opencc
import pytest
from markdown_it import MarkdownIt  # comes with jupytext

from tools.build import chinese

ENGLISH, CHINESE = chinese.NOTEBOOKS, chinese.ZH
TRANSLATED = sorted(path.stem for path in (CHINESE / "text").glob("*.md"))
HAN = r"[\u4e00-\u9fff]"
LINK = re.compile(r"""(?:\]\(|href=")(?!https?:|#)([^)\s"]+)""")
# code, formulas, addresses and the marks of headings, exercises, lists and hints
KEPT = r"`[^`]+`|\$[^$\n]+\$|<code>.*?</code>|https?://[^)\s]+|<details><summary>|</details>"
KEPT += r"|^#+ |\*\*\d\d\.\d\*\*|^- |^\d\. "


@pytest.fixture(params=TRANSLATED)
def stem(request):
    return request.param


@cache
def pairs(stem):
    """(cell, English, Chinese) of all prose that is translated."""
    translated, cells = chinese.translations(stem), chinese.english(stem).cells
    found = [(cell.id, cell.source, translated.get(chinese.cell_hash(cell.source))) for cell in cells]
    return [(id, english, chinese.localise(other)) for id, english, other in found if other]


def test_every_notebook_is_translated_or_named_as_not_yet():
    waiting = [stem for stem in chinese.stems() if stem[:2] in chinese.NOT_YET]
    assert sorted(TRANSLATED + waiting) == chinese.stems(), "see NOT_YET in tools/build/chinese.py"
    assert sorted(path.stem for path in CHINESE.glob("*.ipynb")) == TRANSLATED


def test_every_cell_has_a_translation_of_its_present_text(stem):
    missing = [str(gap) for gap in chinese.gaps(stem)]
    assert not missing, "\n".join([*missing, f"python -m tools.build.chinese --missing {stem[:2]}"])


def test_notebook_is_what_the_builder_makes_of_the_english_code_and_outputs(stem):
    text = (CHINESE / f"{stem}.ipynb").read_text(encoding="utf-8")
    assert text == chinese.build(stem), f"python -m tools.build.chinese {stem[:2]}"
    both = nbformat.reads(text, as_version=4), nbformat.read(ENGLISH / f"{stem}.ipynb", as_version=4)
    nbformat.validate(both[0])
    if len({book.metadata["aurora"]["source"] for book in both}) == 1:  # else no outputs: `make notebooks`
        code = [[(c.source, c.outputs) for c in book.cells if c.cell_type == "code"] for book in both]
        assert code[0] == code[1] and any(outputs for _, outputs in code[0])


def test_links_resolve_and_lead_where_the_english_ones_lead(stem):
    for cell, english, translated in pairs(stem):
        there = [os.path.normpath(ENGLISH / target) for target in LINK.findall(english)]
        here = [os.path.normpath(CHINESE / target) for target in LINK.findall(translated)]
        assert not [target for target in here if not Path(target).exists()], cell
        same = [target.replace(f"{CHINESE}{os.sep}", f"{ENGLISH}{os.sep}") for target in here]
        same = [target.replace(".zh.svg", ".svg") for target in same]  # drawings have two editions
        assert same == there, cell
        done = {target for target in there if Path(target).stem in TRANSLATED}
        assert not done & set(here), f"{cell} leaves the Chinese edition"


def test_code_spans_formulas_and_folded_hints_are_those_of_the_english_cell(stem):
    for cell, *texts in pairs(stem):
        one, other = (Counter(re.findall(KEPT, text, re.MULTILINE)) for text in texts)
        assert one == other, f"{cell}: {one - other} {other - one}"


def plain(text):
    """Prose as a reader sees it; code, formulas and tags stand as one Latin letter, or as a line break."""
    text = re.sub(r"`[^`]+`|\$[^$\n]+\$|<code>.*?</code>", "x", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"</?(details|summary)>", "\n", text).replace("**", "").replace("*", "")


FAULTS = {
    "a space between Chinese and Latin or numbers": rf"{HAN}[A-Za-z0-9]|[A-Za-z0-9%]{HAN}",
    "full-width punctuation": rf'{HAN}[,;:?!("]|[,;:?!)"]{HAN}',
    "no space beside full-width punctuation": r"[^\s|] [，。；：、？！）”]|[，。；：、？！（“] [^\s|]",
    "no space between Chinese characters": rf"{HAN} +{HAN}",
}


def faults(text):
    return {rule: found for rule, pattern in FAULTS.items() if (found := re.findall(pattern, plain(text)))}


def test_typography_is_that_of_chinese(stem):
    for cell, _, text in pairs(stem):
        assert faults(text) == {} and re.search(HAN, text), cell
        assert opencc.OpenCC("t2s").convert(text) == text, f"{cell}: simplified characters"
        # 中文**粗体。**中文 is no bold text in Markdown: the stars would be seen
        tokens = [inner for token in MarkdownIt().parse(text) for inner in token.children or []]
        assert not [inner.content for inner in tokens if inner.type == "text" and "**" in inner.content], cell


def test_changed_new_and_removed_cells_are_named_with_their_older_translation(tmp_path, monkeypatch):
    """In a notebook of Markdown cells, each before code; one, two, three are translated."""
    monkeypatch.setattr(chinese, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(chinese, "ZH", tmp_path)
    (tmp_path / "text").mkdir()
    pairs = {"one": "一", "two": "二", "three": "三"}.items()
    blocks = [f"<!-- en {chinese.cell_hash(en)} -->\n{zh}\n" for en, zh in pairs]
    (tmp_path / "text" / "08_small.md").write_text("\n".join(blocks), encoding="utf-8")

    def write(cells):  # of the English notebook
        text = "\n\n".join(f"# %% [markdown]\n# {cell}\n\n# %%\n1 + 1" for cell in cells.split(" / "))
        (tmp_path / "text" / "08_small.py").write_text(text + "\n", encoding="utf-8")

    for now, gaps in {
        "one / two / three": [],
        "one / two, edited / three": [("08-02", "two, edited", "二")],
        "one / new / two / three": [("08-02", "new", None)],
        "one / three": [(None, None, "二")],
        "three / two / one": [],  # cells that only moved keep their translations
    }.items():
        write(now)
        assert [(gap.cell, gap.english, gap.older) for gap in chinese.gaps("08_small")] == gaps, now
    write("one / two, edited / three")
    with pytest.raises(ValueError, match="08-02 is translated from an older text: two, edited"):
        chinese.build("08_small")


def test_glossary_has_its_terms_where_it_says():
    lines = (CHINESE / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [re.split(r" *\| *", line)[1:-1] for line in lines if re.search(r"\| \d\d \|$", line)]
    prose = {stem[:2]: "".join(text for _, _, text in pairs(stem)) for stem in TRANSLATED}
    assert len({term for term, *_ in rows}) == len(rows) >= 60
    for term, english, explanation, first in rows:
        assert english and explanation and not faults(term + "\n" + explanation), term
        assert first in chinese.NOT_YET or term in prose[first], term
        longer = "|".join(row[0] for row in rows if term in row[0] and term != row[0]) or "(?!)"
        earlier = "\n".join(prose[number] for number in prose if number < first)
        assert term not in re.sub(longer, "\n", earlier), term  # 梯度检查点 is no 检查点
