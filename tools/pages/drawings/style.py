"""The one style of all drawings: a card with its own background, a light and a dark palette, large letters.

A drawing is 720 wide; on a phone it is half as wide, so no text is smaller than 20. Colours are classes only.
"""

from collections.abc import Callable
from html import escape

Say = Callable[..., str]  # takes the name of a label and what fills its gaps
Drawn = tuple[int, str, list[str]]  # height, what is seen in words, elements

WIDTH = 720
PALETTE = {  # role: on a light page, on a dark one
    "card": ("#ffffff", "#161b22"),
    "edge": ("#d0d7de", "#3d444d"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#4d5560", "#b1bac4"),
    "hot": ("#953800", "#ffb27a"),
    "cold": ("#174a85", "#92c5ff"),
    "on": ("#ffffff", "#0d1117"),
    "pale": ("#dfeaf8", "#1a2c45"),
    "mid": ("#9dc0e8", "#2b5282"),
    "deep": ("#1f5597", "#79b8ff"),
    "sand": ("#fde0bd", "#4d2d10"),
    "warm": ("#b54708", "#ff9a4d"),
    "grey": ("#e7ebef", "#2a3038"),
    "dim": ("#8b949e", "#768390"),
}
SHAPES = {  # class: fill, stroke
    "card": ("card", "edge"),
    "pale": ("pale", "cold"),
    "mid": ("mid", "cold"),
    "deep": ("deep", "deep"),
    "sand": ("sand", "hot"),
    "warm": ("warm", "warm"),
    "grey": ("grey", "dim"),
    "empty": ("card", "dim"),
    "option": ("sand", "hot"),
    "plus": ("card", "ink"),
}
LINES = {"line": "ink", "thin": "dim", "drop": "hot", "cool": "cold", "cut": "card"}  # class: stroke
# a text's class, and the fills that it may stand on
STANDS = {
    "ink": ("card", "pale", "mid", "sand", "grey"),
    "soft": ("card", "pale", "sand", "grey"),
    "hot": ("card", "pale", "sand", "grey"),
    "cold": ("card", "pale", "sand", "grey"),
    "on": ("deep", "warm"),
}
SIZES = {"": 20, "large": 22, "big": 28, "head": 26}
FIXED = """text{font-size:20px;text-anchor:middle}.b{font-weight:bold}.left{text-anchor:start}
.right{text-anchor:end}.line,.thin,.drop,.cool,.cut{fill:none;stroke-width:2}.thin{stroke-width:1.5}
.cut{stroke-width:6}.thick{stroke-width:4}.plus{stroke-width:2}.dash,.empty,.option{stroke-dasharray:5 4}"""
FONTS = "Helvetica, Arial, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"
TIPS = ("line", "thin", "drop", "cool")  # lines that may end in an arrow


def colours(palette: int) -> str:
    """The classes' colours, 0 for a light page and 1 for a dark one."""
    role = {name: pair[palette] for name, pair in PALETTE.items()}
    rules = [f"text{{fill:{role['ink']}}}"]
    rules += [f".{name}{{fill:{role[fill]};stroke:{role[edge]}}}" for name, (fill, edge) in SHAPES.items()]
    rules += [f".{name}{{stroke:{role[stroke]}}}" for name, stroke in LINES.items()]
    rules += [f".tip-{name}{{fill:{role[LINES[name]]}}}" for name in TIPS]
    rules += [f"text.{name}{{fill:{role[name]}}}" for name in STANDS if name != "ink"]
    return "".join(rules)


def page(name: str, language: str, title: str, described: str, height: int, parts: list[str]) -> str:
    sizes = "".join(f".{kind}{{font-size:{size}px}}" for kind, size in SIZES.items() if kind)
    heads = "".join(f".go.{line}{{marker-end:url(#{name}-{line})}}" for line in TIPS)
    start = f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"
role="img" aria-labelledby="{name}-title {name}-desc" lang="{language}" font-family="{FONTS}">
<title id="{name}-title">{escape(title)}</title>
<desc id="{name}-desc">{escape(described)}</desc>
<style>{FIXED}{sizes}.head{{font-weight:bold}}{heads}
{colours(0)}
@media (prefers-color-scheme:dark){{{colours(1)}}}</style>"""
    used = [line for line in TIPS if any(f'"{line} ' in part and " go" in part for part in parts)]
    tips = [
        f'<marker id="{name}-{line}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="12" markerHeight="12"'
        f' markerUnits="userSpaceOnUse" orient="auto"><path class="tip-{line}" d="M0 0L10 5L0 10z"/></marker>'
        for line in used
    ]
    card = rect("card", 1, 1, WIDTH - 2, height - 2, 14)
    whole = [start, *tips, card, text(WIDTH / 2, 45, title, "head"), *parts, "</svg>\n"]
    return "\n".join(whole).replace(' class=""', "")


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """`kind`: a size, a colour, `b` for bold, and `left` or `right` where x is not the middle."""
    return f'<text class="{kind}" x="{x:.5g}" y="{y:.5g}">{escape(words, quote=False)}</text>'


def column(x: float, y: float, gap: float, kind: str, *lines: str) -> list[str]:
    return [text(x, y + gap * i, words, kind) for i, words in enumerate(lines)]


def path(kind: str, d: str) -> str:
    return f'<path class="{kind}" d="{d}"/>'


def rect(kind: str, x: float, y: float, width: float, height: float, round: float = 3) -> str:
    size = f'width="{width:.5g}" height="{height:.5g}" rx="{round:.3g}"'
    return f'<rect class="{kind}" x="{x:.5g}" y="{y:.5g}" {size}/>'


def block(
    kind: str, x: float, y: float, width: float, height: float, *lines: str, look: str = "", gap: float = 26
) -> list[str]:
    """A box with its words in the middle."""
    first = y + height / 2 + 7 - gap * (len(lines) - 1) / 2
    return [rect(kind, x, y, width, height, 6), *column(x + width / 2, first, gap, look, *lines)]


def plus(x: float, y: float) -> list[str]:
    """Where two ways are added."""
    circle = f'<circle class="plus" cx="{x:.5g}" cy="{y:.5g}" r="15"/>'
    return [circle, path("line", f"M{x - 8:.5g} {y:.5g}h16m-8 -8v16")]


def signed(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")
