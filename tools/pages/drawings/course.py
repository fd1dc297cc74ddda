"""The map of the course: for notebook 00."""

import re

from aurora_lib.course.scale import ROOT
from tools.pages.drawings import style
from tools.pages.drawings.style import Drawn, Say, rect, text


def titles(chinese: bool) -> list[str]:
    """What the notebooks are called, up to a colon."""
    folder, ending = ("notebooks/zh/text", "md") if chinese else ("notebooks/text", "py")
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).glob(f"0*.{ending}"))]
    return [re.search(r"^(?:# )?# \d\d · ([^:：\n]+)", page, re.MULTILINE)[1] for page in pages]


def path(say: Say) -> Drawn:
    names = titles("课" in say("title"))
    left, wide, gap, tall = 26, 208, 22, 84
    middle = [left + wide / 2 + (wide + gap) * i for i in range(3)]
    rows = {0: 74, 1: 222, 4: 404, 5: 586}

    def notebook(number: int, x: float, y: float, width: float, kind: str, look: str = "b") -> list[str]:
        out = [rect(kind, x - width / 2, y, width, tall, 10)]
        also = f" · {say('optional')}" if kind == "option" else ""
        return [*out, *style.column(x, y + 34, 30, look, f"{number:02}{also}", names[number])]

    def arrow(kind: str, a: float, y: float, b: float, to: float) -> str:
        half = (y + to) / 2
        return style.path(f"{kind} go", f"M{a} {y}V{half}H{b}V{to - 2}" if a != b else f"M{a} {y}V{to - 2}")

    out = notebook(0, 360, rows[0], wide + 40, "pale")
    for i in range(3):
        out += [arrow("line", 360, rows[0] + tall, middle[i], rows[1])]
        out += notebook(1 + i, middle[i], rows[1], wide, "pale")
    for i, words in enumerate(("model", "conversations", "base")):
        out += [arrow("line", middle[i], rows[1] + tall, 360 + 90 * (i - 1), rows[4])]
        out += [text(middle[i] + 12, rows[1] + tall + 30, say(words), "left cold b")]
    out += notebook(4, 360, rows[4], wide + 40, "warm", "b on")
    for i, words in enumerate(("scores", "chat", "pairs")):
        out += [arrow("drop", 360, rows[4] + tall, middle[i], rows[5])]
        out += notebook(5 + i, middle[i], rows[5], wide, "sand" if i < 2 else "option")
        out += [arrow("drop", middle[i], rows[5] + tall, middle[i], rows[5] + tall + 34)]
        out += [text(middle[i], rows[5] + tall + 60, say(words), "hot b")]
    out += [text(372, rows[4] + tall + 30, say("adapter"), "hot left b")]
    told = " ".join(f"{number:02} {name}." for number, name in enumerate(names))
    return rows[5] + tall + 84, say("desc", told), out
