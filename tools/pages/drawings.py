"""Draw the ideas of notebooks 03 and 05, in English and in Chinese: `python -m tools.pages.drawings`.

Four pictures in `notebooks/images/`: NF4's levels, LoRA's detour, memory over one training step, and
few-shot scoring. The numbers that the first three show are computed; the words are in LABELS.
"""

from collections.abc import Callable
from html import escape
from math import exp
from pathlib import Path
from statistics import NormalDist
from string import Template

from bitsandbytes.functional import get_4bit_type

from aurora_lib.course import paper
from aurora_lib.model import memory

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "images"
LANGUAGES = {"en": ".svg", "zh-CN": ".zh.svg"}
# a white card of its own: the same on a light page and on a dark one
HEAD = Template("""\
<svg xmlns="http://www.w3.org/2000/svg" width="720" height="$height" viewBox="0 0 720 $height" role="img"
lang="$language" font-family="Helvetica, Arial, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC',
sans-serif">
<title>$title</title>
<desc>$desc</desc>
<style>text { font-size: 15px; text-anchor: middle; fill: #1f2328 } .small { font-size: 14px; fill: #57606a }
.head { font-size: 19px } .big { font-size: 22px } .head, .big, .bold { font-weight: bold }
.left { text-anchor: start } .right { text-anchor: end } .hot { fill: #b54708 } .cold { fill: #1f4e87 }
.line, .thin, .drop, .dash { fill: none; stroke: #1f2328; stroke-width: 1.5 } .drop, .dash { stroke: #b54708 }
.thin { stroke: #8b949e; stroke-width: 1 } .dash { stroke-dasharray: 5 4 } .go { marker-end: url(#tip) }
.drop { marker-end: url(#hot) } .cut { fill: none; stroke: #ffffff; stroke-width: 5 }
.pale { fill: #dce8f7; stroke: #1f4e87 } .mid { fill: #8db4e0; stroke: #1f4e87 } .dark { fill: #1f4e87 }
.sand { fill: #fbd9b0; stroke: #b54708 } .warm { fill: #b54708 } .grey { fill: #d8dee4; stroke: #57606a }
</style>
$tips
<rect x="1" y="1" width="718" height="$inner" rx="14" fill="#ffffff" stroke="#d0d7de"/>
<text class="head" x="360" y="38">$title</text>""")
TIP = """<marker id="{}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9"
markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L10 5L0 10z" fill="{}"/></marker>"""
TIPS = "\n".join([TIP.format("tip", "#1f2328"), TIP.format("hot", "#b54708")])

