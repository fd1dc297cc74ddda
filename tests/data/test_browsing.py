"""Looking at a cleaning: every row can be reached, nothing runs, and the card adds up."""

import re

from aurora_lib.data import browsing, cleaning, sources
from aurora_lib.data import card as data_card

EVIL = "<script>alert(1)</script> &lt;img src=x onerror=alert(2)&gt;"


def talk(id, question, answer, source="alpaca_zh"):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return dict(id=id, source=source, category="", messages=turns)


def result():
    rows = [
        talk("<b>1</b>", EVIL, "这是一段网页代码。"),
        talk("2", "法国的首都是哪里？", ""),
        talk("3", "德国的首都是哪里？", ""),
        talk("4", "北京\u200b在哪里？", "在中国北方。", "sharegpt_zh"),
    ]
    return cleaning.clean(sources.table(rows))


def test_every_row_can_be_reached_and_none_can_run():
    found = result()
    box = browsing.browse(found)
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
    box = browsing.browse(result())
    (group, number), page = box.children[0].children, box.children[1]
    group.value = "dropped by empty (2)"
    number.value = 2
    assert "德国" in page.value
    group.value = "edited by invisible (1)"
    assert number.value == number.max == 1 and "turn 1" in page.value


def test_the_card_adds_up():
    found = result()
    card = data_card.card(
        found,
        found.kept,
        origin="`rows`",
        licences=data_card.RELEASED_LICENCES,
        steps=dict.fromkeys(cleaning.STEPS, "does"),
        rejected=7,
    )
    assert "2 conversations" in card and "set aside before: 7." in card
    assert "| alpaca_zh | Apache-2.0 (repository); machine-generated | 3 | 1 |" in card
    assert "| empty | does | 0 | 2 |" in card and "| invisible | does | 1 | 0 |" in card
