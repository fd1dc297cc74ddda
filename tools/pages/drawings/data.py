"""From rows to conversations, and which of their tokens the loss sees: for notebooks 02 and 04."""

from aurora_lib.course import results
from tools.pages.drawings.style import Drawn, Say, block, column, path, rect, text

FILES = "alpaca_zh", "alpaca_gpt4_zh", "sharegpt_zh"


def funnel(say: Say) -> Drawn:
    counted = results.recorded("02", "tiny")
    read, aside = counted["rows read"], counted["rows set aside as no conversation"]
    dropped, refusals = counted["conversations dropped"], counted["refusals dropped"]
    twins = counted["near duplicates dropped"] + counted["exact duplicates dropped"]
    train = counted["conversations"]
    talks, kept = read - aside, read - aside - dropped
    left, full, tall = 30, 660, 50

    def bar(y: float, kind: str, count: int, lost: int, words: str, look: str = "b") -> list[str]:
        wide = full * count / read
        out = block(kind, left, y, wide, tall, words, look=look)
        out[0] = rect(kind, left, y, wide, tall, 0)
        return out + [rect("grey", left + wide, y, full * lost / read, tall, 0)] * bool(lost)

    def loss(y: float, count: int, lost: int, *lines: str) -> list[str]:
        """What falls off the end of a bar."""
        x = left + full * (count + lost / 2) / read
        out = [path("thin go", f"M{x:.5g} {y + tall}V{y + tall + 22}")]
        return out + column(left + full, y + tall + 46, 26, "right soft", *lines)

    out = []
    for i, name in enumerate(FILES):
        out += block("pale", left + 226 * i, 72, 208, 44, name)
        out += [path("line go", f"M{left + 226 * i + 104} 116v24")]
    out += bar(142, "mid", talks, aside, say("read", read))
    out += loss(142, talks, aside, say("aside", aside))
    out += [path("line go", f"M{left + 104} 192v60"), text(left + 120, 230, say("check"), "left b")]
    out += bar(254, "mid", kept, dropped, say("talks", talks))
    out += loss(254, kept, dropped, *say_dropped(say, dropped, twins, refusals))
    out += [path("line go", f"M{left + 104} 304v136"), text(left + 120, 380, say("clean"), "left b")]
    out += bar(442, "mid", kept, 0, say("kept", kept))
    out += [path("line go", f"M{left + 104} 492v42"), text(left + 120, 520, say("split"), "left b")]
    out += bar(536, "warm", train, 0, say("train", train), "b on")
    described = say("desc", read, aside, dropped, twins, kept, train)
    return 640, described, [*out, text(360, 620, say("note"), "soft")]


def say_dropped(say: Say, dropped: int, twins: int, refusals: int) -> list[str]:
    rest = say("other", dropped - twins - refusals)
    return [say("dropped", dropped), say("twins", twins), say("refusals", refusals), rest]


def loss_mask(say: Say) -> Drawn:
    wides, gap, high = {"<s>": 46, "[INST]": 74, "[/INST]": 80, "</s>": 56}, 6, 52
    out, letter = [text(360, 86, say("shift"), "hot")], 0
    for turn, y in ((1, 140), (2, 300)):
        row = [(token, False) for token in [*["<s>"] * (turn == 1), "[INST]", *say(f"q{turn}").split("|")]]
        row += [("[/INST]", False), *((token, True) for token in [*say(f"a{turn}").split("|"), "</s>"])]
        words = [token for token, _ in row if token not in wides]
        if turn == 1:  # this row fills the card
            fixed = sum(wides.get(token, 0) + gap for token, _ in row) - gap
            letter = (660 - fixed) / sum(len(word) + 2.5 for word in words)
        x, ends = 30, []
        for token, lit in row:
            wide = wides.get(token) or letter * (len(token) + 2.5)
            out += block("warm" if lit else "grey", x, y, wide, high, token, look="on b" if lit else "soft")
            middle = x + wide / 2
            if lit:
                a, b, high_up = f"{ends[-1][1]:.5g}", f"{middle:.5g}", y - 34
                out += [path("drop go", f"M{a} {y - 2}C{a} {high_up} {b} {high_up} {b} {y - 2}")]
            ends += [(x, middle, x + wide, lit)]
            x += wide + gap
        for lit, line, name, look in ((False, "thin", "grey", "soft"), (True, "drop", "lit", "hot b")):
            mine = [end for end in ends if end[3] == lit]
            a, b = mine[0][0], mine[-1][2]
            out += [path(line, f"M{a:.5g} {y + high + 8}v8H{b:.5g}v-8")]
            out += [text((a + b) / 2, y + high + 42, say(name), look)]
    return 486, say("desc"), [*out, *column(360, 430, 30, "", say("end"), say("note"))]
