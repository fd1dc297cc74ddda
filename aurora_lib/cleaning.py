"""Conversations -> clean conversations, by named steps; nothing is lost in silence (paper, section 2)."""

import html.entities
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ftfy
import pandas
import xxhash
from datasets import Dataset, Features, Value, concatenate_datasets
from tqdm.auto import tqdm

from aurora_lib.language import NOT_PROSE, language
from aurora_lib.scale import Scale
from aurora_lib.sources import FEATURES, SOURCES, DataError, load, table

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
    "无输入",
    "没有输入",
    "无需输入",
    "不需要输入",
    "未输入",
    "无输出",
    "输入：无",
    "输入:无",
}
VAGUE = {"无", "none", "n/a", "不适用"}
MARKS = ' \t`<>()（）[]【】"“”.。'

UNABLE = r"(?:无法|不能|没有能力|没有办法|没办法|没法|不可以|拒绝)"
LACKS = r"没有[^，。\n]{0,16}(?:能力|信息|权限)"
MACHINE = r"(?:AI|人工智能|语言模型|助手|助理|机器人|程序)"
REFUSAL = re.compile(
    r"\W{0,3}(?:"
    r"[我您]?(?:非常|真的|十分|很|深感|感到)*(?:抱歉|对不起|不好意思|遗憾|不幸的是)"
    rf"(?:[^。！？!?\n]{{0,60}}?{MACHINE}[^。！？!?\n]{{0,50}}?"
    r"|[^。！？!?\n]{0,12}?我(?:们|暂时|目前|现在|并|还|实在|确实|真的|恐怕|也|是)*)"
    rf"(?:{UNABLE}|{LACKS})"
    rf"|(?:作为|由于我是)[^。！？!?\n]{{0,16}}?{MACHINE}[^。！？!?\n]{{0,40}}?{UNABLE}"
    rf"|我(?:只)?是[^。！？!?\n]{{0,16}}?{MACHINE}[^。！？!?\n]{{0,10}}?无法"
    r"|我(?:无法|不能)(?:回答|提供|协助|帮助|满足|完成)"
    r"|(?:I['’]?\s?a?m (?:very )?sorry|Sorry|I apologi[sz]e|Unfortunately|As an AI)[^.!?\n]{0,100}?"
    r"(?:cannot|can['’]?t|unable|not able|do not|don['’]t)"
    r")[^，。！？,.!?\n]*",
    re.I,
)
TURNS_HELPFUL = re.compile(r"但|不过|然而|以下|如果|例如|However|but I can", re.I)
# Where the user asks for a text, "sorry, I cannot" may be that text.
ASKS_FOR_TEXT = re.compile(
    r"翻译|译成|译为|改写|重写|改为|造句|道歉|拒绝|扮演|写[一封个出篇首]|续写|对话|translate|rewrite|write",
    re.I,
)
ASKS_FOR_ENGLISH = re.compile(r"英文|英语|英語|英译|双语|雙語|翻译|翻譯|译成|english|translat", re.I)
LATIN_WORD = re.compile(r"(?<![A-Za-z])[a-z]{2,}")
WORD = re.compile(r"[(\"'“‘*]*[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?)\"'”’*]*")
SMALL_WORD = re.compile(
    r"\b(?:the|an?|is|are|was|of|to|and|in|for|that|it|you|your|with|on|at|as|be|from|by)\b"
)
MORSE = re.compile(r"(?=.*[.·])(?=.*[-—])[.·—\-/|\s]+", re.S)


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
    """A last line that says "no input" goes from the question: it stood for an empty field."""
    return [m | {"content": _without_no_input(m["content"])} if m["role"] == "user" else m for m in messages]


def _without_no_input(text: str) -> str:
    question, _, last = text.rstrip().rpartition("\n")
    word = last.strip(MARKS).lower()
    return question if question and (word in NOTHING or (word in VAGUE and "\n" not in question)) else text


