"""The routing explorer: type Chinese or English, pick a layer and a model, see which expert gets which token."""

import html
from collections.abc import Mapping

from torch import nn

from aurora_lib import routing

TEXT = "法国的首都是巴黎。 The capital of France is Paris."


def to_html(models: Mapping[str, nn.Module], tokenizer, text: str = TEXT, layer: int = 0) -> str:
    """What the widget shows, for every model and without a kernel: tokens and loads, escaped, for committed notebooks.

    models: name -> model, the first is what the others are compared with. `layer` counts the routed layers from 0.
    Raises ValueError as `routing.trace` does, and for a layer that does not exist.
    """
    traces = {name: routing.trace(model, tokenizer, text) for name, model in models.items()}
    return "".join(
        f"<h4>{html.escape(name)}</h4><div>{routing.to_html(trace, layer)}{_loads(traces, name, layer)}</div>"
        for name, trace in traces.items()
    )


def _loads(traces: Mapping[str, routing.RoutingTrace], name: str, layer: int) -> str:
    """Bars of one model's load, and how many tokens have another first expert than with the first model."""
    trace, (first, other) = traces[name], next(iter(traces.items()))
    bars = routing.load_to_html(routing.load(trace)[layer], f"{name}, layer {trace.layers[layer]}")
    if name == first:
        return bars
    changed = int((trace.experts[layer, :, 0] != other.experts[layer, :, 0]).sum())
    said = f"{changed} of {len(trace.tokens)} tokens have another first expert than with {first}."
    return f"{bars}<p>{html.escape(said)}</p>"


def widget(models: Mapping[str, nn.Module], tokenizer, text: str = TEXT):
    """A box for JupyterLab: type and press Enter, or Tab to layer and model; what went wrong is said in a sentence.

    models: name -> model, such as base, tuned and random; all with the same routed layers, counted from 0. The tuned model can stand
    for its base as well, without a second copy of the weights: `routing.WithoutAdapter(tuned)`.
    """
    import ipywidgets

    if not models:
        raise ValueError("There is no model to explore: pass at least one, as {name: model}.")
    names = list(models)
    entry = ipywidgets.Text(value=text, description="Text", continuous_update=False, layout={"width": "70%"})
    run = ipywidgets.Button(description="Route")
    # a number box, as JupyterLab takes the arrow keys away from drop-down lists
    last = len(routing.routers(models[names[0]])) - 1
    layer = ipywidgets.BoundedIntText(
        value=0, min=0, max=last, description="Layer", layout={"width": "160px"}
    )
    model = ipywidgets.ToggleButtons(options=names, description="Model")
    tokens, loads, note = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
    parts = dict(entry=entry, layer=layer, model=model, tokens=tokens, loads=loads, note=note)
    for name, part in parts.items():
        part.add_class(f"routing-{name}")
    traces: dict[str, routing.RoutingTrace] = {}  # of the text that is shown, by model
    routed = [text]

    def show(text: str) -> None:
        """Route `text` where that has not been done yet; what cannot be routed leaves the picture as it is."""
        try:
            known = traces if text == routed[0] else {}
            for name in dict.fromkeys([names[0], model.value]):
                if name not in known:
                    known[name] = routing.trace(models[name], tokenizer, text)
            tokens.value = routing.to_html(known[model.value], layer.value)
            loads.value = _loads(
                {name: known[name] for name in (names[0], model.value)}, model.value, layer.value
            )
        except Exception as error:  # the kernel's log is not where a reader looks
            note.value = f'<span role="alert" style="color:#a00">{html.escape(str(error))}</span>'
            return
        note.value = ""
        if known is not traces:
            traces.clear()
            traces.update(known)
        routed[0] = text

    run.on_click(lambda _: show(entry.value))
    for part in (layer, model):
        part.observe(lambda _: show(routed[0]), names="value")
    # A submit event would overtake what was typed last; the value itself is sent by Enter and by leaving the box.
    entry.observe(lambda change: show(change["new"]), names="value")
    show(text)
    return ipywidgets.VBox([ipywidgets.HBox([entry, run]), layer, model, note, tokens, loads])
