"""Pictures of routing: coloured tokens (HTML, escaped), heat maps, co-activation, languages side by side, baselines."""

import html
import math
import re
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from aurora_lib.routing.counts import LoadIntervals
from aurora_lib.routing.statistics import Coactivation, Statistic, bound
from aurora_lib.routing.tracing import RoutingTrace


def color(expert: int, experts: int) -> str:
    """The CSS background of an expert, light enough for black text."""
    return f"hsl({360 * expert // experts},70%,82%)"


def to_html(trace: RoutingTrace, layer: int = 0) -> str:
    """The text with each token on the colour, and above the number, of its first expert; all text is escaped.

    Byte-fallback pieces are shown as bytes, and name their character when pointed at. `layer` counts the traced
    layers from 0. Raises ValueError for a layer that was not traced.
    """
    if not 0 <= layer < len(trace.layers):
        raise ValueError(f"Layer {layer} was not traced: choose 0 to {len(trace.layers) - 1}.")
    n = trace.logits.shape[-1]
    spans = []
    characters = byte_characters(trace.tokens)
    for i, (token, experts, weights) in enumerate(
        zip(trace.tokens, trace.experts[layer], trace.weights[layer], strict=True)
    ):
        first = int(experts[0])
        tip = ", ".join(f"expert {int(e)}: {float(w):.0%}" for e, w in zip(experts, weights, strict=True))
        if characters[i]:
            tip = f"a byte of {html.escape(characters[i])}; {tip}"
        style = f"background:{color(first, n)};color:#111;padding:1px 2px;margin:1px"
        spans.append(f'<span style="{style}" title="{tip}">{html.escape(token)}<sub>{first}</sub></span>')
    heading = f"layer {trace.layers[layer]}: each token and the number of its first expert"
    return f'<div style="line-height:2"><div><small>{heading}</small></div>{" ".join(spans)}</div>'


def byte_characters(tokens: Sequence[str]) -> list[str]:
    """For every piece like <0xE9> the character that it is a byte of; "" for other pieces and for broken bytes."""
    found, start = [""] * len(tokens), 0
    while start < len(tokens):
        for end in range(min(start + 4, len(tokens)), start, -1):
            pieces = [re.fullmatch("<0x([0-9A-F]{2})>", token) for token in tokens[start:end]]
            if all(pieces):
                text = bytes(int(piece[1], 16) for piece in pieces).decode("utf-8", errors="ignore")
                if len(text) == 1 and text.isprintable() and len(text.encode()) == end - start:
                    found[start:end] = [text] * (end - start)
                    break
        start = end
    return found


def load_to_html(load: Tensor, title: str) -> str:
    """Bars of one layer's load `[experts]` with numbers, the balanced share in the heading; `title` is escaped."""
    experts = len(load)
    most = max(load.max().item(), 1e-9)
    cell = "padding:0 6px;line-height:1.2;text-align"
    rows = "".join(
        f'<tr><td style="{cell}:right">{expert}</td><td style="{cell}:left;width:240px">'
        f'<div style="background:{color(expert, experts)};width:{100 * share / most:.0f}%">&nbsp;</div></td>'
        f'<td style="{cell}:right">{share:.1%}</td></tr>'
        for expert, share in enumerate(load.tolist())
    )
    heading = f"{html.escape(title)}: share of token slots by expert (balanced = {1 / experts:.1%})"
    return f"<div><small>{heading}</small></div><table>{rows}</table>"


