"""The pairs that `tools/build/preferences.py` writes from the facts of `world.py`."""

import json

from aurora_lib.data import language
from aurora_lib.evaluation import load_probes
from aurora_lib.training import preference
from tools.build import preferences as build_preferences
from tools.build import world


def test_the_bundled_pairs_are_rebuilt_to_the_same_bytes(tmp_path):
    build_preferences.build(tmp_path / "pairs.jsonl")
    assert (tmp_path / "pairs.jsonl").read_bytes() == preference.BUNDLED.read_bytes()


def test_no_held_out_fact_is_in_the_pairs():
    text = preference.BUNDLED.read_text(encoding="utf-8")
    for probe in load_probes(held_out=True):
        assert not any(probe[side][key] in text for side in ("zh", "en") for key in ("question", "answer"))
    asked = [ask for fact in world.facts() if fact.held_out for side in fact.ask for ask in side]
    assert asked and not any(json.dumps(ask, ensure_ascii=False) in text for ask in asked)


def test_chosen_answers_are_right_and_rejected_ones_wrong_in_fact_or_in_language():
    asked = {ask: (fact, k) for fact in world.facts() for k in (0, 1) for ask in fact.ask[k]}
    said = {fact.say[1]: fact.answer[1] for fact in world.facts()}
    kinds = dict.fromkeys(preference.KINDS, 0)
    for row in preference.load_pairs(preference.BUNDLED).kept:
        prompt, chosen, rejected = (row[name][0]["content"] for name in preference.COLUMNS)
        fact, k = asked[prompt]
        assert chosen == fact.say[k] and language(chosen) == ("en", "zh")[k]
        if row["kind"] == "another fact":
            assert said[rejected] != fact.answer[1]
        else:
            assert language(rejected) == ("zh", "en")[k]
        kinds[row["kind"]] += 1
    assert min(kinds.values()) > 200
