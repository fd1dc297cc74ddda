"""Measures the topics lexicon on the self-written labelled prompts and writes results/topics.json.

usage: python -m tools.record.topics

Prompts and lexicon have one author, who wrote the prompts first. Rare words (in fewer than 5 of 19,819 real
conversations) that occur in a test prompt were therefore struck from the lexicon unseen. Words added later
were chosen without a look at the test half, whose wrong answers stay unlisted: whoever mends the lexicon by
them has no test half left.
"""

import json
from collections import Counter

from aurora_lib.course.scale import DATA, ROOT
from aurora_lib.data import topics
from aurora_lib.evaluation.evaluate import Score

LABELLED = DATA / "topics.jsonl"
RESULT = ROOT / "results" / "topics.json"


def labelled(split: str) -> list[dict]:
    """The labelled prompts of a half, "dev" or "test": dicts of `id, topic, split, keyword_free, prompt`."""
    rows = map(json.loads, LABELLED.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["split"] == split]


def guess(row: dict) -> str:
    """The topic of a labelled prompt by the lexicon."""
    return topics.topic([{"role": "user", "content": row["prompt"]}])


def score(rows: list[dict]) -> dict:
    """How many are guessed right: a dict of `n`, `accuracy` and `interval` (95 %, Wilson)."""
    found = Score.of(row["topic"] == guess(row) for row in rows)
    interval = [round(float(end), 4) for end in found.interval]
    return {"n": found.n, "accuracy": round(found.accuracy, 4), "interval": interval}


def main() -> None:
    for split in ("dev", "test"):
        half = labelled(split)
        for name, rows in (
            ("all", half),
            ("without keyword", [row for row in half if row["keyword_free"]]),
            ("English", [row for row in half if row["prompt"].isascii()]),
        ):
            print(f"{split:6}{name:16}{{n:4}}  {{accuracy:.3f}}  {{interval}}".format(**score(rows)))
        missed = Counter(row["topic"] for row in half if guess(row) != row["topic"])
        print("most missed:", *(f"{topic} {n};" for topic, n in missed.most_common(6)))
    RESULT.write_text(json.dumps(score(labelled("test")), indent=2) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULT.relative_to(ROOT)}: {RESULT.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main()
