"""NF4's levels, LoRA's detour and the memory over one training step: for notebook 03."""

from math import exp
from statistics import NormalDist

from bitsandbytes.functional import get_4bit_type

from aurora_lib.course import paper
from aurora_lib.model import memory
from tools.pages.drawings.style import Drawn, Say, column, path, plus, rect, signed, text

EXAMPLES = (0.63, -0.6, -0.32, 0.29, 1.0)  # weights, divided by the largest; the first is spelled out


def nf4(say: Say) -> Drawn:
    levels = get_4bit_type("nf4", device="cpu").tolist()
    bell, line = 252, 336  # heights: the foot of the curve, the line of levels
    # the median of the largest of 64 normal weights, in standard deviations: what a block is divided by
    largest = NormalDist().inv_cdf((1 + 0.5 ** (1 / 64)) / 2)

    def at(value: float) -> float:
        return round(360 + 318 * value, 1)

    def nearest(weight: float) -> int:
        return min(range(16), key=lambda number: abs(levels[number] - weight))

    curve = (f"L{at(v / 25)} {bell - 142 * exp(-((v / 25 * largest) ** 2) / 2):.1f}" for v in range(-25, 26))
    out = [text(360, 84, say("dots"), "soft"), path("pale", f"M{at(-1)} {bell}{''.join(curve)}V{bell}z")]
    out += [path("thin", "".join(f"M{at(level)} {bell}V{line}" for level in levels))]
    out += [path("line", f"M{at(-1)} {bell}H{at(1)}M{at(-1)} {line}H{at(1)}")]
    for x, y, *names in ((118, 148, "few", "far"), (360, 172, "many", "near"), (602, 148, "few", "far")):
        out += column(x, y, 26, "b", *map(say, names))
    out += [text(at(value), bell - 14, signed(value)) for value in (-1, 0)]
    for weight in EXAMPLES:
        out += [path("drop go", f"M{at(weight)} {bell}L{at(levels[nearest(weight)])} {line - 7}")]
        out += [f'<circle class="warm" cx="{at(weight)}" cy="{bell}" r="6"/>']
        out += [text(at(weight), bell - 14, signed(weight), "hot b")]
    used = {nearest(weight) for weight in EXAMPLES}
    for number, level in enumerate(levels):
        out += [path("line", f"M{at(level)} {line - 6}v12")]
        out += [text(at(level), line + 28, str(number), "hot b" if number in used else "")]
    below = sum(level < 0 for level in levels)
    for name, first, last in (("below", 0, below - 1), ("zero", below, below), ("above", below + 1, 15)):
        left, right = at(levels[first]) - 9, at(levels[last]) + 9
        out += [path("line", f"M{left:.1f} {line + 38}v7H{right:.1f}v-7")]
        out += [text((left + right) / 2, line + 72, say(name, last - first + 1), "b")]
    number = nearest(EXAMPLES[0])
    example = say("example", signed(EXAMPLES[0]), number, f"{number:04b}")
    out += [*column(360, 452, 28, "", say("nearest"), say("number")), text(360, 520, example, "hot b large")]
    return 548, say("desc"), out


def lora(say: Say) -> Drawn:
    side, rank = memory.MIXTRAL_8X7B.hidden_size, int(paper.TRAINING["LoRA rank"].value)
    trained, pixels, times = 2 * side * rank, 220, 10  # W's side as drawn; how much too thick A and B are
    thin = times * pixels * rank / side
    left, top, middle, b, a = 36, 160, 306, 486, 420  # W's corner; columns: x and y, B; A's height
    w, foot, add, lock, low = left + pixels / 2, top + pixels, 124, top + 24, 482
    out = [rect("pale", left, top, pixels, pixels), rect("warm", b - pixels / 2, a, pixels, thin, 0)]
    out += [rect("warm", b - thin / 2, top - 6, thin, pixels, 0)]
    ways = [
        f"M{middle} {low}v-18H{w}V{foot + 3}",
        f"M{w} {top}V{add}H{middle - 18}",
        f"M{middle} {add - 15}v-15",
    ]
    out += [path("line go", way) for way in ways]
    ways = [f"M{middle} {low - 18}H{b}V{a + thin + 3:.1f}", f"M{b} {a - 2}V{foot - 3}"]
    out += [path("drop go", way) for way in [*ways, f"M{b} {top - 8}V{add}H{middle + 18}"]]
    out += [*plus(middle, add), text(middle, low + 26, "x", "big b")]
    out += [text(middle, 86, "y", "big b"), text(middle + 16, 85, "= W x + (alpha / r) B A x", "left")]
    out += [rect("deep", w - 14, lock, 28, 22)]
    out += [path("cool thick", f"M{w - 9} {lock}v-6a9 9 0 0 1 18 0v6")]
    words = f"{side} × {side}", say("count", side**2), say("frozen")
    out += [text(w, top + 84, "W", "big b"), *column(w, top + 120, 32, "cold b", *words)]
    words = say("trained"), say("count", trained), say("share", 100 * trained / side**2)
    out += column((left + pixels + b) / 2, top + 84, 32, "hot b", *words)
    out += [text(b + 18, top + 34, "B", "left big b")]
    words = f"{side} × {rank}", say("zero"), say("nothing"), say("first")
    out += column(b + 18, top + 68, 28, "left", *words)
    out += [text(b + pixels / 2 + 14, a + 13, "A", "left big b")]
    out += column(b + 18, a + 42, 28, "left", f"{rank} × {side}", say("random"))
    return 570, say("desc"), [*out, text(360, 546, say("scale", times), "soft")]


