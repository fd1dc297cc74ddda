"""Edits: small pure functions that give a text or a conversation back mended (paper, section 2)."""

import html.entities
import re
import unicodedata
from collections.abc import Callable
from functools import partial

import ftfy
from rapidfuzz.distance import Prefix

from aurora_lib.data.patterns import WORDS, pattern

Messages = list[dict]  # {role, content}, as `sources.read` makes them

# Some of ftfy's repairs stay off, since they would rewrite Chinese punctuation and quotes.
FTFY = ftfy.TextFixerConfig(fix_character_width=False, uncurl_quotes=False, unescape_html=False)
MARKS = ' \t`<>()（）[]【】"“”.。'  # what may stand around "no input"
LEAKS = dict.fromkeys(("echo", "mark_before", "mark_behind"), "about_marks")  # a leak: questions about such
LEAKS |= dict.fromkeys(("label", "leak"), "about_prompts")
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\"": '"'}


def escapes(text: str) -> str:
    """A text escaped twice (`\\n` in it, no line break) gets what `\\n`, `\\t` and `\\"` stand for."""
    if r"\n" not in text or "\n" in text or pattern("code").search(text):
        return text
    return pattern("escape").sub(lambda found: ESCAPES[found[0]], text)


def mojibake(text: str) -> str:
    """Text once decoded wrongly (`ä½\xa0å¥½`) is decoded anew, and Unicode composed (NFC)."""
    text = ftfy.fix_text(text, FTFY) if pattern("mojibake").search(text) else text
    return unicodedata.normalize("NFC", text)


def invisible(text: str) -> str:
    """Zero-width and control characters go, line breaks become `\\n`."""
    return pattern("invisible").sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def html_entities(messages: Messages) -> Messages:
    """`&lt;`, `&quot;`, `&#39;` and their like become what they stand for, unless they are the subject."""
    if not _says(messages, "entity") or _says(messages, "about_entities"):
        return messages
    return _mended(messages, lambda text: pattern("entity").sub(_character, text))


def _character(entity: re.Match) -> str:
    # html.unescape would make `&copyright;` "©right;"
    named = html.entities.html5.get(entity[0][1:], entity[0])
    return html.unescape(entity[0]) if entity[0][1] == "#" else named


def no_input(messages: Messages) -> Messages:
    """\"No input\" goes where it is a question's last line, or in brackets before an answer."""
    messages = _mended(messages, _without_no_input, "user")
    return _mended(messages, partial(pattern("stray_no_input").sub, ""), "assistant")


def _without_no_input(text: str) -> str:
    question, _, last = text.rstrip().rpartition("\n")
    word, question = last.strip(MARKS).lower(), question.rstrip()
    stray = word in WORDS["nothing"] or (word in WORDS["vague"] and "\n" not in question)
    return question if question and stray else text


def prompt_leak(messages: Messages) -> Messages:
    """From an answer go a speaker's name or the prompt before it, end marks and turns behind it."""
    asked = "\n".join(message["content"] for message in messages if message["role"] == "user")
    for name, subject in LEAKS.items():
        if _says(messages, name, "assistant") and not pattern(subject).search(asked):
            mended = _mended(messages, partial(pattern(name).sub, partial(_rest, asked)), "assistant")
            messages = _mended(mended, str.rstrip, "assistant") if mended != messages else messages
    return messages


def _rest(asked: str, leak: re.Match) -> str:
    """What stays of a leak: all if its prompt was not asked or its name is in the question, else HTML."""
    found = leak.groupdict("")
    other = any(line.strip() not in asked for line in pattern("prompt_line").split(found.get("prompt", "")))
    stays = other or found.get("word", "\0").lower() in asked.lower()
    return leak[0] if stays else found.get("html", "")


def empty_system(messages: Messages) -> Messages:
    """A system turn without text is removed."""
    return [m for m in messages if m["role"] != "system" or m["content"].strip()]


def trailing_question(messages: Messages) -> Messages:
    """User turns after the last answer are cut off."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return messages[: last + 1] if last >= 0 else messages


# In this order: an edit may uncover what the next one finds.
TEXT_EDITS: list[Callable[[str], str]] = [escapes, mojibake, invisible]
EDITS: list[Callable] = [empty_system, html_entities, no_input, prompt_leak, trailing_question]


def edit(messages: Messages) -> tuple[Messages, list[dict]]:
    """The conversation after every edit, and what each changed: `step`, `turn` (from 1), `before`, `after`.

    Editing again changes nothing.
    """
    steps = [(step.__name__, partial(_mended, mend=step)) for step in TEXT_EDITS]
    steps += [(step.__name__, step) for step in EDITS]
    changes = []
    for _ in range(10):  # `&amp;lt;` takes two passes; ten is for the malicious
        at_first = messages
        for name, step in steps:
            before, messages = messages, step(messages)
            if messages is not before and messages != before:
                changes += _changes(name, before, messages)
        if messages == at_first:
            break
    return messages, changes


def _says(messages: Messages, name: str, role: str = "") -> bool:
    """Whether the pattern is found in any text, of `role` if given."""
    search = pattern(name).search
    return any(search(m["content"]) for m in messages if m["role"] == role or not role)


def _mended(messages: Messages, mend: Callable[[str], str], role: str = "") -> Messages:
    """The conversation with each text mended, or those of `role`; the same object where nothing changes."""
    texts = [mend(m["content"]) if m["role"] == role or not role else m["content"] for m in messages]
    if texts == [m["content"] for m in messages]:
        return messages
    return [m | {"content": text} for m, text in zip(messages, texts, strict=True)]


def _changes(step: str, before: Messages, after: Messages) -> list[dict]:
    """Where `after` differs from `before`: 40 characters around the first difference of each turn."""
    found, left, stay = [], iter(after), {id(message) for message in after}
    for turn, was in enumerate(before, 1):
        gone = len(after) < len(before) and id(was) not in stay
        old, new = was["content"], "" if gone else next(left, {"content": ""})["content"]
        if gone or old != new:
            window = slice(max(0, (at := Prefix.similarity(old, new)) - 10), at + 30)
            found.append(dict(step=step, turn=turn, before=old[window], after=new[window]))
    return found
