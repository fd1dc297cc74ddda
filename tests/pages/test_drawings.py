"""The drawings, in both languages, are what `tools.pages.drawings` makes, and everybody can read them."""

from xml.etree import ElementTree

import pytest

from tools.pages import drawings
from tools.pages.drawings import checks

MADE = drawings.made()


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_a_drawing_is_current_small_described_and_legible(path):
    assert path.read_text(encoding="utf-8") == MADE[path], "python -m tools.pages.drawings"
    assert len(path.read_bytes()) < 40_000
    title, description = list(ElementTree.fromstring(MADE[path]))[:2]
    assert title.tag.endswith("title") and description.tag.endswith("desc")
    assert title.text and len(description.text) > 40
    assert checks.faults(MADE[path]) == []


def test_every_drawing_is_made_and_every_word_is_used():
    assert {*drawings.FOLDER.glob("*.svg")} == MADE.keys()
    assert drawings.WORDS.keys() == drawings.DRAWINGS.keys()
    for name, words in drawings.WORDS.items():
        for i, ending in enumerate(drawings.LANGUAGES.values()):
            drawn = MADE[drawings.FOLDER / f"{name}{ending}"].replace("&lt;", "<").replace("&gt;", ">")
            unused = [label for label, pair in words.items() if "{" not in pair[i] and pair[i] not in drawn]
            assert [label for label in unused if "|" not in words[label][i]] == [], name


def test_texts_contrast_with_what_they_stand_on_in_both_palettes():
    assert [pair for pair, contrast in checks.contrasts().items() if contrast < 4.5] == []
