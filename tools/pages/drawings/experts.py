"""The router, what Mixtral stores and uses, and what came after it: for notebook 01."""

from math import exp

from transformers import DeepseekV3Config, MixtralConfig, OlmoeConfig

from aurora_lib.model import memory
from tools.pages.drawings.style import Drawn, Say, block, column, path, plus, rect, text

SCORES = (0.5, 0.9, 2.1, 0.3, 1.2, 1.61, 0.4, 0.8)  # a token's, one for each expert
CHOSEN = sorted(sorted(range(len(SCORES)), key=SCORES.__getitem__)[-2:])


def router(say: Say) -> Drawn:
    count, top = memory.MIXTRAL_8X7B.num_local_experts, memory.MIXTRAL_8X7B.num_experts_per_tok
    assert count == len(SCORES) and top == len(CHOSEN)
    total = sum(exp(SCORES[i]) for i in CHOSEN)
    weights = {i: f"{exp(SCORES[i]) / total:.2f}" for i in CHOSEN}
    left, pitch, wide, names = 204, 61, 51, 88  # the columns; where the names of the rows begin
    foot, experts, add, back = 262, 362, 518, 580  # heights
    middle = [left + pitch * i + wide / 2 for i in range(count)]
    first, last = (middle[i] for i in CHOSEN)
    right = left + pitch * (count - 1) + wide
    out = [path("cool thick", "M52 72V632"), path("cool go", "M52 630V648")]
    out += [rect("mid", 36, 78 + 15 * i, 32, 15) for i in range(5)]
    out += [path("line go", f"M68 115H{left - 3}"), text(128, 105, "x", "big b")]
    out += block("pale", left, 86, right - left, 58, say("matrix"), look="b large")
    for i, score in enumerate(SCORES):
        hot, height = i in CHOSEN, 42 * score
        out += [rect("warm" if hot else "grey", middle[i] - 17, foot - height, 34, height)]
        out += [path("thin go", f"M{middle[i]} 144V{foot - height - 3:.5g}")]
        look = "large b on" if hot else "large soft"
        out += block("warm" if hot else "grey", left + pitch * i, experts, wide, 74, str(i), look=look)
    out += [path("line", f"M{left} {foot}H{right}")]
    out += [text(names, foot - 30, say("scores", count), "left")]
    out += column(names, foot + 30, 26, "left", say("soft"), say("top", top))
    out += [path("line", f"M52 {experts - 26}H{last}"), text(middle[0], experts - 35, "x", "b large")]
    for i, side, end in zip(CHOSEN, (1, -1), ("right", "left"), strict=True):
        x = middle[i]
        out += [text(x, foot + 36, weights[i], "hot b large"), path("line go", f"M{x} {experts - 26}v24")]
        out += [path("drop go", f"M{x} {experts + 74}V{add}H{(first + last) / 2 - side * 17:.5g}")]
        out += [text(x - 10 * side, add - 20, f"× {weights[i]}", f"hot b large {end}")]
    out += [text(names, experts + 34, say("experts", count), "left")]
    out += [text(names, experts + 60, say("only", top), "left hot b")]
    x = (first + last) / 2
    out += [path("drop go", f"M{x} {add + 15}V{back}H70"), *plus(x, add), *plus(52, back)]
    out += [text(x - 20, back - 12, "y", "big b right"), text(x - 20, back + 30, say("back"), "right")]
    described = say("desc", count, top, " / ".join(weights.values()))
    return 668, described, [*out, text(74, 646, say("stream"), "left cold b")]


def parameters(experts: int) -> dict[str, float]:
    """Mixtral's parameters in billions, with this many experts in each layer; the small rest left out."""
    config = memory.MIXTRAL_8X7B
    hidden, layers, head = config.hidden_size, config.num_hidden_layers, config.head_dim
    head = head or hidden // config.num_attention_heads
    heads = config.num_attention_heads + config.num_key_value_heads
    sizes = {
        "experts": layers * experts * 3 * hidden * config.intermediate_size,
        "attention": layers * 2 * hidden * head * heads,
        "embedding": 2 * hidden * config.vocab_size,
    }
    return {name: size / 1e9 for name, size in sizes.items()}


