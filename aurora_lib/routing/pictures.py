"""Pictures of routing: loads, groups of texts, and a film of what changes."""

import io
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import PIL.Image
import torch
from IPython.display import Image
from torch import Tensor

from aurora_lib.routing.statistics import by_text, chosen, interval
from aurora_lib.routing.tracing import RoutingTrace

MANY = 16  # experts that a picture has room for, each with its number


def plot_load(load: Tensor) -> plt.Axes:
    """Heat map of `expert_load(trace)`, layer by expert, in percent; for many experts by colour alone."""
    layers, experts = load.shape
    ax = plt.subplots(figsize=(1.5 + 0.6 * min(experts, MANY), 1.2 + 0.35 * layers), layout="constrained")[1]
    image = ax.imshow(load.numpy(), aspect="auto", cmap="viridis", vmin=0)
    middle = image.get_clim()[1] / 2
    for layer, shares in enumerate(load.tolist()):
        for expert, share in enumerate(shares if experts <= MANY else ()):
            ink = "white" if share < middle else "black"
            ax.text(expert, layer, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
    ax.set(xlabel="expert", ylabel="layer", yticks=range(layers))
    ax.set_xticks(range(0, experts, -(-experts // MANY)))
    if experts > MANY:
        ax.figure.colorbar(image, label="share of slots", format=lambda share, _: f"{share:.1%}")
    ax.set_title(f"Expert load (% of token slots; balanced = {100 / experts:.1f})", fontsize=10)
    return ax


def plot_groups(trace: RoutingTrace, labels: Sequence[str], layers: Sequence[int]) -> plt.Figure:
    """Load of each group of texts (labels: one per text), with 95 % intervals; a panel per layer (from 0)."""
    loads, groups = by_text(trace, chosen(trace)) / trace.experts.shape[-1], list(dict.fromkeys(labels))
    experts, width = trace.logits.shape[-1], 0.8 / len(groups)
    size, layout = (7 if experts <= MANY else 12, 1 + 1.6 * len(layers)), dict(layout="constrained")
    figure, axes = plt.subplots(len(layers), 1, figsize=size, sharex=True, squeeze=False, **layout)
    for g, group in enumerate(groups):
        own = torch.tensor([label == group for label in labels])
        shares, places = 100 * interval(loads[own]), torch.arange(experts) + (g + 0.5) * width - 0.4
        for ax, layer in zip(axes[:, 0], layers, strict=True):
            share, low, high = shares[:, layer].numpy()
            errors, label = [share - low, high - share], f"{group} ({own.sum()} texts)"
            ax.bar(places.numpy(), share, width, yerr=errors, capsize=2, label=label)
    for ax, layer in zip(axes[:, 0], layers, strict=True):
        ax.axhline(100 / experts, color="grey", linestyle=":", linewidth=1)
        ax.set(ylabel=f"layer {trace.layers[layer]}\n% of slots", ylim=(0, None))
    axes[-1, 0].set(xlabel="expert", xticks=range(0, experts, -(-experts // MANY)))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(groups))
    return figure


def film(figure: plt.Figure, draw: Callable[[float], object], frames: int = 20) -> Image:
    """A film of `figure`: `draw(share)` brings it to that share of the way, from near 0 to 1.

    An animated PNG. It plays once; where pictures do not move, the last frame is shown.
    """
    shots = []
    for frame in range(1, frames + 1):
        draw(frame / frames)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # it stays as it is, and to lay it out anew takes most of the time
        pixels = figure.canvas.get_width_height(), figure.canvas.buffer_rgba().tobytes()
        shots.append(PIL.Image.frombytes("RGBA", *pixels).convert("RGB"))
    plt.close(figure)
    made, palette = io.BytesIO(), shots[-1].quantize(48)
    shots = [shot.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for shot in shots]
    shots[-1].save(made, "png", save_all=True, append_images=shots, default_image=True, duration=160, loop=1)
    return Image(made.getvalue(), format="png", width=figure.canvas.get_width_height()[0])
