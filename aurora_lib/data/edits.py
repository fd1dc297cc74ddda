"""Edits: small pure functions that give a text or a conversation back mended (paper, section 2)."""

import html.entities
import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial

import ftfy

from aurora_lib.data.languages import KANA

Messages = list[dict]  # {role, content}, as `sources.load` makes them

# What UTF-8 looks like when read as Windows-1252: only such texts go to ftfy, which is slow. Some of its
# repairs stay off, since they would rewrite Chinese punctuation and quotes.
MOJIBAKE = re.compile(r"[ÂÃâäåæçèéïð][\x80-\xbfŒœŠšŸŽžƒˆ˜–—‘’‚“”„†‡•…‰‹›€™]")
FTFY = ftfy.TextFixerConfig(fix_character_width=False, uncurl_quotes=False, unescape_html=False)
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,31}\d{0,2});")
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    "|(?:^|(?<=[\x00-\x7f\u3000-\u9fff\uff00-\uffef]))[\u200c\u200d]"  # they join emoji, Persian
)
ABOUT_ENTITIES = re.compile(r"实体|转义|entit|escap", re.I)
# What stands for an empty field. The vague words do so only where they are the whole input.
NOTHING = {
    "noinput",
    "no input",
    "nooutput",
    "no output",
    "无输入",
    "没有输入",
    "无需输入",
    "不需要输入",
    "未输入",
}
NOTHING |= {"无输出", "输入：无", "输入:无"}
VAGUE = {"无", "none", "n/a", "不适用"}
STRAY_NO_INPUT = re.compile(r"^\s*[<‹《](?:no ?input|无输入|没有输入)[>›》]\s*(?=\S)", re.I)
MARKS = ' \t`<>()（）[]【】"“”.。'

# What a training prompt or a chat format leaves behind when an answer runs on past its end.
LEAK = re.compile(
    r"(?:^|\n)\s*(?:#{2,3}\s*(?:Instruction|Response|Input|Human|Assistant|指令|指示|输入|输出|回复|回答)\s*[:：]"
    r"|Below is an instruction that describes a task|(?:Human|Assistant)\s*: )"
    # self-instruct went on to its next example: "11. 说明：... 11. 输入：..."
    r"|(?:^|\n)(?:#{2,3}\s*\n\s*)?\d{1,2}\s*[.、]\s*(?:说明|指令|Instruction)\s*[:：]"
    r"(?=[\s\S]*?\n\s*\d{1,2}\s*[.、]\s*(?:输入|Input))"
    r"|<\|(?:im_start|im_end|endoftext|user|assistant|eot_id)\|>|\[/?INST\]|<</?SYS>>"
)
LABEL = re.compile(
    r"\s*(?:#{2,3}\s*(?:Response|回复|回答|输出)\s*[:：]|<\|(?:im_start|assistant)\|>(?:assistant)?)\s*"
)
ABOUT_PROMPTS = re.compile(
    r"(?i)prompt|提示词|模板|template|format|chatml|token|instruct|微调|对话|dialog|剧本|采访|markdown|###|<\|"
)
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\"": '"'}
ESCAPE = re.compile(r"\\[nt\"]")
CODE = re.compile(r"[{}<>=\\]{2}|[;{]\s*$|```|print|def |正则|转义|regex|代码|JSON", re.I | re.M)
ABOUT_TRADITIONAL = re.compile(r"繁[体體]|正[体體][中字]|[简簡][体體]字|traditional chinese", re.I)


def escapes(text: str) -> str:
    """A text without a line break but with `\\n` in it was escaped twice: `\\n`, `\\t` and `\\"` become what
    they stand for."""
    if r"\n" not in text or "\n" in text or CODE.search(text):
        return text
    return ESCAPE.sub(lambda found: ESCAPES[found[0]], text)