# a label's name | English | Chinese; rows of the same name are one text
LABELS = {
    "nf4": """\
title   | NF4: 16 levels, close together where most weights are  | NF4：16 个量化级，权重多的地方排得密
desc    | A bell curve of weights, each divided by the largest of its block, | 权重的钟形曲线，每个权重都已除以块内
desc    | over a line from -1 to 1. The 16 levels are close together near    | 最大的绝对值。16 个量化级在零附近排得密，
desc    | zero and far apart at the ends: 7 below zero, an exact zero, 8     | 两端排得疏：零以下 7 个，正好为零的 1 个，
desc    | above. Each weight goes to its nearest level, stored in 4 bits.    | 零以上 8 个。每个权重落到最近的一级，编号占 4 位。
dots    | dots: weights, each divided by the absmax of its block              | 圆点：权重，各除以块内最大的绝对值（absmax）
many    | many weights              | 权重多
near    | levels close together     | 量化级排得密
few     | few weights               | 权重少
far     | levels far apart          | 量化级排得疏
below   | {} levels below zero      | 零以下 {} 个
zero    | exact zero                | 正好为零
above   | {} levels above zero      | 零以上 {} 个
stored  | Each weight goes to its nearest level.                 | 每个权重落到最近的量化级，
stored  | Only the number of the level is stored, in 4 bits:     | 只存这一级的编号，占 4 位：
example | {}  →  level {}  →  {}    | {}  →  第 {} 级  →  {}""",
    "lora": """\
title   | LoRA: a frozen matrix and a thin detour                | LoRA：冻结的矩阵，加一条窄窄的旁路
desc    | The input x goes two ways: through the large square W, frozen and  | 输入 x 分两路：一路经过很大的方阵 W，它是冻结的，
desc    | stored in 4 bits, and through the thin matrices A and B, which are | 以 4 位存储；另一路经过很窄的矩阵 A 和 B，
desc    | trained. Both results are added and give y. B starts at zero, so   | 只训练这两个。两路的结果相加得到 y。
desc    | the detour adds nothing at first.                                  | B 从零开始，所以旁路起初什么也不加。
frozen  | frozen, in 4 bits         | 冻结，以 4 位存储
count   | {:,} numbers              | {:,} 个数
trained | trained: A and B          | 只训练 A 和 B
share   | = {:.1f} % of W           | = W 的 {:.1f}%
random  | starts random             | 随机初始化
zero    | starts at zero: at first, | 从零开始：
nothing | the detour adds nothing   | 旁路起初什么也不加
scale   | Drawn to scale, but A and B are {} times too thick.    | 按比例绘制，只有 A 和 B 加粗到 {} 倍，
scale   | Else you could not see them.                           | 否则细得看不见。""",
    "memory_step": """\
title   | Memory over one training step, with gradient checkpointing         | 一步训练中的显存变化（启用梯度检查点）
desc    | Memory over time. Weights, adapter and optimizer stay the same. In | 显存随时间的变化。权重、适配器和优化器不变。
desc    | forward, layer inputs pile up like a stair. In backward, one layer | 前向传播时，各层的输入像台阶一样堆高。反向传播时
desc    | after the other is recomputed, a tooth on top of the stair, while  | 逐层重算，每层在台阶上多出一个尖齿，台阶同时一级级
desc    | the stair goes down. The first tooth, all inputs held, is the peak. | 下降。第一个尖齿就是峰值：所有层的输入，加上一层。
weights | weights: {:.1f} GiB (4 bits; drawn much too low)                   | 权重：{:.1f} GiB（4 位；高度远小于实际比例）
adapter | adapter and               | 适配器和
fp32    | optimizer: {:.2f} GiB     | 优化器：{:.2f} GiB
inputs  | layer inputs: {:.2f} GiB  | 各层的输入：{:.2f} GiB
layer   | one layer recomputed,     | 重算的一层，
again   | and what passes           | 连同路过的：
size    | through: {:.2f} GiB       | {:.2f} GiB
peak    | peak: all layer inputs + one layer                     | 峰值：所有层的输入 + 一层
total   | total: {:.1f} GiB         | 总计：{:.1f} GiB
logits  | logits                    | logits
forward | forward                   | 前向传播
loss    | loss                      | 损失
back    | backward                  | 反向传播
step    | optimizer step            | 优化器更新
memory  | memory                    | 显存
time    | time                      | 时间
note    | Schematic: {0} of {1} layers. Sizes: all {1} layers                | 示意图：{1} 层只画出 {0} 层；数值按全部 {1} 层
note    | of Mixtral-8x7B, 2 × 1024 tokens, predicted.                       | 预测（Mixtral-8x7B，2 × 1024 个词元）。
missing | Not drawn: the memory that a layer needs for a moment in forward.  | 未画出：前向传播时每一层短暂占用的显存。""",
    "fewshot": """\
title   | Few-shot: examples are read once, each question gives four numbers | 少样本（few-shot）：示例只读一次，每题只看四个数
desc    | Left, a stack: the line that names the subject, and five solved    | 左边是一叠方块：写明科目的一行和五个做好的示例，
desc    | examples, each with its letter. It is read once; its keys and      | 每个示例都带答案字母。它们只读一次，
desc    | values are kept. Questions branch off from its end. After each,    | 键和值都保留下来。许多题目从末尾分出去。
desc    | four bars: how probable A, B, C and D are as the next token. The   | 每题之后有四根柱子：下一个词元是 A、B、C、D 的概率。
desc    | tallest is the prediction. Of three, two are right, one is wrong.  | 最高的就是预测。图中三题，两题对，一题错。
once    | read once: keys and       | 只读一次：键和值
kept    | values are kept (KV cache) | 留着用（KV 缓存）
each    | read for each             | 每道题
ask     | question                  | 接着读
next    | probability of the        | 下一个词元的概率
token   | next token (schematic)    | （示意图）
subject | line with the subject     | 写明科目的一行
solved  | example {}: question,     | 示例 {}：题目、
example | example {}                | 示例 {}
asked   | question {},              | 题目 {}、
options | options A–D,              | 选项 A–D、
answer  | Answer:                   | Answer:
guess   | prediction                | 预测
right   | right: {}                 | 答案：{}
more    | … and many more questions | ……还有许多题
score   | score = right letters / questions | 得分 = 答对的题 / 全部题目
nothing | Nothing is generated.     | 什么也不生成。""",
}
EXAMPLES = (0.63, -0.6, -0.32, 0.29, 1.0)  # weights, divided by the largest; the first is spelled out
LETTERS, SOLVED = "ABCD", "DACBA"  # SOLVED: the letters of the few-shot examples
# questions: the right letter, and about how probable A, B, C and D are
ASKED = ("C", (0.08, 0.16, 0.62, 0.12)), ("B", (0.1, 0.55, 0.08, 0.24)), ("D", (0.5, 0.06, 0.12, 0.3))
Say = Callable[..., str]  # takes the name of a label and what fills its gaps
Drawn = tuple[int, list[str]]  # height, elements


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.5g}" y="{y:.5g}">{escape(words, quote=False)}</text>'


