"""What a conversation is about: ShareGPT's free-text tags where there are any, else a small classifier.

The paper's Figure 2 shows about 20 categories. The classifier needs no labelled rows: a self-written lexicon
labels the conversations it is sure about, naive Bayes over characters learns from those what the lexicon does
not know. `tools/record/topics.py` measures it; `results/topics.json` holds the accuracy.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from aurora_lib.course import DATA
from aurora_lib.data.patterns import pattern

LATIN_WORD = re.compile(r"[a-z][a-z0-9+#]*|\d[a-z]+")
UNIT = re.compile(r"[\u3400-\u9fff]|[A-Za-z]+|\d+")
READ = 200  # characters of the questions, and of the answers, that are read
SURE = 2  # the lead in `lexicon_scores` from which a conversation serves as an example
PER_TOPIC = 150  # examples; more would let the frequent topics drown the others


class Lexicon(NamedTuple):
    """The words that tell a topic, from `data/topics_lexicon.txt`."""

    topics: list[str]  # 19, and "other"
    tags: dict[str, re.Pattern]  # topic: how its names in tags begin
    owner: dict[str, int]  # word in a question: the number of its topic
    starting: dict[str, list[str]]  # first character: the Chinese words that start with it, longest first


@cache
def lexicon() -> Lexicon:
    """The file's lines are "topic: beginnings of words in tags | words of questions", each in one topic."""
    text = (DATA / "topics_lexicon.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([a-z ]+):([^|]+)\|([^:|]+)$", text, re.M)
    tags = {topic: re.compile(rf"\b(?:{'|'.join(names.split())})", re.I) for topic, names, _ in entries}
    owner = {word: number for number, (*_, words) in enumerate(entries) for word in words.split()}
    starting = defaultdict(list)
    for word in sorted((word for word in owner if not word.isascii()), key=len, reverse=True):
        starting[word[0]].append(word)
    return Lexicon([*tags, "other"], tags, owner, dict(starting))


def normalise(tag: str) -> str:
    """ShareGPT's free-text tag as a topic: "Finance, Business: \\n\\n" is "finance"; "" where it fits none.

    The first of several names counts; the order of the lexicon settles a name that fits two.
    """
    names, tags = re.split(r"[,，;:：/\n]+", tag), lexicon().tags.items()
    return next((topic for name in names for topic, begins in tags if begins.search(name)), "")


def text_of(messages: list[dict], role: str) -> str:
    """The first READ characters of what `role` says in a conversation."""
    return "\n".join(message["content"] for message in messages if message["role"] == role)[:READ]


def lexicon_scores(text: str) -> np.ndarray:
    """Points per topic, [19]: for each different word of `text` its characters, up to 3, a Latin one 2."""
    topics, _, owner, starting = lexicon()
    scores, text, at = np.zeros(len(topics) - 1), text.lower(), 0
    found = set(LATIN_WORD.findall(text))
    while at < len(text):  # the longest word that starts here, so that 数学家 is not 数学 as well
        word = next((word for word in starting.get(text[at], ()) if text.startswith(word, at)), text[at])
        found.add(word)
        at += len(word)
    for word in owner.keys() & found:
        scores[owner[word]] += 2 if word.isascii() else min(len(word), 3)
    for topic in ("computer", "mathematics"):
        scores[topics.index(topic)] += 2 * bool(pattern(topic).search(text))
    return scores


class Classifier(NamedTuple):
    """Lexicon and naive Bayes together, as `fit` makes it."""

    vectorizer: "TfidfVectorizer"  # noqa: F821, scikit-learn is imported where it is used
    bayes: "ComplementNB"  # noqa: F821

    def topics(self, conversations: Sequence[list[dict]], tags: Sequence[str] | None = None) -> list[str]:
        """A topic for each conversation: what its tag says, else the classifier's answer from its questions.

        "other": fewer than eight characters or words, none of them in the lexicon ("你好", "继续").
        """
        found = [normalise(tag) for tag in tags] if tags is not None else [""] * len(conversations)
        pairs = zip(conversations, found, strict=True)
        texts = [text_of(messages, "user") for messages, topic in pairs if not topic]
        guesses = iter(self._guess(texts) if texts else ())
        return [topic or next(guesses) for topic in found]

    def _guess(self, texts: list[str]) -> list[str]:
        known = np.array([lexicon_scores(text) for text in texts])
        learnt = self.bayes.predict_log_proba(self.vectorizer.transform(texts))
        learnt -= learnt.mean(axis=1, keepdims=True)
        # a point of the lexicon is worth one standard deviation of naive Bayes
        best = (learnt / (learnt.std(axis=1, keepdims=True) + 1e-9) + known).argmax(axis=1)
        short = np.array([len(UNIT.findall(text)) < 8 for text in texts])
        best[short & ~known.any(axis=1)] = -1  # "other"
        return [lexicon().topics[topic] for topic in best]


def fit(conversations: Sequence[list[dict]], seed: int = 0, at_most: int = 20_000) -> Classifier:
    """A classifier learnt from `conversations` (lists of messages), of which `at_most` are drawn with `seed`.

    With few or narrow conversations it is little more than the lexicon, whose own words are always examples.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.naive_bayes import ComplementNB

    owner = lexicon().owner
    texts, labels, left = list(owner), list(owner.values()), [PER_TOPIC] * (len(lexicon().topics) - 1)
    for number in np.random.default_rng(seed).permutation(len(conversations))[:at_most].tolist():
        question, answer = (text_of(conversations[number], role) for role in ("user", "assistant"))
        scores = lexicon_scores(question) + 0.3 * lexicon_scores(answer)
        second, first = np.argsort(scores)[-2:]
        if scores[first] - scores[second] >= SURE and left[first]:
            left[first] -= 1
            texts.append(f"{question}\n{answer}")
            labels.append(int(first))
    tfidf = TfidfVectorizer(token_pattern=UNIT.pattern, ngram_range=(1, 2), max_df=0.1, sublinear_tf=True)
    return Classifier(tfidf, ComplementNB(alpha=0.3).fit(tfidf.fit_transform(texts), labels))
