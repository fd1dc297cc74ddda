"""Drops: small pure functions of a conversation that give a reason to leave it out, or None (paper, section
2)."""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from aurora_lib.data.edits import MARKS, NOTHING, VAGUE, Messages
from aurora_lib.data.languages import KANA, NOT_PROSE, language

UNABLE = r"(?:无法|不能|没有能力|没有办法|没办法|没法|不可以|拒绝)(?!真正|像人|吃|喝|感受|拥有)"
LACKS = r"没有[^，。\n]{0,16}(?:能力|信息|权限)"
MACHINE = r"(?:AI|人工智能|语言模型|助手|助理|机器人|程序)"
# 抱歉，作为一个人工智能助手，我无法看到物体。 Not: 抱歉，我之前的回答有误。
REFUSAL = re.compile(
    r"\W{0,3}(?:"
    r"[我您]?(?:非常|真的|十分|很|深感|感到)*(?:抱歉|对不起|不好意思|遗憾|不幸的是)"
    rf"(?:[^。！？!?\n]{{0,60}}?{MACHINE}[^。！？!?\n]{{0,50}}?"
    r"|[^。！？!?\n]{0,12}?我(?:们|暂时|目前|现在|并|还|实在|确实|真的|恐怕|也|是)*)"
    rf"(?:{UNABLE}|{LACKS})"
    rf"|(?:作为|由于我是)[^。！？!?\n]{{0,16}}?{MACHINE}[^。！？!?\n]{{0,40}}?{UNABLE}"
    rf"|我(?:只)?是[^。！？!?\n]{{0,16}}?{MACHINE}[^。！？!?\n]{{0,10}}?无法"
    r"|我(?:无法|不能)(?:回答|提供|协助|帮助|满足|完成|生成)"
    r"|(?:I['’]?\s?a?m (?:very )?sorry|Sorry|I apologi[sz]e|Unfortunately|As an AI)[^.!?\n]{0,100}?"
    r"(?:cannot|can['’]?t|unable|not able|do not|don['’]t)"
    r")[^，。！？,.!?\n]*",
    re.I,
)
# 该指令无法由语言模型完成。 Only as the whole of a short answer: it may also be what was asked about.
SHORT = 40  # characters
# So many characters after a refusal are an answer all the same; fewer do where they begin with "but".
HELPFUL, HELPFUL_AFTER_BUT = 150, 60
NOT_POSSIBLE = re.compile(
    r"\W*(?:<[^>]*>|N/A)?\W*(?:(?:该|此|这个?)(?:指令|任务)[^。]{0,10}(?:无法|不能)"
    r"|(?:GPT[^。]{0,6}模型)?(?:无法|不能)[^。]{0,16}(?:执行|完成|产生))"
)
TURNS_HELPFUL = re.compile(r"但|不过|然而|以下|如果|例如|However|but I can", re.I)
# Where the user asks for a text, "sorry, I cannot" may be that text.
ASKS_FOR_TEXT = re.compile(
    r"(?i)翻译|译成|译为|改写|重写|改为|造句|道歉|拒绝|扮演|模拟|台词|写[一封个出篇首]|续写|对话|translate|rewrite|write"
)
ASKS_FOR_ENGLISH = re.compile(
    r"(?i)[英法德俄意][文语語]|译[英成为]|[英中]译|翻[英中译成]|[中汉]译|双语|雙語|外语|[西葡]班?牙?语|拉丁|翻译|翻譯|english|translat"
)
LATIN_WORD = re.compile(r"(?<![A-Za-z])[a-z]{2,}")
WORD = re.compile(r"[(\"'“‘*]*[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?)\"'”’*]*")
SMALL_WORD = re.compile(
    r"\b(?:the|an?|is|are|was|of|to|and|in|for|that|it|you|your|with|on|at|as|be|from|by)\b"
)
# Where a sign or a drawing was asked for, it is an answer.
ASKS_FOR_SIGNS = re.compile(
    r"(?i)符号|标点|运算符|括号|引号|注释|分隔|打印|输出|代码|画|图案|图形|表情|字符|按键|print|output|draw|symbol|ascii|emoji"
)
MORSE = re.compile(r"(?=.*[.·])(?=.*[-—])[.·—\-/|\s]+", re.S)
# A text that stops at a comma, an open bracket, "3.", "4. 工作：" or "以下几种：" was cut off at some limit.
UNFINISHED = re.compile(
    r"(?:[，、]|[（(《“「【]|\n\s*(?:\d{1,2}[.、]|[-*•]|#+)|\n\s*\d{1,2}[.、]\s*[^\n]{1,10}[：:]|以下[^\n。]{0,12}[：:])$"
)
ASKS_TO_REPEAT = re.compile(
    r"(?i)重复|遍|次|循环|连续|拼|乘法|口诀|表格|HTML|CSS|SQL|代码|歌|诗|繞|绕口令|二进制|repeat|times|loop|code"
)
COMPRESSIBLE = 0.3  # ordinary Chinese text shrinks to half
REPEATED = 0.85  # share of 30 characters in a row that are there twice; poems with a refrain stay below 0.8
# 谢谢谢谢谢谢谢谢: a piece and seven copies of it
RUN = re.compile(r"(.{1,80}?)\1{7,}", re.S)


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
    for before, message in pairwise(messages):
        text = message["content"].strip()
        if message["role"] != "assistant":
            continue
        if not text:
            return "an empty answer"
        signs = all(unicodedata.category(c)[0] in "PZC" for c in text)
        if signs and not MORSE.fullmatch(text) and not ASKS_FOR_SIGNS.search(before["content"]):
            return "an answer of punctuation only"
        word = text.strip(MARKS).lower()
        if word in NOTHING | {"不适用"} or (text[0] in MARKS and word in VAGUE):
            return "an answer that says there is none"
    return None


