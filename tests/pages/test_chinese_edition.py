"""The Chinese edition says what the English one says, of the same code; a translation of an older text is named."""

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import opencc
import pytest
from markdown_it import MarkdownIt  # comes with jupytext

ROOT = Path(__file__).resolve().parents[2]
from tools.build import chinese as build_chinese  # noqa: E402

ENGLISH, CHINESE = ROOT / "notebooks", ROOT / "notebooks" / "zh"
TRANSLATED = sorted(path.stem for path in (CHINESE / "text").glob("*.md"))
HAN = r"[\u4e00-\u9fff]"
LINK = re.compile(r"""(?:\]\(|href=")(?!https?:|#)([^)\s"]+)""")


@pytest.fixture(params=TRANSLATED)
def stem(request):
    return request.param


def cells(folder, stem, kind):
    notebook = nbformat.read(folder / f"{stem}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


@cache
def pairs(stem):
    """English prose from its text beside the Chinese of the built notebook, cell by cell."""
    english = [cell for cell in build_chinese.english(stem).cells if cell.cell_type == "markdown"]
    return [
        (one.id, one.source, other.source)
        for one, other in zip(english, cells(CHINESE, stem, "markdown"), strict=True)
    ]


def test_every_notebook_is_translated_or_named_as_not_yet():
    waiting = [stem for stem in build_chinese.stems() if stem[:2] in build_chinese.NOT_YET]
    assert sorted(TRANSLATED + waiting) == build_chinese.stems(), "see NOT_YET in tools/build/chinese.py"
    assert sorted(path.stem for path in CHINESE.glob("*.ipynb")) == TRANSLATED


def test_every_cell_has_a_translation_of_its_present_text(stem):
    missing = [str(gap) for gap in build_chinese.gaps(stem)]
    assert not missing, "\n".join([*missing, f"python -m tools.build.chinese --missing {stem[:2]}"])


def test_notebook_is_what_the_builder_makes(stem):
    built = (CHINESE / f"{stem}.ipynb").read_text(encoding="utf-8")
    assert built == build_chinese.build(stem), f"python -m tools.build.chinese {stem[:2]}"
    nbformat.validate(nbformat.reads(built, as_version=4))


def test_code_is_the_english_code_and_outputs_are_of_it(stem):
    chinese = nbformat.read(CHINESE / f"{stem}.ipynb", as_version=4)
    english = nbformat.read(ENGLISH / f"{stem}.ipynb", as_version=4)
    texts = [[cell.source for cell in cells(folder, stem, "code")] for folder in (ENGLISH, CHINESE)]
    outputs = [[cell.outputs for cell in cells(folder, stem, "code")] for folder in (ENGLISH, CHINESE)]
    if chinese.metadata["aurora"]["source"] == english.metadata["aurora"]["source"]:
        assert texts[0] == texts[1] and outputs[0] == outputs[1] and any(outputs[1])
    else:  # the English notebook waits for `make notebooks`
        assert not any(outputs[1])


def test_links_resolve_and_lead_where_the_english_ones_lead(stem):
    for cell, english, chinese in pairs(stem):
        there = [os.path.normpath(ENGLISH / target) for target in LINK.findall(english)]
        here = [os.path.normpath(CHINESE / target) for target in LINK.findall(chinese)]
        assert not [target for target in here if not Path(target).exists()], cell
        editions = [target.replace(f"{CHINESE}{os.sep}", f"{ENGLISH}{os.sep}") for target in here]
        assert editions == there, cell
        done = [target for target in there if Path(target).stem in TRANSLATED]
        assert not set(done) & set(here), f"{cell} leaves the Chinese edition"


def test_code_spans_formulas_and_folded_hints_are_those_of_the_english_cell(stem):
    kept = r"`[^`]+`|\$[^$\n]+\$|<code>.*?</code>|https?://[^)\s]+|<details><summary>|</details>|^#+ |\*\*\d\d\.\d\*\*|^- |^\d\. "
    for cell, english, chinese in pairs(stem):
        one, other = (Counter(re.findall(kept, text, re.MULTILINE)) for text in (english, chinese))
        assert one == other, f"{cell}: {one - other} {other - one}"


def plain(text):
    """Prose as a reader sees it; code spans, formulas and tags stand as one Latin letter, or as a line break."""
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
    assert {cell: wrong for cell, _, chinese in pairs(stem) if (wrong := faults(chinese))} == {}
    text = "".join(chinese for _, _, chinese in pairs(stem))
    assert opencc.OpenCC("t2s").convert(text) == text  # simplified characters
    for cell, _, chinese in pairs(stem):
        assert re.search(HAN, chinese), cell
        # 中文**粗体。**中文 is no bold text in Markdown: the stars would be seen
        tokens = [inner for token in MarkdownIt().parse(chinese) for inner in token.children or []]
        assert not [inner.content for inner in tokens if inner.type == "text" and "**" in inner.content], cell


def test_faults_of_typography_are_seen():
    bad = ["用LoRA微调", "好,坏", "路由器 ，专家", "用`x` 表示", "路由 器", "共 8位"]
    assert all(faults(text) for text in bad)
    assert not faults("用 LoRA 微调，占 95 %：`x` 与 **8** 位（int8）。")


# Table 4 of the paper, and the level of every interval
TYPED = ("45 GiB", "95 %")


def test_prose_types_no_measured_number_by_hand(stem):
    prose = "\n".join(chinese for _, _, chinese in pairs(stem))
    numbers = re.findall(r"(\d+(?:\.\d+)?)\s*(%|GiB|MiB|毫秒|秒|分钟|个百分点)", prose)
    assert [f"{n} {unit}" for n, unit in numbers if f"{n} {unit}" not in TYPED] == []


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A notebook of three Markdown cells and one of code, and its translation."""
    (tmp_path / "text").mkdir()
    (tmp_path / "zh" / "text").mkdir(parents=True)
    monkeypatch.setattr(build_chinese, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(build_chinese, "ZH", tmp_path / "zh")

    def write(*prose):
        text = "\n\n".join(f"# %% [markdown]\n# {cell}\n\n# %%\n1 + 1" for cell in prose)
        (tmp_path / "text" / "08_small.py").write_text(text + "\n", encoding="utf-8")

    write("one", "two", "three")
    translated = "".join(
        f"<!-- en {build_chinese.cell_hash(en)} -->\n{zh}\n\n"
        for en, zh in (("one", "一"), ("two", "二"), ("three", "三"))
    )
    (tmp_path / "zh" / "text" / "08_small.md").write_text(translated, encoding="utf-8")
    return write


def gaps():
    return [(gap.cell, gap.english, gap.older) for gap in build_chinese.gaps("08_small")]


def test_a_changed_english_cell_is_named_with_its_older_translation(small):
    assert gaps() == []
    small("one", "two, edited", "three")
    assert gaps() == [("08-02", "two, edited", "二")]
    with pytest.raises(
        ValueError, match="08_small, cell 08-02 is translated from an older text: two, edited"
    ):
        build_chinese.build("08_small")


def test_a_new_and_a_removed_english_cell_are_named(small):
    small("one", "new", "two", "three")
    assert gaps() == [("08-02", "new", None)]
    small("one", "three")
    assert gaps() == [(None, None, "二")]
    small("three", "two", "one")
    assert gaps() == []  # cells that only moved keep their translations


def test_glossary_has_its_terms_where_it_says():
    rows = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in (CHINESE / "glossary.md").read_text(encoding="utf-8").splitlines()
        if re.search(r"\| \d\d \|$", line)
    ]
    prose = {stem[:2]: "".join(chinese for _, _, chinese in pairs(stem)) for stem in TRANSLATED}
    assert len({row[0] for row in rows}) == len(rows) >= 60
    for term, english, explanation, first in rows:
        assert english and explanation and not faults(term + "\n" + explanation), term
        assert first in build_chinese.NOT_YET or term in prose[first], term
        longer = "|".join(row[0] for row in rows if term in row[0] and term != row[0])
        earlier = [text for number, text in prose.items() if number < first]
        # 梯度检查点 is no 检查点
        alone = [re.sub(longer, "\n", text) if longer else text for text in earlier]
        assert not [text for text in alone if term in text], term
