"""The explorer: layers by tokens, and which experts work there. Its front is explorer.js."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import anywidget
import torch
import traitlets
from torch import nn

from aurora_lib.course import html
from aurora_lib.model import batching
from aurora_lib.routing.tracing import trace_many

ROOM = 256  # tokens: a browser draws layers x tokens cells


class Explorer(anywidget.AnyWidget):
    """Which experts work on each token: in JupyterLab of any text, on pages without a kernel of `texts`.

    models: name -> model, the first is what others are compared with. texts: the first is shown first.
    Raises ValueError without a model or a text, and as `grid` does.
    """

    _esm, _css = (Path(__file__).with_suffix(suffix) for suffix in (".js", ".css"))
    data = traitlets.Dict().tag(sync=True)  # the `grid` on show
    texts = traitlets.List().tag(sync=True)
    trouble = traitlets.Unicode().tag(sync=True)

    def __init__(self, models: Mapping[str, nn.Module], tokenizer, texts: Sequence[str]):
        if not models or not texts:
            raise ValueError("There is nothing to explore: pass a model, as {name: model}, and a text.")
        self._models, self._tokenizer = dict(models), tokenizer
        self._examples = {text: grid(models, tokenizer, text) for text in texts}
        super().__init__(data=self._examples[texts[0]], texts=list(texts))
        self.on_msg(lambda _, content, buffers: self.route(content["text"]))

    def route(self, text: str) -> None:
        """Show another text; if it cannot be routed, `trouble` says why and the picture stays."""
        try:
            self.data = self._examples.get(text) or grid(self._models, self._tokenizer, text)
            self.trouble = ""
        except Exception as error:  # the kernel's log is not where a reader looks
            self.trouble = str(error) or type(error).__name__

    def to_html(self) -> str:
        """The examples for a page without a kernel; without scripts and styles it is tables."""
        grids = list(self._examples.values())
        kept = json.dumps(grids).replace("<", "\\u003c")  # no text can end the script that it lies in
        page = f'{"<hr>".join(map(_table, grids))}<script type="application/json">{kept}</script>'
        script = f'<script type="module">{self._esm}\nshowPages();</script>'
        return f'<style>{self._css}</style><div class="aurora-explorer-page">{page}</div>{script}'

    def _repr_mimebundle_(self, **kwargs):
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return data | {"text/plain": "An explorer of routing", "text/html": self.to_html()}, metadata


def grid(models: Mapping[str, nn.Module], tokenizer, text: str) -> dict:
    """What the explorer shows of one text, as plain JSON.

    cells of a model: `[layers][tokens][top_k]` of [expert, weight in percent], strongest first. moved: how
    many slots of the first model have an expert that does not work on the token in this one, as a sentence.
    Raises ValueError for a text that cannot be routed or is too long, and if routed layers or experts differ.
    """
    if (size := len(batching.encode(tokenizer, text))) > ROOM:
        raise ValueError(f"The text has {size} tokens, and the grid has room for {ROOM}: cut it into pieces.")
    traces, made = {name: trace_many(model, tokenizer, [text]) for name, model in models.items()}, []
    (named, first), *_ = traces.items()
    for name, own in traces.items():
        if own.layers != first.layers or own.logits.shape != first.logits.shape:
            raise ValueError(f"{name} has other routed layers or experts than {named}.")
        cells = torch.stack([own.experts, (100 * own.weights.double()).round(decimals=2)], -1)
        lost = (first.experts[..., None] != own.experts[..., None, :]).all(-1)
        moved = f"{lost.sum()} of {lost.numel()} slots moved from {named} to {name}."
        made.append({"name": name, "cells": cells.tolist(), "moved": moved})
    tokens = {"tokens": [html.visible(token) for token in first.tokens], "runs": runs(first.tokens)}
    colors = {"layers": first.layers, "styles": styles(first.logits.shape[-1])}
    return {"text": text, "models": made} | tokens | colors


def runs(tokens: Iterable[str]) -> list[tuple[str, int]]:
    """Runs of pieces that make whole characters: (these, or "" where no bytes make one; how many)."""
    pieces = [batching.raw_bytes(token) if "<0x" in token else b"\0" for token in tokens]
    raw, how = b"".join(pieces), ("utf-8", "surrogateescape")
    whole = accumulate(len(character.encode(*how)) for character in raw.decode(*how))
    found, ends = [], list(accumulate(map(len, pieces)))
    for start, end in pairwise([0, *sorted(set(whole).intersection(ends))]):
        shown, size = raw[start:end].decode(*how).strip(" \0"), sum(start < one <= end for one in ends)
        found.append((shown if shown.isprintable() else ascii(shown)[1:-1] * (size > 1), size))
    return found


def styles(experts: int) -> list[str]:
    """CSS of each expert's ink and paper, on light pages and on dark ones (WCAG AA)."""
    rule = "color:light-dark(#000,#fff);background:light-dark(hsl({0} 75% {1}%),hsl({0} 60% {2}%))"
    shades = (86, 20), (74, 29)  # in turn: neighbours of 64 hues look alike
    return [rule.format(360 * expert // experts, *shades[expert % 2]) for expert in range(experts)]


def _table(data: dict) -> str:
    """One text where no script runs and no style holds, as on GitHub: a row per layer and model."""
    first, *others = data["models"]
    bytes_of = "".join(f'<th colspan="{n}">{html.escaped(shown or " ")}</th>' for shown, n in data["runs"])
    tokens = "".join(f"<th>{html.escaped(token)}</th>" for token in data["tokens"])
    rows = f"<tr><th>bytes of</th>{bytes_of}<tr><th>token</th>{tokens}"
    for i, layer in enumerate(data["layers"]):
        for model in data["models"]:
            rows += f"<tr><th>layer {layer}, {html.escaped(model['name'])}</th>"
            for before, cell in zip(first["cells"][i], model["cells"][i], strict=True):
                sign = "≠<br>" * (dict(before).keys() != dict(cell).keys())
                rows += f"<td>{sign}{'<br>'.join(f'{e:.0f}:&nbsp;{w:.0f}%' for e, w in cell)}</td>"
    said = "Expert: weight. ≠: other experts than the first model's. " + " ".join(m["moved"] for m in others)
    return f"<p>{html.escaped(data['text'])}</p><p>{html.escaped(said)}</p><table>{rows}</table>"