def trailing_question(messages: Messages) -> Messages:
    """User turns after the last answer are cut off."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return messages[: last + 1] if last >= 0 else messages


def roles(messages: Messages) -> str | None:
    """Drop what is not an optional system turn, then user and assistant in turn."""
    order = [message["role"] for message in messages]
    order = order[1:] if order[:1] == ["system"] else order
    for i, role in enumerate(order):
        expected = ("user", "assistant")[i % 2]
        if role != expected:
            return f"turn {i + 1} is by the {role}, where the {expected}'s belongs"
    return None if order and len(order) % 2 == 0 else "no answer"


def empty(messages: Messages) -> str | None:
    """Drop where the first question is empty, or an answer empty, mere punctuation, or "no output"."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if not asked[0].strip():
        return "an empty question"
    for text in (message["content"].strip() for message in messages if message["role"] == "assistant"):
        if not text:
            return "an empty answer"
        if all(unicodedata.category(c)[0] in "PZC" for c in text) and not MORSE.fullmatch(text):
            return "an answer of punctuation only"
        if text[0] in MARKS and text.strip(MARKS).lower() in NOTHING | VAGUE:
            return "an answer that says there is none"
    return None


def refusal(messages: Messages) -> str | None:
    """Drop where the last answer opens with a refusal and has little more to offer."""
    answer, asked = messages[-1]["content"].strip(), messages[-2]["content"]
    found = REFUSAL.match(answer)
    if not found or (ASKS_FOR_TEXT.search(asked) and not re.search(rf"{MACHINE}|协助|提供", found[0])):
        return None
    rest = answer[found.end() :]
    helpful = len(rest) > (60 if TURNS_HELPFUL.search(rest) else 150)
    return None if helpful else "the last answer is a refusal"


def wrong_language(messages: Messages) -> str | None:
    """Drop where a Chinese question has an English answer and nobody asked for English or brought some."""
    asked = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    if language(asked) != "zh" or ASKS_FOR_ENGLISH.search(asked) or LATIN_WORD.search(asked):
        return None
    if any(_is_english_prose(message["content"]) for message in messages if message["role"] == "assistant"):
        return "a Chinese question with an English answer nobody asked for"
    return None


def _is_english_prose(text: str) -> bool:
    """A sentence: words with hardly anything between them, so no code, formula, address or list of names."""
    words = [word for word in NOT_PROSE.sub(" ", text).split() if re.search(r"[^\W\d]|[=<>{}]", word)]
    plain = [word for word in words if WORD.fullmatch(word)]
    if len(plain) < 4 or len(plain) < 0.85 * len(words) or sum(word[0].islower() for word in plain) < 2:
        return False
    sentence = SMALL_WORD.search(text) or (text.rstrip().endswith(".") and "," not in text)
    return bool(sentence) and language(text) == "en"


def fingerprint(messages: Messages) -> int:
    """128 bits that two conversations share when they are equal, word for word."""
    text = "\0".join(f"{message['role']}\0{message['content'].strip()}" for message in messages)
    return xxhash.xxh3_128_intdigest(text.encode())


# In this order: an edit may make a text clean, or show that it was empty.
TEXT_EDITS: list[Callable[[str], str]] = [mojibake, invisible]
EDITS: list[Callable[[Messages], Messages]] = [html_entities, no_input, trailing_question]
DROPS: list[Callable[[Messages], str | None]] = [roles, empty, refusal, wrong_language]
STEPS = [step.__name__ for step in (*TEXT_EDITS, *EDITS, *DROPS)] + ["duplicate"]


@dataclass
class CleaningResult:
    """What came of cleaning: each conversation is in `kept` or, as read, in `dropped` (`step`, `reason`)."""

    kept: Dataset
    dropped: Dataset
    edited: Counter  # {step: conversations it changed}
    counts: Counter = field(repr=False)  # {(step, action, source): conversations}

    @property
    def report(self) -> pandas.DataFrame:
        """Conversations by step (rows, in order) and source (columns, and `total`)."""
        frame = pandas.Series(self.counts).unstack(fill_value=0)
        order = [("read", "read"), *((s, a) for s in STEPS for a in ("edited", "dropped")), ("kept", "kept")]
        frame = frame.reindex([key for key in order if key in frame.index])
        frame.index.names = ["step", "action"]
        return frame.assign(total=frame.sum(axis=1)).astype(int)

    def table1(self) -> pandas.DataFrame:
        """Single- and multi-round conversations per source, as in the paper's Table 1."""
        rounds = Counter()
        for source, messages in zip(self.kept["source"], self.kept["messages"], strict=True):
            rounds[source, sum(message["role"] == "user" for message in messages) > 1] += 1
        names = dict.fromkeys(self.kept["source"])
        rows = {name: {"single": rounds[name, False], "multiple": rounds[name, True]} for name in names}
        frame = pandas.DataFrame.from_dict(rows, orient="index", columns=["single", "multiple"])
        frame.loc["total"] = frame.sum()
        return frame.assign(total=frame.sum(axis=1)).astype(int)


