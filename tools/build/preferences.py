"""Write `data/preferences.jsonl`: `python -m tools.build.preferences`. The same bytes every time.

Pairs of answers to one question, the better and the worse, made of the facts of `world.py` that tuning uses;
facts held out of tuning appear in none. The worse answers are those a tuned model gives: another fact, or the
right one in the wrong language.
"""

import argparse
import json
import random
from pathlib import Path

from aurora_lib.model import batching
from tools.build import world

PATH = Path(__file__).resolve().parents[2] / "data" / "preferences.jsonl"
SEED = 20231223
EN, ZH = 0, 1


def neighbour(fact: world.Fact, facts: list[world.Fact], rng: random.Random) -> world.Fact:
    """The fact with another answer whose Chinese sentence begins most like this one's.

    Of those that begin alike, one of the same relation.

    A tuned model that errs mostly begins right and slides: 老鹰 (eagle) becomes 老虎 (tiger).
    """
    others = [other for other in facts if other.answer[ZH] != fact.answer[ZH]]
    rng.shuffle(others)
    alike = lambda other: batching.shared_length([other.say[ZH], fact.say[ZH]])  # noqa: E731
    return max(others, key=lambda other: (alike(other), other.relation == fact.relation))


def pairs() -> list[dict]:
    """Rows `{kind, prompt, chosen, rejected}`; `kind` says what is wrong with the rejected answer."""
    rng, found = random.Random(SEED), []
    facts = [fact for fact in world.facts() if not fact.held_out]

    def add(kind, prompt, chosen, rejected):
        found.append(dict(kind=kind, prompt=prompt, chosen=chosen, rejected=rejected))

    for i, fact in enumerate(facts):
        english, chinese = fact.say
        add("another fact", rng.choice(fact.ask[ZH]), chinese, neighbour(fact, facts, rng).say[ZH])
        if i % 2:
            add("English to a Chinese question", rng.choice(fact.ask[ZH]), chinese, english)
        else:
            add("Chinese to an English question", rng.choice(fact.ask[EN]), english, chinese)
    rng.shuffle(found)
    return found


def build(path: Path) -> int:
    """Write the pairs to `path`, and return how many there are."""
    rows = pairs()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
    return len(rows)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"wrote {build(PATH)} pairs to {PATH.name}")
