"""What a conversation is about: ShareGPT's free-text tag where it fits a topic, else a word list's guess.

The paper's Figure 2 shows about 20 categories. `tools/record/topics.py` measures how often the guess is
right; `results/topics.json` holds the accuracy.
"""

import re
from collections import Counter, defaultdict
from functools import cache
from typing import NamedTuple

from aurora_lib.course import DATA
from aurora_lib.data.patterns import pattern

LATIN_WORD = r"[a-z][a-z0-9+#]*|\d[a-z]+"
READ = 200  # characters of the questions that are read


class Lexicon(NamedTuple):
    """The words that tell a topic, from `data/topics_lexicon.txt`."""

    tags: dict[str, re.Pattern]  # each of the 19 topics: how its names in tags begin
    owner: dict[str, str]  # word in a question: its topic
    word: re.Pattern  # of Chinese words the longest, so that 计算机 is not 计算; of Latin ones the whole


@cache
def lexicon() -> Lexicon:
    """The file's lines are "topic: beginnings of words in tags | words of questions", each in one topic."""
    text = (DATA / "topics_lexicon.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([a-z ]+):([^|]+)\|([^:|]+)$", text, re.M)
    tags = {topic: re.compile(rf"\b(?:{'|'.join(names.split())})", re.I) for topic, names, _ in entries}
    owner = {word: topic for topic, _, words in entries for word in words.split()}
    rests = defaultdict(list)  # by the first character, so that few words are tried at each place
    for word in sorted((word for word in owner if not word.isascii()), key=len, reverse=True):
        rests[word[0]].append(re.escape(word[1:]))
    branches = [f"{first}(?:{'|'.join(several)})" for first, several in rests.items()]
    return Lexicon(tags, owner, re.compile("|".join([*branches, LATIN_WORD])))


def normalise(tag: str) -> str:
    """ShareGPT's free-text tag as a topic: "Finance, Business: \\n\\n" is "finance"; "" where it fits none.

    The first of several names counts; the order of the lexicon settles a name that fits two.
    """
    names, tags = re.split(r"[,，;:：/\n]+", tag), lexicon().tags.items()
    return next((topic for name in names for topic, begins in tags if begins.search(name)), "")


def points(text: str) -> Counter[str]:
    """Points per topic, for each different word of `text` its characters, up to 3, or 2 for a Latin one.

    The topics stand in the order of their first words.
    """
    text, (_, owner, word), found = text.lower(), lexicon(), Counter()
    for one in dict.fromkeys(word.findall(text)):
        if one in owner:
            found[owner[one]] += 2 if one.isascii() else min(len(one), 3)
    for topic in ("computer", "mathematics"):
        if pattern(topic).search(text):
            found[topic] += 2
    return found


def topic(messages: list[dict], tag: str = "") -> str:
    """What the tag says, else the topic with most points in the questions; of equals the first mentioned.

    "other" where the lexicon knows no word of them ("你好", "继续").
    """
    questions = "\n".join(message["content"] for message in messages if message["role"] == "user")
    return normalise(tag) or max((found := points(questions[:READ])), key=found.get, default="other")
