"""Few-shot scoring, and a chat with its cache: for notebooks 05 and 06."""

from tools.pages.drawings.style import Drawn, Say, block, column, path, rect, text

LETTERS, SOLVED = "ABCD", "DACBA"  # SOLVED: the letters of the few-shot examples
# questions: the right letter, and about how probable A, B, C and D are
ASKED = ("C", (0.08, 0.16, 0.62, 0.12)), ("B", (0.1, 0.55, 0.08, 0.24)), ("D", (0.5, 0.06, 0.12, 0.3))


def fewshot(say: Say) -> Drawn:
    top, high, gap, pitch = 148, 42, 8, 112
    left, turn, cell, ask, wide, bars = 40, 134, 38, 266, 136, 442  # a turn: its words, its letter's cell
    edge, foot = left + turn + cell, top + (high + gap) * len(SOLVED) + high
    out = [rect("pale", left - 12, top - 12, edge - left + 24, foot - top + 24, 8)]
    out += block("grey", left, top, turn + cell, high, say("subject"))
    for i, letter in enumerate(SOLVED):
        y = top + (high + gap) * (i + 1)
        out += [*block("mid", left, y, turn, high, say("example", i + 1))]
        out += block("mid", left + turn, y, cell, high, letter, look="b")
    heads = ((left + edge) / 2, "cold b", "once", "kept"), (ask + wide / 2, "hot b", "each", "ask")
    for x, look, *names in (*heads, (bars + 72, "b", "next", "token")):
        out += column(x, 90, 26, look, *map(say, names))
    first = top + 26  # the last question is level with the last example
    out += [path("drop", f"M{edge + 12} {foot - high / 2}h14V{first + high / 2}")]
    for i, (right, chances) in enumerate(ASKED):
        y = first + pitch * i
        floor, guess = y + 54, LETTERS[chances.index(max(chances))]
        out += [path("drop go", f"M{edge + 26} {y + high / 2}H{ask - 3}")]
        out += block("sand", ask, y, wide, high, say("asked", i + 1))
        out += [
            path("drop go", f"M{ask + wide} {y + high / 2}H{bars - 4}"),
            path("line", f"M{bars} {floor}h146"),
        ]
        for j, (letter, chance) in enumerate(zip(LETTERS, chances, strict=True)):
            x, height = bars + 6 + 35 * j, 96 * chance
            bar, look = ("warm", "hot b") if letter == guess else ("grey", "")
            out += [rect(bar, x, floor - height, 28, height, 0), text(x + 14, floor + 23, letter, look)]
        sign, colour = ("m0 10l8 9l16 -19", "cool") if guess == right else ("l20 20m0 -20l-20 20", "drop")
        out += [path(f"{colour} thick", f"M626 {y + 6}{sign}"), text(640, y + 60, say("right", right))]
    out += [text(360, foot + 66, say("more"), "soft"), text(360, foot + 106, say("score"), "b large")]
    return foot + 166, say("desc"), [*out, text(360, foot + 140, say("nothing"))]


def chat_loop(say: Say) -> Drawn:
    left, pitch, cell, high, size, model = 34, 28, 24, 46, 17, 618
    prompt, answer, new = 6, 4, 4
    steps = (
        ("prefill", 0, prompt, ((0, prompt, "prompt", "hot b"),)),
        ("decode", prompt + 2, 1, ((prompt + 2, 1, "until", "hot b"),)),
        (
            "again",
            prompt + answer,
            new,
            ((0, prompt + answer, "kept", "cold b"), (prompt + answer, new, "new", "hot b")),
        ),
    )
    out = []
    for i, (name, kept, read, names) in enumerate(steps):
        y = 136 + 186 * i
        out += [text(left, y - 42, say(name), "left b large")]
        for j in range(size):
            kind = "mid" if j < kept else "warm" if j < kept + read else "empty"
            out += [rect(kind, left + pitch * j, y, cell, high)]
        out += block("pale", model - 68, y - 4, 136, high + 8, say("model"), look="b")
        a, b = left + pitch * kept, left + pitch * (kept + read) - pitch + cell
        out += [path("drop", f"M{a} {y + high + 7}v8H{b}v-8")] * (read > 1)
        low = y + high + (15 if read > 1 else 4)
        out += [path("drop go", f"M{(a + b) / 2:.5g} {low}V{y + high + 24}H{model}V{y + high + 7}")]
        out += [path("drop go", f"M{model} {y - 4}V{y - 22}H{b + pitch - cell / 2}V{y - 3}")]
        for start, count, words, look in names:
            middle = left + pitch * (start + count / 2) - 2
            out += [text(middle, y + high + 50, say(words), look)]
    y = 136 + 186 * 3 - 44
    for i, (kind, words) in enumerate((("mid", "cache"), ("warm", "now"), ("empty", "later"))):
        out += [rect(kind, 60 + 226 * i, y - 20, cell, 26), text(96 + 226 * i, y, say(words), "left")]
    return y + 34, say("desc"), out
