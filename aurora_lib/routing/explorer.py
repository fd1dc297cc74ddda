"""The explorer: type Chinese or English, pick a layer and a model, see which expert gets which token."""

import html
from collections.abc import Mapping
from functools import lru_cache

import ipywidgets
from torch import nn

from aurora_lib.routing.pictures import load_to_html, tokens_to_html
from aurora_lib.routing.statistics import expert_load
from aurora_lib.routing.tracing import RoutingTrace, routers, trace

TEXT = "法国的首都是巴黎。 The capital of France is Paris."


def to_html(models: Mapping[str, nn.Module], tokenizer, text: str = TEXT, layer: int = 0) -> str:
    """What the widget shows, for every model and without a kernel: tokens and loads, escaped.

    models: name -> model, the first is what the others are compared with. `layer` counts the routed layers
    from 0. Raises ValueError for a text that cannot be routed and for a layer that does not exist.
    """
    traces = {name: trace(model, tokenizer, text) for name, model in models.items()}
    return "".join(
        f"<h4>{html.escape(name)}</h4><div>{tokens_to_html(own, layer)}{_loads(traces, name, layer)}</div>"
        for name, own in traces.items()
    )


def _loads(traces: Mapping[str, RoutingTrace], name: str, layer: int) -> str:
    """Bars of one model's load, and how many tokens have another first expert than with the first model."""
    own, (first, other) = traces[name], next(iter(traces.items()))
    bars = load_to_html(expert_load(own)[layer], f"{name}, layer {own.layers[layer]}")
    if name == first:
        return bars
    changed = int((own.experts[layer, :, 0] != other.experts[layer, :, 0]).sum())
    said = f"{changed} of {len(own.tokens)} tokens have another first expert than with {first}."
    return f"{bars}<p>{html.escape(said)}</p>"


def widget(models: Mapping[str, nn.Module], tokenizer, text: str = TEXT) -> ipywidgets.VBox:
    """A box for JupyterLab: type and press Enter, or Tab to layer and model; it says what went wrong.

    models: name -> model, such as base, tuned and random; all with the same routed layers. A tuned model can
    stand for its base too: `WithoutAdapter(tuned)`. Raises ValueError without a model.
    """
    if not models:
        raise ValueError("There is no model to explore: pass at least one, as {name: model}.")
    first, *_ = names = list(models)
    entry = ipywidgets.Text(value=text, description="Text", continuous_update=False, layout={"width": "70%"})
    run = ipywidgets.Button(description="Route")
    # a number box, as JupyterLab takes the arrow keys away from drop-down lists
    last, narrow = len(routers(models[first])) - 1, {"width": "160px"}
    layer = ipywidgets.BoundedIntText(value=0, min=0, max=last, description="Layer", layout=narrow)
    model = ipywidgets.ToggleButtons(options=names, description="Model")
    tokens, loads, note = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
    parts = dict(entry=entry, layer=layer, model=model, tokens=tokens, loads=loads, note=note)
    for name, part in parts.items():
        part.add_class(f"routing-{name}")
    shown = [text]  # the last text that could be routed
    route = lru_cache(2 * len(models))(lambda name, text: trace(models[name], tokenizer, text))

    def show(text: str) -> None:
        """Show `text`; what cannot be routed leaves the picture as it is."""
        try:
            traces = {name: route(name, text) for name in (first, model.value)}
            tokens.value = tokens_to_html(traces[model.value], layer.value)
            loads.value = _loads(traces, model.value, layer.value)
            note.value, shown[0] = "", text
        except Exception as error:  # the kernel's log is not where a reader looks
            note.value = f'<span role="alert" style="color:#a00">{html.escape(str(error))}</span>'

    run.on_click(lambda _: show(entry.value))
    for part in (layer, model):
        part.observe(lambda _: show(shown[0]), names="value")
    # a submit event would overtake what was typed last; Enter and leaving the box send the value itself
    entry.observe(lambda change: show(change["new"]), names="value")
    show(text)
    return ipywidgets.VBox([ipywidgets.HBox([entry, run]), layer, model, note, tokens, loads])
