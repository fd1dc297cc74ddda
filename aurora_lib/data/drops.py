"""Drops: small pure functions of a conversation, with a reason to leave it out or None (paper, section 2)."""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from aurora_lib.data.edits import MARKS, Messages
from aurora_lib.data.patterns import WORDS, language, pattern

SHORT = 40  # characters of an answer that says nothing but "not possible"
# So many characters after a refusal are an answer all the same; fewer do where they begin with "but".
HELPFUL, HELPFUL_AFTER_BUT = 150, 60
COMPRESSIBLE = 0.3  # ordinary Chinese text shrinks to half
REPEATED = 0.85  # share of 30 characters in a row that are there twice; poems with a refrain stay below 0.8


def roles(messages: Messages) -> str | None:
    """Drop unless the turns are: perhaps one system turn, then user and assistant in turn."""
    order = [message["role"] for message in messages]
    order = order[1:] if order[:1] == ["system"] else order
    for i, role in enumerate(order):
        expected = ("user", "assistant")[i % 2]
        if role != expected:
            return f"turn {i + 1} is by the {role}, where the {expected}'s belongs"
    return None if order and len(order) % 2 == 0 else "no answer"


def empty(messages: Messages) -> str | None:
    """Drop where the first question or an answer is empty, mere punctuation, or a service's error message."""
    if not next(message["content"] for message in messages if message["role"] == "user").strip():
        return "an empty question"
    for before, message in pairwise(messages):
        text = message["content"].strip()
        if message["role"] != "assistant":
            continue
        if not text:
            return "an empty answer"
        mute = all(unicodedata.category(c)[0] in "PZC" for c in text) and not pattern("morse").fullmatch(text)
        if mute and not pattern("asks_for_signs").search(before["content"]):
            return "an answer of punctuation only"
        word = text.strip(MARKS).lower()
        if word in WORDS["nothing"] or word == "不适用" or (text[0] in MARKS and word in WORDS["vague"]):
            return "an answer that says there is none"
        asked = messages[0]["content"] + "\n" + before["content"]
        if len(text) < 400 and pattern("service").match(text) and not pattern("about_service").search(asked):
            return "an answer that is a service's error message"
    return None


def refusal(messages: Messages) -> str | None:
    """Drop where the last answer opens with a refusal and has little more to offer."""
    answer, asked = messages[-1]["content"].strip(), messages[-2]["content"]
    if len(answer) < SHORT and pattern("not_possible").match(answer):
        return "the last answer says that it cannot be done"
    if not (found := pattern("refusal").match(answer)):
        return None
    if pattern("asks_for_text").search(asked) and not pattern("machine_refusal").search(found[0]):
        return None
    rest = answer[found.end() :]
    helpful = len(rest) > (HELPFUL_AFTER_BUT if pattern("turns_helpful").search(rest) else HELPFUL)
    return None if helpful else "the last answer is a refusal"


def wrong_language(messages: Messages) -> str | None:
    """Drop where a Chinese question has an English or Japanese answer that nobody asked for."""
    asked = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    brought = any(pattern(name).search(asked) for name in ("asks_for_english", "latin_word"))
    if brought or language(asked) != "zh":
        return None
    if any(_is_english_prose(message["content"]) for message in messages if message["role"] == "assistant"):
        return "a Chinese question with an English answer nobody asked for"
    brought = pattern("kana").search(asked) or pattern("asks_for_japanese").search(asked)
    if len(pattern("kana").findall(messages[-1]["content"])) > 20 and not brought:
        return "a Chinese question with a Japanese answer nobody asked for"
    return None


def _is_english_prose(text: str) -> bool:
    """A sentence: words with hardly anything between them, so no code, formula, address or list of names."""
    prose = pattern("not_prose").sub(" ", text)
    pieces = [piece for piece in prose.split() if re.search(r"[^\W\d]|[=<>{}]", piece)]
    plain = [piece for piece in pieces if pattern("word").fullmatch(piece)]
    if len(plain) < 4 or len(plain) < 0.85 * len(pieces) or sum(word[0].islower() for word in plain) < 2:
        return False
    sentence = pattern("small_word").search(text) or (text.rstrip().endswith(".") and "," not in text)
    return bool(sentence) and language(text) == "en"


def truncated(messages: Messages) -> str | None:
    """Drop where the last answer stops in the middle: on a comma, an open bracket or fence, in a sentence."""
    answer = messages[-1]["content"].rstrip()
    last = answer[answer.rfind("\n") + 1 :]
    if len(answer) < 60:
        return None
    if (found := pattern("unfinished").search(answer)) and (len(last) > 12 or found[0][0] == "\n"):
        return f"the last answer stops at {found[0].strip()!r}"
    if answer.count("```") % 2 and not answer.endswith("```"):
        return "the last answer stops inside a code block"
    ended = max(map(last.rfind, "。！？"))
    if len(answer) > 100 and ended > 0 and not pattern("tag_or_address").search(last[ended:]):
        if last[-1] in "的和与在把被及或但而将":
            return f"the last answer stops at {last[-1]!r}"
        if len(answer) > 150 and "，" in last[ended:] and "\u4e00" <= last[-1] <= "\u9fff":
            return "the last answer stops in the middle of a sentence"
    return None


def repetition(messages: Messages) -> str | None:
    """Drop where most of an answer is one piece of text over and over, and nobody asked for that."""
    for i, message in enumerate(messages):
        text, asked = message["content"], messages[i - 1]["content"]
        if message["role"] != "assistant" or len(text) < 200:
            continue
        raw = text.encode()
        if len(zlib.compress(raw, 1)) > COMPRESSIBLE * len(raw) or pattern("asks_to_repeat").search(asked):
            continue  # hardly repeats itself, or was told to
        prose = pattern("not_prose").sub(" ", text)
        run = pattern("run").search(prose)
        if run and re.search(r"\w", run[1]) and len(run[0]) > len(prose) / 2:
            return f"an answer repeats {run[1][:20]!r}"
        prose = re.sub(r"[^\w\s]{4,}", " ", prose)  # rules and boxes are drawn with the same sign
        grams = [prose[start : start + 30] for start in range(len(prose) - 29)]
        times = Counter(grams)
        if len(grams) > 100 and sum(times[gram] > 1 for gram in grams) > REPEATED * len(grams):
            return f"an answer repeats {times.most_common(1)[0][0][:20]!r}"
    return None


DROPS: list[Callable[[Messages], str | None]] = [roles, empty, refusal, wrong_language, truncated, repetition]