def stored(say: Say) -> Drawn:
    count, top = memory.MIXTRAL_8X7B.num_local_experts, memory.MIXTRAL_8X7B.num_experts_per_tok
    unit = 10 if "亿" in say("total", 0) else 1  # Chinese counts in hundreds of millions
    every, one = parameters(count), sum(parameters(1).values())
    wide, tall, up = 308, 340, 138
    scale = tall / sum(every.values())  # pixels of height for a billion
    cell = every["experts"] * scale / (count / 2)
    kinds = ("attention", "mid"), ("embedding", "deep")
    out, totals = [], []
    for x, name, used in ((34, "holds", range(count)), (378, "uses", CHOSEN)):
        sizes = parameters(len(used))
        totals += [unit * sum(sizes.values())]
        hot = name == "uses"
        middle = x + wide / 2
        out += [text(middle, 86, say(name), "b"), text(middle, 122, say("total", totals[-1]), "big b")]
        for i in range(count):
            kind = ("warm" if hot else "pale") if i in used else "empty"
            at = x + i % 2 * wide / 2, up + i // 2 * cell, wide / 2, cell
            out += [rect(kind, *at, 0)]
            look = "large b on" if hot else "large b"
            out += [text(at[0] + wide / 4, at[1] + cell / 2 + 8, str(i), look)] * (i in used)
        y = up + every["experts"] * scale
        for part, kind in kinds:
            out += [rect(kind, x, y, wide, sizes[part] * scale, 0)]
            y += sizes[part] * scale
        rows = ("experts", "warm" if hot else "pale"), *kinds
        for i, (part, kind) in enumerate(rows):
            y = up + tall + 36 + 32 * i
            words = say("experts", len(used)) if part == "experts" else say(part)
            out += [rect(kind, x, y - 17, 20, 20), text(x + 30, y, words, "left")]
            out += [text(x + wide, y, say("part", unit * sizes[part]), "right b")]
    assert len(CHOSEN) == top
    words = say("not", count, round(one), count * round(one)), say("unit")
    described = say("desc", *(f"{total:.1f}" for total in totals), count, top)
    return up + tall + 202, described, [*out, *column(360, up + tall + 150, 28, "", *words)]


def after_2023(say: Say) -> Drawn:
    wide, tall, x, y, names = 440, 110, 34, 120, 496
    mixtral, olmoe, deepseek = MixtralConfig(), OlmoeConfig(), DeepseekV3Config()
    fine, always = deepseek.n_routed_experts, deepseek.n_shared_experts
    models = (  # name, year, experts, how many are chosen, how many are shared; rows of the field
        ("Mixtral-8x7B", 2023, mixtral.num_local_experts, mixtral.num_experts_per_tok, 0, 2),
        ("OLMoE-1B-7B", 2024, olmoe.num_experts, olmoe.num_experts_per_tok, 0, 4),
        ("DeepSeek-V3", 2024, fine, deepseek.num_experts_per_tok, always, 8),
    )
    out, told = [text(360, 84, say("before"), "soft")], []
    for name, year, count, top, shared, rows in models:
        across = count // rows
        cell, high = wide / across, tall / rows
        lit = CHOSEN if count == len(SCORES) else {(29 * i * i + 45 * i + 11) % count for i in range(top)}
        assert len(lit) == top
        for kind in ("grey", "warm"):  # one path a colour keeps the file small
            squares = (i for i in range(count) if (i in lit) == (kind == "warm"))
            corners = ((x + i % across * cell, y + i // across * high) for i in squares)
            size = f"h{cell - 2:.4g}v{high - 2:.4g}h{2 - cell:.4g}z"
            out += [path(kind, "".join(f"M{a:.5g} {b:.5g}{size}" for a, b in corners))]
        chosen = f"{top} + {shared}" if shared else top
        out += [text(names, y + 22, name, "left b large")]
        out += [text(names, y + 54, say("experts", year, count), "left")]
        share = 100 * (top + shared) / (count + shared)
        out += [text(names, y + 84, say("top", chosen, share), "left hot b")]
        told += [say("row", name, top, count)]
        y += tall + 40
    y -= 6
    for i in range(shared):
        right = x + wide - 26 - i * 30
        out += [f'<circle class="cool" cx="{right + cell / 2 - 1}" cy="{y + high / 2 - 1}" r="18"/>']
        out += [rect("deep", right, y, cell - 2, high - 2, 0)]
    out += column(names, y, 27, "left cold b", say("shared", shared), say("always"))
    words = say("fine"), say("note")
    return y + 124, say("desc", " ".join(told)), [*out, *column(360, y + 72, 28, "", *words)]
