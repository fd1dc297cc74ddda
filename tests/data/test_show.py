"""Looking at a cleaning: the card adds up."""

from datasets import concatenate_datasets

from aurora_lib.data import clean, show, sources
from tests.data.conversations import dataset, talk


def test_the_card_adds_up():
    rows = [talk("1 &lt; 2 吗？", "对。"), talk("法国的首都是哪里？", ""), talk("德国的首都是哪里？", "")]
    other = dataset(*rows, talk("北京\u200b在哪里？", "在中国北方。"), source="sharegpt_zh").select([3])
    found = clean(concatenate_datasets([dataset(*rows), other]))
    licences = {name: of["licence"] for name, of in sources.SOURCES.items()}
    card = show.card(found, found.kept, origin="`rows`", licences=licences, aside=7)
    assert "2 conversations" in card and "set aside before: 7." in card
    assert "| alpaca_zh | Apache-2.0 (repository); machine-generated | 3 | 1 |" in card
    does = show.steps()
    assert f"| empty | {does['empty']} | 0 | 2 |" in card
    assert f"| invisible | {does['invisible']} | 1 | 0 |" in card
    assert "to_simplified" in does and "to_simplified" not in card, "an optional step was not taken"
