"""Edits: small pure functions that give a text or a conversation back mended (paper, section 2)."""

import html.entities
import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from itertools import zip_longest

import ftfy
from rapidfuzz.distance import Prefix

from aurora_lib.data.patterns import pattern, words

Messages = list[dict]  # {role, content}, as `sources.load` makes them

# Some of ftfy's repairs stay off, since they would rewrite Chinese punctuation and quotes.
FTFY = ftfy.TextFixerConfig(fix_character_width=False, uncurl_quotes=False, unescape_html=False)
MARKS = ' \t`<>()（）[]【】"“”.。'  # what may stand around "no input"
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
    """A question's last line, or an answer's first word in brackets, goes where it says "no input"."""
    messages = _mended(messages, _without_no_input, "user")
    return _mended(messages, partial(pattern("stray_no_input").sub, ""), "assistant")


def _without_no_input(text: str) -> str:
    question, _, last = text.rstrip().rpartition("\n")
    word, question = last.strip(MARKS).lower(), question.rstrip()
    stray = word in words("nothing") or (word in words("vague") and "\n" not in question)
    return question if question and stray else text


def prompt_leak(messages: Messages) -> Messages:
    """An answer loses `### Response:` before and `### Instruction:` behind it, if not about prompts."""
    if not _says(messages, "leak", "assistant") or _says(messages, "about_prompts", "user"):
        return messages
    return _mended(messages, _without_leak, "assistant")


def _without_leak(text: str) -> str:
    while label := pattern("label").match(text):
        text = text[label.end() :]
    found = pattern("leak").search(text)
    return text[: found.start()].rstrip() if found else text


def trailing_question(messages: Messages) -> Messages:
    """User turns after the last answer are cut off."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return messages[: last + 1] if last >= 0 else messages


def to_simplified(messages: Messages) -> Messages:
    """Traditional characters become simplified (OpenCC's t2s), if not Japanese and not the subject."""
    if _says(messages, "about_traditional"):
        return messages
    return _mended(messages, lambda text: text if pattern("kana").search(text) else _opencc().convert(text))


@cache
def _opencc():
    import opencc

    return opencc.OpenCC("t2s")


# In this order: an edit may uncover what the next one finds.
TEXT_EDITS: list[Callable[[str], str]] = [escapes, mojibake, invisible]
EDITS: list[Callable[[Messages], Messages]] = [html_entities, no_input, prompt_leak, trailing_question]
OPTIONAL: list[Callable[[Messages], Messages]] = [to_simplified]


def edit(messages: Messages, options: tuple[str, ...] = ()) -> tuple[Messages, list[dict]]:
    """The conversation after every edit, and what each changed: `step`, `turn` (from 1), `before`, `after`.

    `options` names steps of OPTIONAL to take as well. Editing again changes nothing.
    """
    steps = [(step.__name__, partial(_mended, mend=step)) for step in TEXT_EDITS]
    asked_for = [step for step in OPTIONAL if step.__name__ in options]
    steps += [(step.__name__, step) for step in [*EDITS, *asked_for]]
    changes = []
    for _ in range(10):  # `&amp;lt;` takes two passes; ten is for the malicious
        at_first = messages
        for name, step in steps:
            before, messages = messages, step(messages)
            changes += _changes(name, before, messages) if messages != before else []
        if messages == at_first:
            break
    return messages, changes


def _says(messages: Messages, name: str, role: str = "") -> bool:
    """Whether the pattern is found in any text, of `role` if given."""
    return any(pattern(name).search(m["content"]) for m in messages if m["role"] == role or not role)


def _mended(messages: Messages, mend: Callable[[str], str], role: str = "") -> Messages:
    """The conversation with each text mended, or those of `role`."""
    return [m | {"content": mend(m["content"])} if m["role"] == role or not role else m for m in messages]


def _changes(step: str, before: Messages, after: Messages) -> list[dict]:
    """Where `after` differs from `before`: 40 characters around the first difference of each turn."""
    found = []
    for turn, (was, now) in enumerate(zip_longest(before, after), 1):
        old, new = was["content"], now["content"] if now else ""
        if old != new:
            at = Prefix.similarity(old, new)
            window = slice(max(0, at - 10), at + 30)
            found.append(dict(step=step, turn=turn, before=old[window], after=new[window]))
    return found
