"""The corpus of cleaning.py: rows in the three released layouts, recombined from sentences, with planted
copies."""

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import orjson

from tools.build.data import DATA, NO_INPUT, REFUSALS

SEED = 20231222
# The three released files: rows, and the mean and deviation of the logarithm of a row's characters, as
# measured on real rows of these kinds (means 114, 222 and 1,564 characters).
LAYOUTS = {
    "alpaca_zh": ("alpaca_data_zh_51k.json", 51_461, 4.45, 0.75),
    "alpaca_gpt4_zh": ("alpaca_gpt4_data_zh.json", 48_818, 5.06, 0.83),
    "sharegpt_zh": ("common_zh_70k.jsonl", 76_399, 6.75, 1.10),
}
ROWS = sum(rows for _, rows, *_ in LAYOUTS.values())
MEGABYTES = 200  # of UTF-8 in all: ShareGPT's lengths are scaled to it
LONGEST = 50_000  # characters
EXACT, NEAR, CHANGED = 0.01, 0.02, 0.02  # planted copies among the rows; characters changed in a near one
# Below this length one changed character is more than CHANGED of them.
SHORTEST_COPIED = round(1 / CHANGED)
# Shares of dirty rows (alpaca_zh, alpaca_gpt4_zh, sharegpt_zh), of the order measured on 53,000 real rows.
DIRT = {
    "no conversation": (0.0005, 0.0005, 0.0005),
    "empty answer": (0.001, 0.001, 0.001),
    "refusal": (0.015, 0.01, 0.037),
    "English answer": (0.003, 0.002, 0.006),
    "entities": (0.01, 0.01, 0.03),
    "invisible": (0.006, 0.006, 0.01),
    "no input": (0.011, 0.007, 0),
    "Chinese keys": (0.0005, 0, 0),
    "cut off": (0.02, 0.125, 0.02),
    "repetition": (0.002, 0.002, 0.002),
    "no last answer": (0, 0, 0.007),
    "traditional": (0, 0, 0.024),
    "English row": (0, 0, 0.01),
}
TRADITIONAL = str.maketrans("国说么动书东车个们会学门问开见长电话", "國說麼動書東車個們會學門問開見長電話")
TAGS = [
    "Natural Science, ",
    "Finance, Business: \n\n",
    "Life, Technology: \n\n",
    "Language, Literature: \n\n",
    "",
]
SENTENCE = re.compile(r"[^。！？!?\n]+[。！？!?]?")
ORDINARY = re.compile(
    r"(?!.*(?:抱歉|对不起|作为|无法|不能|没有能力|输入))[\w ,，、：；“”《》（）()'.-]{4,150}[。！？.!?]"
)
HAN = re.compile(r"[\u4e00-\u9fff]")

Turns = list[list[str]]  # [question, answer] of each round


def identity(source: str, row: int) -> str:
    """The id `sources.read` gives a row of a corpus."""
    return f"{source}:{LAYOUTS[source][0]}[{row}]"