def refusal(messages: Messages) -> str | None:
    """Drop where the last answer opens with a refusal and has little more to offer."""
    answer, asked = messages[-1]["content"].strip(), messages[-2]["content"]
    if len(answer) < SHORT and NOT_POSSIBLE.match(answer):
        return "the last answer says that it cannot be done"
    found = REFUSAL.match(answer)
    if not found or (ASKS_FOR_TEXT.search(asked) and not re.search(rf"{MACHINE}|协助|提供", found[0])):
        return None
    rest = answer[found.end() :]
    helpful = len(rest) > (HELPFUL_AFTER_BUT if TURNS_HELPFUL.search(rest) else HELPFUL)
    return None if helpful else "the last answer is a refusal"


def wrong_language(messages: Messages) -> str | None:
    """Drop where a Chinese question has an English (or Japanese) answer and nobody asked for that or brought
    some."""
    asked = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    if language(asked) != "zh" or ASKS_FOR_ENGLISH.search(asked) or LATIN_WORD.search(asked):
        return None
    if any(_is_english_prose(message["content"]) for message in messages if message["role"] == "assistant"):
        return "a Chinese question with an English answer nobody asked for"
    if (
        len(KANA.findall(messages[-1]["content"])) > 20
        and not KANA.search(asked)
        and not re.search("日[文语語本]|动漫", asked)
    ):
        return "a Chinese question with a Japanese answer nobody asked for"
    return None


def _is_english_prose(text: str) -> bool:
    """A sentence: words with hardly anything between them, so no code, formula, address or list of names."""
    words = [word for word in NOT_PROSE.sub(" ", text).split() if re.search(r"[^\W\d]|[=<>{}]", word)]
    plain = [word for word in words if WORD.fullmatch(word)]
    if len(plain) < 4 or len(plain) < 0.85 * len(words) or sum(word[0].islower() for word in plain) < 2:
        return False
    sentence = SMALL_WORD.search(text) or (text.rstrip().endswith(".") and "," not in text)
    return bool(sentence) and language(text) == "en"


def truncated(messages: Messages) -> str | None:
    """Drop where the last answer stops in the middle: on a comma, an open bracket, an empty list item, an
    unclosed code fence, or in the middle of a sentence after many whole ones."""
    answer = messages[-1]["content"].rstrip()
    last = answer[answer.rfind("\n") + 1 :]
    if len(answer) < 60:
        return None
    if (found := UNFINISHED.search(answer)) and (len(last) > 12 or found[0][0] == "\n"):
        return f"the last answer stops at {found[0].strip()!r}"
    if answer.count("```") % 2 and not answer.endswith("```"):
        return "the last answer stops inside a code block"
    ended = max(map(last.rfind, "。！？"))
    if len(answer) > 100 and ended > 0 and not re.search(r"[#@/]|https?:", last[ended:]):
        if last[-1] in "的和与在把被及或但而将":
            return f"the last answer stops at {last[-1]!r}"
        if len(answer) > 150 and "，" in last[ended:] and "\u4e00" <= last[-1] <= "\u9fff":
            return "the last answer stops in the middle of a sentence"
    return None


def repetition(messages: Messages) -> str | None:
    """Drop where most of an answer is one piece of text over and over, and nobody asked for that."""
    for i, message in enumerate(messages):
        text = message["content"]
        if message["role"] != "assistant" or len(text) < 200:
            continue
        raw = text.encode()
        if len(zlib.compress(raw, 1)) > COMPRESSIBLE * len(raw) or ASKS_TO_REPEAT.search(
            messages[i - 1]["content"]
        ):
            continue  # hardly repeats itself, or was told to
        prose = NOT_PROSE.sub(" ", text)
        run = RUN.search(prose)
        if run and re.search(r"\w", run[1]) and len(run[0]) > len(prose) / 2:
            return f"an answer repeats {run[1][:20]!r}"
        prose = re.sub(r"[^\w\s]{4,}", " ", prose)  # rules and boxes are drawn with the same sign
        grams = [prose[start : start + 30] for start in range(len(prose) - 29)]
        times = Counter(grams)
        if len(grams) > 100 and sum(times[gram] > 1 for gram in grams) > REPEATED * len(grams):
            return f"an answer repeats {times.most_common(1)[0][0][:20]!r}"
    return None


DROPS: list[Callable[[Messages], str | None]] = [roles, empty, refusal, wrong_language, truncated, repetition]