def plot_load(load: Tensor, ax=None, title: str = "Expert load"):
    """Heat map of `load(trace)`, layer by expert, each cell in percent; returns the matplotlib axes."""
    import matplotlib.pyplot as plt

    layers, experts = load.shape
    ax = ax or plt.subplots(figsize=(1.5 + 0.6 * experts, 1.2 + 0.35 * layers), layout="constrained")[1]
    image = ax.imshow(load.numpy(), aspect="auto", cmap="viridis", vmin=0)
    middle = image.get_clim()[1] / 2
    for layer in range(layers):
        for expert in range(experts):
            share = float(load[layer, expert])
            ink = "white" if share < middle else "black"
            ax.text(expert, layer, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
    ax.set(xlabel="expert", ylabel="layer", xticks=range(experts), yticks=range(layers))
    ax.set_title(f"{title} (% of token slots; balanced = {100 / experts:.1f})", fontsize=10)
    return ax


def plot_groups(loads: LoadIntervals, layers: Sequence[int] | None = None):
    """Load by expert of each group (zh beside en) with 95 % intervals over texts, a panel per layer; the figure.

    `layers` counts the traced layers from 0; all by default.
    """
    import matplotlib.pyplot as plt

    layers = list(range(len(loads.layers)) if layers is None else layers)
    experts, width = loads.load.shape[-1], 0.8 / len(loads.groups)
    figure, axes = plt.subplots(
        len(layers), 1, figsize=(7, 1 + 1.6 * len(layers)), sharex=True, squeeze=False, layout="constrained"
    )
    for ax, layer in zip(axes[:, 0], layers, strict=True):
        for g, (group, texts) in enumerate(zip(loads.groups, loads.texts, strict=True)):
            share, low, high = (100 * part[g, layer] for part in (loads.load, loads.low, loads.high))
            places = torch.arange(experts) + (g - (len(loads.groups) - 1) / 2) * width
            error = torch.stack([share - low, high - share]).clamp(min=0).numpy()
            ax.bar(places, share, width, yerr=error, capsize=2, label=f"{group} ({texts} texts)")
        ax.axhline(100 / experts, color="grey", linestyle=":", linewidth=1)
        ax.set(ylabel=f"layer {loads.layers[layer]}\n% of slots", ylim=(0, None))
    axes[-1, 0].set(xlabel="expert", xticks=range(experts))
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(loads.groups)
    )
    return figure


def plot_coactivation(found: Coactivation, layer: int = 0, ax=None):
    """Heat map of one layer's pairs of experts, in times what independence gives (log colours); returns the axes.

    A dot marks the pairs outside what re-dealing gives for all pairs of a layer at once; the title says whether the
    layer as a whole is above its baselines, random routers among them if `compare` added them.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    experts = found.pairs.shape[-1]
    ax = ax or plt.subplots(figsize=(1.8 + 0.5 * experts, 1.4 + 0.45 * experts), layout="constrained")[1]
    lift = found.lift[layer]
    image = ax.imshow(lift.clamp(0.25, 4).numpy(), cmap="RdBu_r", norm=LogNorm(0.25, 4))
    outside = (found.pairs < found.low) | (found.pairs > found.high)
    for one, other in permutations(range(experts), 2):
        value = float(lift[one, other])
        text = "–" if math.isnan(value) else f"{value:.1f}{'•' if outside[layer, one, other] else ''}"
        ink = "white" if value < 0.45 or value > 2.2 else "black"
        ax.text(other, one, text, ha="center", va="center", fontsize=7, color=ink)
    bar = ax.figure.colorbar(image, ax=ax, label="times as often as independent picks", format="%g")
    bar.set_ticks([0.25, 0.5, 1, 2, 4])
    bar.minorticks_off()
    ax.set(xlabel="expert", ylabel="expert", xticks=range(experts), yticks=range(experts))
    title = f"Experts that share a token, layer {found.layers[layer]} (• beyond re-dealing)"
    if found.baselines:
        draws = " and ".join(f"{len(each)} {name}" for name, each in found.baselines.items())
        title += f"\nas a whole {'above' if found.above[layer] else 'not above'} what {draws} give"
    ax.set_title(title, fontsize=9)
    return ax


def plot_statistic(found: Statistic, ax=None):
    """The statistic by layer with, for each baseline, its mean and its bound as a band; returns the axes."""
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(6, 3), layout="constrained")[1]
    places = range(len(found.layers))
    for number, (name, draws) in enumerate(found.baselines.items(), 1):
        mean = draws.double().mean(0)
        ax.fill_between(
            places,
            mean,
            bound(draws),
            color=f"C{number}",
            alpha=0.3,
            label=f"{len(draws)} {name}: mean to bound",
        )
        ax.plot(places, bound(draws), color=f"C{number}", linewidth=1)
    error = None
    if found.interval is not None:
        error = (
            torch.stack([found.value - found.interval[0], found.interval[1] - found.value])
            .clamp(min=0)
            .numpy()
        )
    ax.errorbar(places, found.value, yerr=error, fmt="o-", color="C0", capsize=3, label="this model")
    ax.set(xlabel="layer", xticks=list(places), ylim=(0, None), title=found.name)
    ax.set_xticklabels(found.layers)
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax
