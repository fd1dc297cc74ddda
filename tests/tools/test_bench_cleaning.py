"""The cleaning benchmark: the corpus is what it says it is, and what was planted is judged rightly."""

import json
import re
import sys
from collections import Counter

import pytest
from rapidfuzz.distance import Levenshtein

from aurora_lib.course.rows import read_rows
from aurora_lib.data import sources
from tools.bench import cleaning
from tools.bench import corpus as bench_corpus

ALPACA, SHAREGPT = {"instruction", "input", "output"}, {"conversation_id", "category", "conversation"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    bench_corpus.Corpus(3_000).write(folder)
    return folder


def test_a_corpus_has_the_released_layouts_and_is_the_same_every_time(corpus, tmp_path):
    released = {file: rows for file, rows, *_ in bench_corpus.LAYOUTS.values()}
    assert list(released.values()) == [51_461, 48_818, 41_066 + 35_333]  # the paper's 176,678 rows
    bench_corpus.Corpus(3_000).write(tmp_path)
    for file, keys in zip(released, (ALPACA, ALPACA, SHAREGPT), strict=True):
        rows = [row.value for row in read_rows(corpus / file)]
        assert len(rows) == round(released[file] * 3_000 / 176_678)
        assert sum(isinstance(row, dict) and row.keys() == keys for row in rows) > 0.99 * len(rows)
        assert (corpus / file).read_bytes() == (tmp_path / file).read_bytes()


def test_planted_copies_are_what_the_manifest_says(corpus):
    planted = [json.loads(line) for line in (corpus / "planted.jsonl").open(encoding="utf-8")]
    rows = sources.read(corpus).conversations
    texts = {row["id"]: [message["content"] for message in row["messages"]] for row in rows}
    assert Counter(pair["kind"] for pair in planted) == {"exact": 30, "near": 60}
    for pair in planted:
        copy, original = (texts[bench_corpus.identity(*pair[side])] for side in ("copy", "original"))
        changed = sum(Levenshtein.distance(a, b) for a, b in zip(copy, original, strict=True))
        size = len("".join(original))
        assert size >= 50 and 1 <= changed <= round(0.02 * size) if pair["kind"] == "near" else changed == 0
    assert len({tuple(pair["original"]) for pair in planted}) == len(planted)


def test_the_tool_runs_and_finds_what_it_planted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cleaning", "--rows", "1500", "--folder", str(tmp_path)])
    cleaning.main()  # what it measures is a process of its own
    said = capsys.readouterr().out
    assert "planted exact duplicates found: 100.00%" in said
    near = re.search(r"planted near duplicates found: ([\d.]+)%", said)
    assert near and float(near[1]) >= 93  # thirty are planted
    assert re.search(r"^start \+ read \+ clean +[\d.]+", said, re.M)
