"""The drawings of notebooks 03 and 05, in both languages, are those that `tools.pages.drawings` makes."""

from xml.etree import ElementTree

import pytest

from tools.pages import drawings

MADE = drawings.made()


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_a_drawing_is_current_small_and_described(path):
    assert path.read_text(encoding="utf-8") == MADE[path], "python -m tools.pages.drawings"
    assert len(path.read_bytes()) < 25_000
    title, description = list(ElementTree.fromstring(MADE[path]))[:2]
    assert (
        title.tag.endswith("title") and title.text and description.tag.endswith("desc") and description.text
    )