def mojibake(text: str) -> str:
    """Text once decoded wrongly (`ä½\xa0å¥½`) is decoded anew, and Unicode composed (NFC)."""
    return unicodedata.normalize("NFC", ftfy.fix_text(text, FTFY) if MOJIBAKE.search(text) else text)


def invisible(text: str) -> str:
    """Zero-width and control characters go, line breaks become `\\n`."""
    return INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def html_entities(messages: Messages) -> Messages:
    """`&lt;`, `&quot;`, `&#39;` and their like become what they stand for, unless they are the subject."""
    if not any("&" in message["content"] for message in messages):
        return messages
    if any(ABOUT_ENTITIES.search(message["content"]) for message in messages):
        return messages
    return [message | {"content": ENTITY.sub(_character, message["content"])} for message in messages]


def _character(entity: re.Match) -> str:
    if entity[0][1] == "#":
        return html.unescape(entity[0])
    return html.entities.html5.get(
        entity[0][1:], entity[0]
    )  # html.unescape would make `&copyright;` "©right;"


def no_input(messages: Messages) -> Messages:
    """A question's last line, or an answer's first word in brackets, that says "no input" goes: it stood for
    an empty field."""
    answer = partial(STRAY_NO_INPUT.sub, "")
    mended = {"user": _without_no_input, "assistant": answer, "system": str}
    return [m | {"content": mended[m["role"]](m["content"])} for m in messages]


def _without_no_input(text: str) -> str:
    question, _, last = text.rstrip().rpartition("\n")
    word, question = last.strip(MARKS).lower(), question.rstrip()
    return question if question and (word in NOTHING or (word in VAGUE and "\n" not in question)) else text


def prompt_leak(messages: Messages) -> Messages:
    """An answer loses the `### Response:` before it and the next `### Instruction:` behind it, unless prompts
    are the subject."""
    if not any(LEAK.search(m["content"]) for m in messages if m["role"] == "assistant"):
        return messages
    if any(ABOUT_PROMPTS.search(m["content"]) for m in messages if m["role"] == "user"):
        return messages
    return [m | {"content": _without_leak(m["content"])} if m["role"] == "assistant" else m for m in messages]


def _without_leak(text: str) -> str:
    while label := LABEL.match(text):
        text = text[label.end() :]
    found = LEAK.search(text)
    return text[: found.start()].rstrip() if found else text


def trailing_question(messages: Messages) -> Messages:
    """User turns after the last answer are cut off."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return messages[: last + 1] if last >= 0 else messages


def to_simplified(messages: Messages) -> Messages:
    """Traditional characters become simplified ones (OpenCC's t2s), unless they are the subject; Japanese is
    left alone."""
    if any(ABOUT_TRADITIONAL.search(message["content"]) for message in messages):
        return messages
    return on_every_text(lambda text: text if KANA.search(text) else _opencc().convert(text), messages)


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
    steps = [(step.__name__, partial(on_every_text, step)) for step in TEXT_EDITS]
    steps += [(step.__name__, step) for step in EDITS]
    steps += [(step.__name__, step) for step in OPTIONAL if step.__name__ in options]
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


def on_every_text(step: Callable[[str], str], messages: Messages) -> Messages:
    """The conversation with `step` taken on each of its texts; the same object where nothing changes."""
    texts = [step(message["content"]) for message in messages]
    if all(text == message["content"] for text, message in zip(texts, messages, strict=True)):
        return messages
    return [message | {"content": text} for text, message in zip(texts, messages, strict=True)]


def _changes(step: str, before: Messages, after: Messages) -> list[dict]:
    texts = [message["content"] for message in after] + [""] * (len(before) - len(after))
    found = []
    for turn, (old, new) in enumerate(zip((message["content"] for message in before), texts, strict=True), 1):
        if old != new:
            pairs = enumerate(zip(old, new, strict=False))
            at = next((i for i, (was, now) in pairs if was != now), len(new))
            window = slice(max(0, at - 10), at + 30)
            found.append(dict(step=step, turn=turn, before=old[window], after=new[window]))
    return found