def memory_step(say: Say) -> Drawn:
    config, layers, budget = memory.MIXTRAL_8X7B, 6, memory.predict(memory.MIXTRAL_8X7B)
    inputs = sum(size for name, size in budget.parts.items() if name.endswith("layer inputs"))
    adapter = budget.parts["adapters, gradients, Adam"]
    layer = budget.total - budget.weights - adapter - inputs  # with its gradients: all else at the peak
    left, right, floor = 34, 678, 452  # the axes
    # heights: the weights, cut short; the logits, about; a layer's input, with the rest in proportion
    cut, logits, step, forth, back = 76, 32, 15, 31, 36
    scale = layers * step / inputs
    base = floor - cut - adapter * scale
    full, peak = base - layers * step, base - layers * step - layer * scale

    def tooth(kind: str, x: float, foot: float, width: float, height: float) -> str:
        slopes = f"l{width * 0.65:.1f} {-height:.1f}h{width * 0.15:.1f}l{width * 0.2:.1f} {height:.1f}z"
        return path(kind, f"M{x} {foot:.1f}{slopes}")

    loss = left + 14 + forth * layers
    turn, end = loss + 56, loss + 56 + back * layers
    stair = "".join(f"V{base - held * step:.1f}h{forth}" for held in range(1, layers + 1)) + "h56"
    stair += "".join(f"h{back}V{base - held * step:.1f}" for held in reversed(range(layers)))
    out = [rect("pale", left, floor - cut, right - left, cut, 0)]
    out += [path("mid", f"M{left + 14} {base:.1f}{stair}z")]
    out += [rect("deep", left, base, right - left, adapter * scale, 0)]
    out += [tooth("grey", loss + 8, full, 40, logits)]
    teeth = (
        tooth("sand", turn + back * i + 3, full + step * i, back - 6, layer * scale) for i in range(layers)
    )
    out += [*teeth, path("line go", f"M{left} {floor}V92"), path("line go", f"M{left} {floor}H704")]
    out += [path("cut", f"M{left - 8} {floor - 14}{'l8 -6l8 6' * 42}")]
    out += [path("drop dash", f"M{left} {peak:.1f}H{right}")]
    out += [text(left + 12, peak - 11, say("peak"), "left b hot")]
    out += [text(right, peak - 11, say("total", budget.total), "right b hot")]
    out += [text(360, floor - cut + 36, say("weights", budget.weights), "b")]
    out += [text((loss + turn) / 2, base - 20, say("inputs", inputs), "b")]
    out += [text(loss + 30, full - logits - 10, say("logits"))]
    out += column(end + 12, base - 162, 26, "left hot b", say("layer"), say("again"), say("size", layer))
    out += column(end + 12, base - 68, 26, "left cold b", say("adapter"), say("fp32"), say("size", adapter))
    phases = ("forward", left, loss), ("loss", loss, turn), ("back", turn, end), ("step", end, right)
    for name, start, stop in phases:
        out += [text((start + stop) / 2, floor + 26, say(name), "b"), path("thin", f"M{stop} {floor}v34")]
    out += [text(left, 82, say("memory"), "left"), text(704, floor + 54, say("time"), "right")]
    words = say("note", layers, config.num_hidden_layers), say("sizes", config.num_hidden_layers)
    return floor + 128, say("desc"), out + column(360, floor + 82, 28, "soft", *words)
