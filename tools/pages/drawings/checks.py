"""What could be wrong with a drawing, found without a browser: letters, colours, ids, where texts lie.

The widths of letters are rough, and rather too large than too small: fonts differ from machine to machine.
"""

from itertools import combinations
from xml.etree import ElementTree

from tools.pages.drawings import style

NARROW, BROAD = set(" !'(),.:;I[]fijlrt|/"), set("@MWmw%—→")
Box = tuple[float, float, float, float]  # left, top, right, bottom


def contrasts() -> dict[tuple[str, str, int], float]:
    """The contrast of each text colour on each fill that it may stand on, in both palettes."""

    def light(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    found = {}
    for words, fills in style.STANDS.items():
        for fill in fills:
            for i in (0, 1):
                dark, bright = sorted(light(style.PALETTE[name][i]) for name in (words, fill))
                found[words, fill, i] = (bright + 0.05) / (dark + 0.05)
    return found


def size(text: ElementTree.Element) -> int:
    kinds = text.get("class", "").split()
    return next((style.SIZES[kind] for kind in kinds if kind in style.SIZES), style.SIZES[""])


def box(text: ElementTree.Element) -> Box:
    """About where the ink is."""
    kinds, x, y, high = text.get("class", "").split(), float(text.get("x")), float(text.get("y")), size(text)
    ems = (1 if c > "\u2e7f" else 0.31 if c in NARROW else 0.9 if c in BROAD else 0.57 for c in text.text)
    wide = high * sum(ems) * (1.06 if "b" in kinds or "head" in kinds else 1)
    left = x if "left" in kinds else x - wide if "right" in kinds else x - wide / 2
    return left, y - 0.78 * high, left + wide, y + 0.2 * high


def apart(one: Box, other: Box) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def ground(x: float, y: float, root: ElementTree.Element) -> str:
    """The class of the last rectangle at this point: what a text stands on."""
    found = ""
    for rect in root.findall(".//{*}rect"):
        left, top, wide, high = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        if left <= x <= left + wide and top <= y <= top + high:
            found = rect.get("class")
    return style.SHAPES[found][0]


def faults(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    out = [f"two ids {name}" for name in {*ids} if ids.count(name) > 1]
    for element in root.iter():
        out += [f"{name} outside the style" for name in ("fill", "stroke", "style") if element.get(name)]
    texts = [(text.text, box(text), text) for text in root.findall(".//{*}text")]
    right, bottom = style.WIDTH - 8, float(root.get("height")) - 8
    for words, (x0, y0, x1, y1), text in texts:
        kinds = {*text.get("class", "").split()}
        if size(text) < 20 or min(x0, y0) < 8 or x1 > right or y1 > bottom:
            out += [f"too small, or too near to the edge: {words}"]
        colour = next((name for name in style.STANDS if name in kinds), "ink")
        if (fill := ground((x0 + x1) / 2, (y0 + y1) / 2, root)) not in style.STANDS[colour]:
            out += [f"{colour} on {fill}: {words}"]
    pairs = combinations(texts, 2)
    return out + [f"{one[0]} over {other[0]}" for one, other in pairs if not apart(one[1], other[1])]