def edit(messages: Messages) -> tuple[Messages, list[str]]:
    """The conversation after every edit, and which edits changed it. Editing again changes nothing."""
    changed = []
    for _ in range(10):  # `&amp;lt;` takes two passes; ten is for the malicious
        before = messages
        for step in TEXT_EDITS:
            after = [message | {"content": step(message["content"])} for message in messages]
            changed += [step.__name__] * (after != messages)
            messages = after
        for step in EDITS:
            after = step(messages)
            changed += [step.__name__] * (after != messages)
            messages = after
        if messages == before:
            break
    return messages, list(dict.fromkeys(changed))


def clean(dataset: Dataset) -> CleaningResult:
    """Clean conversations of any number of sources: edit, drop with a reason, drop exact duplicates.

    `dataset` is what `sources.load` gives (`datasets.concatenate_datasets` joins several). Cleaning what was
    kept changes nothing. Raises DataError for a dataset that is empty or lacks one of those columns.
    """
    if missing := set(FEATURES) - set(dataset.column_names):
        raise DataError(
            f"Nothing to clean: no column {', '.join(sorted(missing))}. Use what sources.load gives."
        )
    if len(dataset) == 0:
        raise DataError(
            "Nothing to clean: the dataset has no conversation. See sources.rejected, and AURORA_DATA."
        )
    kept, dropped, counts, seen = [], [], Counter(), {}
    for row in tqdm(dataset, desc="cleaning", disable=len(dataset) < 20_000):
        source = row["source"]
        counts["read", "read", source] += 1
        messages, changed = edit(row["messages"])
        for name in changed:
            counts[name, "edited", source] += 1
        step, reason = next(((s.__name__, why) for s in DROPS if (why := s(messages))), (None, None))
        if not reason:
            mark = fingerprint(messages)
            if mark in seen:
                step, reason = "duplicate", f"the same as {seen[mark]}"
            seen.setdefault(mark, row["id"])
        if reason:
            dropped.append(row | {"step": step, "reason": reason})
            counts[step, "dropped", source] += 1
        else:
            kept.append(row | {"messages": messages})
            counts["kept", "kept", source] += 1
    assert len(kept) + len(dropped) == len(dataset)
    edited = Counter()
    for (name, action, _), n in counts.items():
        edited[name] += n * (action == "edited")
    why = Features(FEATURES | {"step": Value("string"), "reason": Value("string")})
    return CleaningResult(table(kept), table(dropped, why), +edited, counts)


def conversations(scale: Scale) -> Dataset:
    """The clean conversations to train on: those notebook 02 saved, else cleaned here and now from the same sources.

    Prints in one line which. What was saved from other data than `scale.data` is not used.
    """
    path = scale.runs / "conversations.jsonl"
    if path.is_file():
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(head) == _origin(scale):
            print(f"conversations: {len(lines):,}, cleaned by notebook 02")
            return table([json.loads(line) for line in lines])
    read = concatenate_datasets([load(name, scale.data or "hub") for name in SOURCES])
    kept = clean(read).kept
    print(f"conversations: {len(kept):,}, cleaned just now (notebook 02 has not run on this data here)")
    return kept


def save(dataset: Dataset, scale: Scale) -> Path:
    """Write `dataset` as JSON Lines for the notebooks that follow; the first line says which data it came from."""
    path = scale.runs / "conversations.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file:
        for row in [_origin(scale), *dataset]:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    unfinished.replace(path)  # whole or not at all
    return path


def _origin(scale: Scale) -> dict:
    return {"data": str(scale.data or "hub")}