def vocabulary(folder: Path | None = None) -> dict[tuple[str, bool], list[str]]:
    """Ordinary sentences of the JSON rows in `folder` (None: the bundled ones), by language and "is a
    question"."""
    found: dict[tuple[str, bool], dict] = {
        (name, asks): {} for name in ("zh", "en") for asks in (True, False)
    }
    folder = folder or DATA / "rows"
    for file in sorted([*folder.rglob("*.json"), *folder.rglob("*.jsonl")]):
        text = file.read_text(encoding="utf-8", errors="replace")
        for row in (
            json.loads(text) if file.suffix == ".json" else map(json.loads, filter(None, text.split("\n")))
        ):
            for sentence in (s.strip() for string in _strings(row) for s in SENTENCE.findall(string)):
                if ORDINARY.fullmatch(sentence):
                    found["zh" if HAN.search(sentence) else "en", sentence[-1] in "?？"][sentence] = None
    return {key: list(sentences) for key, sentences in found.items()}


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def endless(sentences: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Random sentences without end: those given or, where these are few, new ones of scraps of them.

    With a few hundred sentences, long rows would share a great part of their text; real ones do not.
    """
    whole = len(sentences) >= 5_000
    glue = "" if HAN.search(sentences[0]) else " "
    scraps, last = (sentences, "") if whole else (_scraps(sentences), sentences[0][-1])
    while True:
        each = np.ones(20_000, int) if whole else rng.integers(3, 8, size=20_000)
        chosen = iter(rng.integers(len(scraps), size=each.sum()).tolist())
        ends = np.where(rng.random(20_000) < 0.12, last + "\n", last + glue).tolist()
        for count, end in zip(each.tolist(), ends, strict=True):
            yield glue.join([scraps[i] for i in islice(chosen, count)]) + end


def _scraps(sentences: list[str]) -> list[str]:
    """Two to four Han characters in a row, as in these sentences, some with a comma; or their English
    words."""
    if not HAN.search(sentences[0]):
        return sorted({word for sentence in sentences for word in sentence[:-1].split()})
    parts = [part for sentence in sentences for part in re.findall(r"[\u4e00-\u9fff]{2,}", sentence)]
    found = sorted({part[i : i + n] for part in parts for n in (2, 3, 4) for i in range(len(part) - n + 1)})
    return found + [scrap + "，" for scrap in found[::4]]


class Corpus:
    """Rows of the three layouts, and what was planted among them; the same for the same arguments."""

    def __init__(self, rows: int = ROWS, rows_from: Path | None = None, megabytes: float = MEGABYTES):
        self.rng = np.random.default_rng(SEED)
        bundled, sentences = vocabulary(), vocabulary(rows_from)
        sentences = {key: found or bundled[key] for key, found in sentences.items()}
        self.text = {key: endless(found, self.rng) for key, found in sentences.items()}
        self.layouts = {
            name: (file, round(n * rows / ROWS), mean, deviation)
            for name, (file, n, mean, deviation) in LAYOUTS.items()
        }
        file, n, mean, deviation = self.layouts["sharegpt_zh"]
        n += rows - sum(n for _, n, *_ in self.layouts.values())  # what rounding gained or lost
        self.layouts["sharegpt_zh"] = file, n, mean, deviation
        sample = "".join(islice(self.text["zh", False], 2000))
        self.per_sentence = len(sample) / 2000
        bytes_per_row = {
            name: math.exp(mean + deviation**2 / 2) * len(sample.encode()) / len(sample)
            for name, (_, _, mean, deviation) in LAYOUTS.items()
        }
        size = {name: bytes_per_row[name] * n for name, (_, n, *_) in LAYOUTS.items()}
        rest = megabytes * 1e6 - size["alpaca_zh"] - size["alpaca_gpt4_zh"]
        self.scale = {"sharegpt_zh": max(rest, 0.1 * size["sharegpt_zh"]) / size["sharegpt_zh"]}
        self.han = [chr(c) for c in range(0x4E00, 0x9FA6)]
        self.originals: list[tuple[str, int, Turns]] = []  # clean rows waiting to be copied
        self.planted: list[dict] = []

    def write(self, folder: Path) -> None:
        """Write the three files and `planted.jsonl`: `kind`, and `copy` and `original` as [source, row from
        1]."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, (file, *_) in self.layouts.items():
            with (folder / file).open("wb") as out:
                out.write(b"[\n" if file.endswith(".json") else b"")
                for i, row in enumerate(self.rows(name)):
                    if file.endswith(".json"):
                        out.write(b",\n" if i else b"")
                        out.write(orjson.dumps(row, option=orjson.OPT_INDENT_2))
                    else:
                        out.write(orjson.dumps(row) + b"\n")
                out.write(b"\n]\n" if file.endswith(".json") else b"")
        with (folder / "planted.jsonl").open("wb") as out:
            out.writelines(orjson.dumps(pair) + b"\n" for pair in self.planted)

    def rows(self, name: str) -> Iterator[object]:
        """The rows of one layout, one after another; copies are of rows before them, of any layout."""
        _, count, mean, deviation = self.layouts[name]
        rng, column = self.rng, list(LAYOUTS).index(name)
        lengths = np.exp(rng.normal(mean, deviation, count)) * self.scale.get(name, 1)
        sizes = np.clip(lengths, 4, LONGEST) / self.per_sentence
        shares = np.cumsum([share[column] for share in DIRT.values()])
        kinds = np.searchsorted(shares, rng.random(count), side="right").tolist()
        copies = np.zeros(count, dtype=int)
        places = rng.choice(np.arange(count // 20, count), round(count * (EXACT + NEAR)), replace=False)
        copies[places] = 1 + (np.arange(len(places)) >= round(count * EXACT))  # 1: exact, 2: near
        names = [*DIRT, ""]
        for number, (size, kind, copy) in enumerate(
            zip(sizes.tolist(), kinds, copies.tolist(), strict=True), 1
        ):
            if copy and (original := self._original(name)):
                source, at, turns = original
                self.planted.append(
                    {"kind": ("exact", "near")[copy - 1], "copy": [name, number], "original": [source, at]}
                )
                yield self._layout(name, self.altered(turns) if copy == 2 else turns)
                continue
            english = names[kind] == "English row"
            turns = self.conversation(name, min(size, 40) if english else size, "en" if english else "zh")
            if names[kind]:
                yield self.spoilt(name, names[kind], turns)
                continue
            # three times as many as are needed, so that copies are of rows from everywhere
            if (
                rng.random() < 3 * (EXACT + NEAR)
                and sum(len(text) for turn in turns for text in turn) >= SHORTEST_COPIED
            ):
                self.originals.append((name, number, turns))
            yield self._layout(name, turns)

    def conversation(self, name: str, size: float, language: str) -> Turns:
        """About `size` sentences; several rounds in ShareGPT, up to two lines of question elsewhere."""
        asks, says = self.text[language, True], self.text[language, False]
        if name != "sharegpt_zh":
            about = "\n" + next(says).rstrip() if size > 4 and self.rng.random() < 0.38 else ""
            answer = "".join(islice(says, max(1, round(size) - 1 - bool(about)))).rstrip()
            return [[next(asks).rstrip() + about, answer]]
        rounds = min(int(self.rng.geometric(0.25)), max(1, round(size / 2)))
        each = max(1, round(size / rounds) - 1)
        return [[next(asks).rstrip(), "".join(islice(says, each)).rstrip()] for _ in range(rounds)]

    def altered(self, turns: Turns) -> Turns:
        """A copy with CHANGED of its characters replaced by any Han character, deleted, or one put before
        them."""
        texts = [list(text) for turn in turns for text in turn]
        places = [
            (i, at) for i, text in enumerate(texts) for at, character in enumerate(text) if character != "\n"
        ]
        chosen = self.rng.choice(len(places), max(1, round(CHANGED * len(places))), replace=False).tolist()
        han = self.rng.integers(len(self.han), size=len(chosen)).tolist()
        for change, (place, number) in enumerate(zip(chosen, han, strict=True)):
            i, at = places[place]
            texts[i][at] = (self.han[number], "", self.han[number] + texts[i][at])[change % 3]
        texts = ["".join(text) for text in texts]
        return [list(turn) for turn in zip(texts[::2], texts[1::2], strict=True)]

    def spoilt(self, name: str, kind: str, turns: Turns) -> object:
        """The row of a conversation after one kind of dirt."""
        last, rng = turns[-1], self.rng
        match kind:
            case "no conversation":
                return (None, 404, turns[0][0], {"note": turns[0][0]})[rng.integers(4)]
            case "empty answer":
                last[1] = ("", "。。。", " \n")[rng.integers(3)]
            case "refusal":
                last[1] = REFUSALS[rng.integers(len(REFUSALS))]
            case "English answer":
                last[1] = " ".join(text.rstrip() for text in islice(self.text["en", False], 4))
            case "entities":
                last[1] += "\n&lt;p class=&quot;a&quot;&gt;" + next(self.text["zh", False]) + "&lt;/p&gt;"
            case "invisible":
                last[1] = last[1][:3] + "\u200b" + last[1][3:] + "\ufeff"
            case "no input":
                last[0] = last[0].partition("\n")[0] + "\n" + NO_INPUT[rng.integers(len(NO_INPUT))]
            case "cut off":
                last[1] = last[1][: -int(rng.integers(2, 6))] or last[1]
            case "repetition":
                last[1] += next(self.text["zh", False]) * 40
            case "traditional":
                turns = [[text.translate(TRADITIONAL) for text in turn] for turn in turns]
        row = self._layout(name, turns)
        if kind == "Chinese keys":
            return dict(zip(("指示", "输入", "输出"), row.values(), strict=True))
        if kind == "no last answer":
            row["conversation"].append({"human": "谢谢！"})
        return row

    def _original(self, name: str) -> tuple[str, int, Turns] | None:
        """Take a waiting row that the layout can hold: several rounds only in ShareGPT."""
        for _ in range(min(50, len(self.originals))):
            at = int(self.rng.integers(len(self.originals)))
            self.originals[at], self.originals[-1] = self.originals[-1], self.originals[at]
            if name == "sharegpt_zh" or len(self.originals[-1][2]) == 1:
                return self.originals.pop()
        return None

    def _layout(self, name: str, turns: Turns) -> dict:
        if name != "sharegpt_zh":
            [[asked, answer]] = turns
            instruction, _, about = asked.partition("\n")
            return {"instruction": instruction, "input": about, "output": answer}
        return {
            "conversation_id": f"{int(self.rng.integers(36**6)):08x}",
            "category": TAGS[self.rng.integers(len(TAGS))],
            "conversation": [{"human": asked, "assistant": answer} for asked, answer in turns],
        }
