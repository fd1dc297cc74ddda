"""Looking at a cleaning: every row can be reached, nothing runs, and the card adds up."""

import re

from datasets import concatenate_datasets

from aurora_lib.data import clean, show, sources
from tests.data.conversations import dataset, talk

EVIL = "<script>alert(1)</script> &lt;img src=x onerror=alert(2)&gt;"


def result():
    rows = [talk(EVIL, "这是一段网页代码。"), talk("法国的首都是哪里？", ""), talk("德国的首都是哪里？", "")]
    first = dataset(*rows).to_list()
    first[0]["id"] = "<b>1</b>"
    other = dataset(*rows, talk("北京\u200b在哪里？", "在中国北方。"), source="sharegpt_zh").select([3])
    return clean(concatenate_datasets([sources.table(first), other]))


def test_every_row_can_be_reached_and_none_can_run():
    found = result()
    box = show.browse(found)
    (group, number), page = box.children[0].children, box.children[1]
    seen = {}
    for name in group.options:
        group.value = name
        seen[name] = []
        for i in range(1, number.max + 1):
            number.value = i
            seen[name].append(page.value)
    sizes = {name.rsplit(" (", 1)[0]: len(pages) for name, pages in seen.items()}
    assert sizes == {"kept": 2, "dropped by empty": 2, "edited by html_entities": 1, "edited by invisible": 1}
    pages = "".join(page for shown in seen.values() for page in shown)
    assert "an empty answer" in pages and "德国的首都" in pages and "&lt;script&gt;" in pages
    assert not re.search(r"<(script|img|b>1)", pages)


def test_a_long_group_then_a_short_one_leaves_no_number_behind():
    box = show.browse(result())
    (group, number), page = box.children[0].children, box.children[1]
    group.value = "dropped by empty (2)"
    number.value = 2
    assert "德国" in page.value
    group.value = "edited by invisible (1)"
    assert number.value == number.max == 1 and "在中国北方" not in page.value and "北京" in page.value


def test_the_card_adds_up():
    found = result()
    licences = {name: of["licence"] for name, of in sources.SOURCES.items()}
    card = show.card(found, found.kept, origin="`rows`", licences=licences, rejected=7)
    assert "2 conversations" in card and "set aside before: 7." in card
    assert "| alpaca_zh | Apache-2.0 (repository); machine-generated | 3 | 1 |" in card
    does = show.steps()
    assert f"| empty | {does['empty']} | 0 | 2 |" in card
    assert f"| invisible | {does['invisible']} | 1 | 0 |" in card
    assert "to_simplified" in does and "to_simplified" not in card, "an optional step was not taken"