def column(x: float, y: float, gap: int, kind: str, *lines: str) -> list[str]:
    return [text(x, y + gap * i, words, kind) for i, words in enumerate(lines)]


def path(kind: str, d: str) -> str:
    return f'<path class="{kind}" d="{d}"/>'


def rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.5g}" y="{y:.5g}" width="{width:.5g}" height="{height:.5g}"/>'


def signed(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def nf4(say: Say) -> Drawn:
    levels = get_4bit_type("nf4", device="cpu").tolist()
    bell, line = 212, 292  # heights: the foot of the curve, the line of levels
    # the median of the largest of 64 normal weights, in standard deviations: what a block is divided by
    largest = NormalDist().inv_cdf((1 + 0.5 ** (1 / 64)) / 2)

    def at(value: float) -> float:
        return round(360 + 310 * value, 1)

    def nearest(weight: float) -> int:
        return min(range(16), key=lambda number: abs(levels[number] - weight))

    curve = (f"L{at(v / 25)} {bell - 124 * exp(-((v / 25 * largest) ** 2) / 2):.1f}" for v in range(-25, 26))
    out = [text(360, 64, say("dots"), "small"), path("pale", f"M{at(-1)} {bell}{''.join(curve)}V{bell}z")]
    out += [path("thin", "".join(f"M{at(level)} {bell}V{line}" for level in levels))]
    out += [path("line", f"M{at(-1)} {bell}H{at(1)}M{at(-1)} {line}H{at(1)}")]
    for x, y, *names in ((122, 128, "few", "far"), (360, 146, "many", "near"), (598, 128, "few", "far")):
        out += column(x, y, 20, "bold", *map(say, names))
    out += [text(x, y + 5, signed(v), "") for v, x in ((-1, 30), (1, 690)) for y in (bell, line)]
    for weight in EXAMPLES:
        out += [path("drop", f"M{at(weight)} {bell}L{at(levels[nearest(weight)])} {line - 7}")]
        out += [f'<circle class="warm" cx="{at(weight)}" cy="{bell}" r="5"/>']
        out += [text(at(weight), bell - 12, signed(weight), "hot bold")]
    used = {nearest(weight) for weight in EXAMPLES}
    for number, level in enumerate(levels):
        out += [path("line", f"M{at(level)} {line - 5}v10")]
        out += [text(at(level), line + 24, str(number), "hot bold" if number in used else "")]
    below = sum(level < 0 for level in levels)
    for name, first, last in (("below", 0, below - 1), ("zero", below, below), ("above", below + 1, 15)):
        left, right = at(levels[first]) - 8, at(levels[last]) + 8
        out += [path("line", f"M{left:.1f} {line + 33}v6H{right:.1f}v-6")]
        out += [text((left + right) / 2, line + 60, say(name, last - first + 1), "bold")]
    number = nearest(EXAMPLES[0])
    example = say("example", signed(EXAMPLES[0]), number, f"{number:04b}")
    return 444, [*out, text(360, 392, say("stored"), ""), text(360, 420, example, "hot bold")]


def lora(say: Say) -> Drawn:
    side, rank = memory.MIXTRAL_8X7B.hidden_size, int(paper.TRAINING["LoRA rank"].value)
    trained, pixels, times = 2 * side * rank, 210, 10  # W's side as drawn; how much too thick A and B are
    thin = times * pixels * rank / side
    left, top, middle, b, a = 44, 142, 320, 491, 388  # W's corner; columns: x and y, B; A's height
    w, foot, plus, lock = left + pixels / 2, top + pixels, 108, top + 28
    out = [rect("pale", left, top, pixels, pixels), rect("warm", b - pixels / 2, a, pixels, thin)]
    out += [rect("warm", b - thin / 2, top - 6, thin, pixels)]
    ways = [f"M{middle} 430V418H{w}V{foot + 3}", f"M{middle} 430V418H{b}V{a + thin + 3:.1f}"]
    ways += [f"M{b} {a - 2}V{foot - 3}", f"M{w} {top}V{plus}H{middle - 15}", f"M{middle} {plus - 13}V85"]
    out += [path("line go", way) for way in [*ways, f"M{b} {top - 8}V{plus}H{middle + 15}"]]
    out += [f'<circle class="line" cx="{middle}" cy="{plus}" r="13"/>']
    out += [path("line", f"M{middle - 7} {plus}h14m-7 -7v14"), text(middle, 452, "x", "big")]
    out += [text(middle, 78, "y", "big"), text(middle + 13, 77, "= W x + (alpha / r) B A x", "left")]
    out += [rect("dark", w - 13, lock, 26, 20)]
    out += [f'<path d="M{w - 8} {lock}v-6a8 8 0 0 1 16 0v6" fill="none" stroke="#1f4e87" stroke-width="4"/>']
    words = f"{side} × {side}", say("count", side**2), say("frozen")
    out += [text(w, top + 90, "W", "big"), *column(w, top + 118, 28, "cold bold", *words)]
    words = say("trained"), say("count", trained), say("share", 100 * trained / side**2)
    out += column((left + pixels + b) / 2, top + 96, 25, "hot bold", *words)
    out += [text(b + 16, top + 60, "B", "left big")]
    out += column(b + 16, top + 85, 25, "left", f"{side} × {rank}", say("zero"), say("nothing"))
    out += [text(b + pixels / 2 + 14, a + 8, "A", "left big"), text(b + 16, a + 26, say("random"), "left")]
    out += [text(b + pixels / 2 + 36, a + 7, f"{rank} × {side}", "left")]
    return 496, [*out, text(360, 478, say("scale", times), "small")]


def memory_step(say: Say) -> Drawn:
    config, layers, budget = memory.MIXTRAL_8X7B, 6, memory.predict(memory.MIXTRAL_8X7B)
    inputs = sum(size for name, size in budget.parts.items() if name.endswith("layer inputs"))
    adapter = budget.parts["adapters, gradients, Adam"]
    layer = budget.total - budget.weights - adapter - inputs  # with its gradients: all else at the peak
    left, right, floor = 58, 676, 392  # the axes
    # heights: the weights, cut short; the logits, about; a layer's input, with the rest in proportion
    cut, logits, step = 68, 27, 13
    scale = layers * step / inputs
    base = floor - cut - adapter * scale
    full, peak = base - layers * step, base - layers * step - layer * scale

    def tooth(kind: str, x: float, foot: float, width: float, height: float) -> str:
        slopes = f"l{width * 0.65:.1f} {-height:.1f}h{width * 0.15:.1f}l{width * 0.2:.1f} {height:.1f}z"
        return path(kind, f"M{x} {foot:.1f}{slopes}")

    loss = left + 14 + 32 * layers
    back, end = loss + 46, loss + 46 + 38 * layers
    stair = "".join(f"V{base - held * step:.1f}h32" for held in range(1, layers + 1)) + "h46"
    stair += "".join(f"h38V{base - held * step:.1f}" for held in reversed(range(layers)))
    out = [rect("pale", left, floor - cut, right - left, cut)]
    out += [path("mid", f"M{left + 14} {base:.1f}{stair}z")]
    out += [rect("dark", left, base, right - left, adapter * scale)]
    out += [tooth("grey", loss + 4, full, 38, logits)]
    out += [tooth("sand", back + 38 * i + 3, full + step * i, 32, layer * scale) for i in range(layers)]
    out += [path("line go", f"M{left} {floor}V74"), path("line go", f"M{left} {floor}H702")]
    out += [path("cut", f"M{left - 8} {floor - 14}{'l8 -6l8 6' * 40}")]
    out += [path("dash", f"M{left} {peak:.1f}H{right}")]
    out += [text(left + 12, peak - 9, say("peak"), "left bold hot")]
    out += [text(right, peak - 9, say("total", budget.total), "right bold hot")]
    out += [text(360, floor - cut + 32, say("weights", budget.weights), "bold")]
    out += [text(back, base - 18, say("inputs", inputs), "bold")]
    out += [text(loss + 26, full - logits - 8, say("logits"), "")]
    out += column(end + 10, base - 136, 20, "left hot bold", say("layer"), say("again"), say("size", layer))
    out += column(end + 10, base - 30, 20, "left cold bold", say("adapter"), say("fp32", adapter))
    phases = ("forward", left, loss), ("loss", loss, back), ("back", back, end), ("step", end, right)
    for name, start, stop in phases:
        out += [text((start + stop) / 2, floor + 22, say(name), "bold"), path("thin", f"M{stop} {floor}v28")]
    out += [text(left, 66, say("memory"), ""), text(712, floor + 22, say("time"), "right")]
    words = say("note", layers, config.num_hidden_layers), say("missing")
    return floor + 98, out + column(360, floor + 58, 21, "small", *words)


def fewshot(say: Say) -> Drawn:
    top, tall, low, gap, pitch = 122, 74, 30, 6, 98  # with this pitch the last example and question are level
    left, turn, cell, ask, width, bars = 30, 186, 36, 322, 120, 480  # a turn: its question, its letter's cell
    edge, foot = left + turn + cell, top + low + tall + (gap + low) * (len(SOLVED) - 1)

    def block(kind: str, x: float, y: float, width: float, *lines: str) -> list[str]:
        height = tall if len(lines) > 1 else low
        words = column(x + width / 2, y + height / 2 - 10 * len(lines) + 15, 20, "", *lines)
        return [rect(kind, x, y, width, height), *words]

    out = [rect("pale", left - 10, top - 10, edge - left + 20, foot - top + 20)]
    out += block("grey", left, top, turn, say("subject"))
    y = top + low
    for i, letter in enumerate(SOLVED):
        lines = [say("example", i + 1)] if i else [say("solved", 1), say("options"), say("answer")]
        height = low if i else tall
        out += [*block("mid", left, y, turn, *lines), rect("mid", left + turn, y, cell, height)]
        out += [text(edge - cell / 2, y + height - 10, letter, "bold")]
        y += height + gap
    heads = ((left + edge) / 2, "cold", "once", "kept"), (ask + width / 2, "hot", "each", "ask")
    for x, kind, *names in (*heads, (bars + 112, "", "next", "token")):
        out += column(x, 70, 20, f"{kind} bold", *map(say, names))
    out += [path("drop", f"M{edge + 10} {foot - low // 2}H{ask - 2}")]
    for i, (right, chances) in enumerate(ASKED):
        y = top + pitch * i
        floor, guess = y + 57, LETTERS[chances.index(max(chances))]
        if i:  # from this question's line up to the one before
            out += [path("drop", f"M{ask - 26} {y + tall // 2}v{-pitch}h24")]
        out += block("sand", ask, y, width, say("asked", i + 1), say("options"), say("answer"))
        out += [path("drop", f"M{ask + width} {floor}H{bars - 4}"), path("line", f"M{bars} {floor}h142")]
        for j, (letter, chance) in enumerate(zip(LETTERS, chances, strict=True)):
            x, height = bars + 7 + 34 * j, 80 * chance
            bar, name = ("warm", "hot bold") if letter == guess else ("grey", "")
            out += [rect(bar, x, floor - height, 26, height), text(x + 13, floor + 18, letter, name)]
            if letter == guess and i == 0:
                out += [text(x + 13, floor - height - 7, say("guess"), name)]
        sign, colour = ("m0 8l7 8l13-16", "#1f4e87") if guess == right else ("l16 16m0-16l-16 16", "#b54708")
        out += [f'<path d="M668 {y + 20}{sign}" fill="none" stroke="{colour}" stroke-width="4"/>']
        out += [text(678, y + 62, say("right", right), "")]
    out += [text(ask, foot + 45, say("more"), "left small"), text(360, foot + 86, say("score"), "head")]
    return foot + 138, [*out, text(360, foot + 114, say("nothing"), "bold")]


def labels(table: str, language: int) -> dict[str, str]:
    """The labels of one language, 0 for English and 1 for Chinese, by name."""
    found = {}
    for row in table.splitlines():
        name, *words = (cell.strip() for cell in row.split("|"))
        found[name] = (found.get(name, "") + " " * (language == 0) + words[language]).strip()
    return found


def made() -> dict[Path, str]:
    """The text of every picture, by its path."""
    files = {}
    for draw in (nf4, lora, memory_step, fewshot):
        for i, (language, ending) in enumerate(LANGUAGES.items()):
            words = labels(LABELS[draw.__name__], i)
            height, parts = draw(lambda name, *gaps, words=words: words[name].format(*gaps))
            own = dict(height=height, inner=height - 2, language=language, tips=TIPS)
            head = HEAD.substitute({name: escape(words[name]) for name in ("title", "desc")}, **own)
            drawn = "\n".join([head, *parts, "</svg>\n"])
            files[FOLDER / (draw.__name__ + ending)] = drawn.replace(' class=""', "")
    return files


if __name__ == "__main__":
    for file, content in made().items():
        file.write_text(content, encoding="utf-8", newline="\n")
