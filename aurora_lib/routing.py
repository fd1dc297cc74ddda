"""What the router chose: traces, load, statistics and pictures (Mixtral paper, arXiv 2401.04088, section 2).

Works on every transformers model whose mixture-of-experts blocks hold `experts` beside a top-k router that
returns (logits, weights, experts): Mixtral, Qwen3-MoE, OLMoE; 4-bit or not, with or without an adapter.
"""

import copy
import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


@dataclass(frozen=True)
class RoutingTrace:
    """The router's choices for one text, on the CPU.

    tokens: pieces as strings; a space is ▁, a byte-fallback piece is <0xE9>.
    experts: int64 `[layers, tokens, top_k]`, strongest first.
    weights: float32, same shape, renormalised: they sum to one for every token.
    scores: float32, same shape: what the block multiplied by (equal to weights where the model renormalises).
    logits: float32 `[layers, tokens, experts]`.
    layers: which decoder layers these are (all of them in Mixtral).
    """

    tokens: list[str]
    experts: Tensor
    weights: Tensor
    scores: Tensor
    logits: Tensor
    layers: list[int]


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """The top-k routers of a model by module name, in order of depth; empty for a dense model."""
    blocks = [(name, dict(module.named_children())) for name, module in model.named_modules()]
    return {
        f"{name}.{child}": module
        for name, children in blocks
        if "experts" in children
        for child, module in children.items()
        if child in ("gate", "router")
    }


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Tensor, Tensor]]]]:
    """Collects (logits, scores, experts), each `[tokens, ...]`, of every forward, by router name.

    The model's output is untouched, and the hooks go when the `with` ends, also by an exception.
    Raises ValueError for a model without routers.
    """
    found = routers(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no top-k router: tracing needs a mixture-of-experts model."
        )
    records = {name: [] for name in found}

    def hook(name):
        def keep(module, inputs, output):
            if not (isinstance(output, tuple) and len(output) == 3):
                raise ValueError(
                    f"{name} does not return (logits, weights, experts), so it cannot be traced."
                )
            records[name].append(tuple(part.detach() for part in output))

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in found.items()]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def trace(model: nn.Module, tokenizer, text: str) -> RoutingTrace:
    """Run `text` through the model once, without dropout, and return what every router chose.

    A `<s>` goes in front where the tokenizer has one and the text does not begin with it, as in training.
    Raises ValueError for an empty text and for a model without routers.
    """
    if not text:
        raise ValueError("The text is empty: there is no token to route. Pass at least one character.")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None and ids[0] != tokenizer.bos_token_id:
        ids = [tokenizer.bos_token_id, *ids]
    was_training = model.training
    model.eval()
    try:
        with recording(model) as records:
            model(input_ids=torch.tensor([ids], device=next(model.parameters()).device), use_cache=False)
    finally:
        model.train(was_training)
    stacked = [torch.stack([calls[0][i].cpu() for calls in records.values()]) for i in range(3)]
    logits, scores, experts = stacked[0].float(), stacked[1].float(), stacked[2].long()
    layers = [int(re.findall(r"\.(\d+)\.", name)[-1]) for name in records]
    weights = scores / scores.sum(-1, keepdim=True)
    return RoutingTrace(tokenizer.convert_ids_to_tokens(ids), experts, weights, scores, logits, layers)


def join(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """Several texts' traces by one model as one, tokens in order, for statistics over all of them."""
    if not traces:
        raise ValueError("There is no trace to join: pass at least one.")
    parts = ("experts", "weights", "scores", "logits")
    joined = {part: torch.cat([getattr(one, part) for one in traces], dim=1) for part in parts}
    return RoutingTrace(tokens=[t for one in traces for t in one.tokens], layers=traces[0].layers, **joined)


def _counts(trace: RoutingTrace) -> Tensor:
    """How often each token uses each expert (0 or 1): float32 `[layers, tokens, experts]`."""
    return torch.zeros_like(trace.logits).scatter_(2, trace.experts, 1.0)


def load(trace: RoutingTrace) -> Tensor:
    """Share of a layer's token slots that each expert serves: `[layers, experts]`, rows sum to one."""
    counts = _counts(trace).sum(1)
    return counts / counts.sum(-1, keepdim=True)


def entropy(load: Tensor) -> Tensor:
    """Entropy of each layer's load in bits: `[layers]`; log2(experts) (3 for eight) if all work equally."""
    return -torch.special.xlogy(load, load).sum(-1) / torch.log(torch.tensor(2.0))


def balance_loss(logits: Tensor, top_k: int, *, per_layer: bool = False) -> Tensor:
    """The load-balancing loss: experts * sum over e of f_e * P_e (Switch Transformer, 2101.03961, eq. 4).

    f_e: share of tokens that chose e among their top_k (so f sums to top_k); P_e: mean probability of e.
    Perfect balance gives top_k, all tokens on the same experts with certainty gives `experts`.

    logits: `[layers, tokens, experts]`. Like transformers, pools the tokens of all layers before multiplying,
    which can hide unbalanced layers; `per_layer=True` gives `[layers]` instead of one number.
    """
    probabilities = logits.float().softmax(-1)
    chosen = torch.zeros_like(probabilities).scatter_(2, probabilities.topk(top_k, dim=-1).indices, 1.0)
    pooled = 1 if per_layer else (0, 1)
    return logits.shape[-1] * (chosen.mean(pooled) * probabilities.mean(pooled)).sum(-1)


def random_router(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose routers are random, at the trained ones' scale: the baseline for claims about routing.

    It shares all other weights with `model`: it costs almost no memory, and is for looking, not training.
    Raises ValueError for a model without routers.
    """
    fresh = {id(p) for router in routers(model).values() for p in router.parameters()}
    if not fresh:
        raise ValueError(f"{type(model).__name__} has no top-k router to make random.")
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in fresh}
    twin = copy.deepcopy(model, shared)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for router in routers(twin).values():
            for p in router.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * p.float().std().cpu())
    return twin


def scripts(tokens: Sequence[str]) -> list[str]:
    """A label per token for `mutual_information`: "zh" (has Han), "en" (a-z), "byte" (<0xE9>) or "other"."""

    def script(token):
        if re.fullmatch("<.+>", token):
            return "byte" if token.startswith("<0x") else "other"
        return "zh" if HAN.search(token) else "en" if re.search("[A-Za-z]", token) else "other"

    return [script(token) for token in tokens]


@dataclass(frozen=True)
class MutualInformation:
    """Bits per layer, each `[layers]`: measured, mean of the shuffled labels, and their 95th percentile."""

    bits: Tensor
    baseline: Tensor
    upper: Tensor


def mutual_information(
    trace: RoutingTrace, labels: Sequence, *, permutations: int = 200, seed: int = 0
) -> MutualInformation:
    """How much the expert of a token slot tells about the token's label, in bits, beside shuffled labels.

    labels: one per token. Even shuffled labels give more than zero on few tokens: only bits above `upper` are
    a finding. Token identity alone carries language, so compare with `random_router` as well.
    Raises ValueError if there are not as many labels as tokens.
    """
    if len(labels) != len(trace.tokens):
        raise ValueError(f"{len(labels)} labels for {len(trace.tokens)} tokens: pass one label per token.")
    kinds = sorted(set(labels))
    one_hot = nn.functional.one_hot(
        torch.tensor([kinds.index(label) for label in labels]), len(kinds)
    ).float()
    counts = _counts(trace)

    def bits(one_hot):
        joint = torch.einsum("tk,lte->lke", one_hot, counts)
        joint = joint / joint.sum((1, 2), keepdim=True)
        cells = entropy(joint.flatten(1))
        return entropy(joint.sum(1)) + entropy(joint.sum(2)) - cells

    generator = torch.Generator().manual_seed(seed)
    shuffled = [bits(one_hot[torch.randperm(len(labels), generator=generator)]) for _ in range(permutations)]
    shuffled = torch.stack(shuffled)
    return MutualInformation(bits(one_hot), shuffled.mean(0), shuffled.quantile(0.95, dim=0))


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
            color = "white" if share < middle else "black"
            ax.text(expert, layer, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)
    ax.set(xlabel="expert", ylabel="layer", xticks=range(experts), yticks=range(layers))
    ax.set_title(f"{title} (% of token slots; balanced = {100 / experts:.1f})", fontsize=10)
    return ax


def to_html(trace: RoutingTrace, layer: int = 0) -> str:
    """The text with each token on the colour, and above the number, of its first expert; all text is escaped.

    `layer` counts the traced layers from 0. Raises ValueError for a layer that was not traced.
    """
    if not 0 <= layer < len(trace.layers):
        raise ValueError(f"Layer {layer} was not traced: choose 0 to {len(trace.layers) - 1}.")
    n = trace.logits.shape[-1]
    spans = []
    for token, experts, weights in zip(trace.tokens, trace.experts[layer], trace.weights[layer], strict=True):
        first = int(experts[0])
        tip = ", ".join(f"expert {int(e)}: {float(w):.0%}" for e, w in zip(experts, weights, strict=True))
        style = f"background:hsl({360 * first // n},70%,82%);color:#111;padding:1px 2px;margin:1px"
        spans.append(f'<span style="{style}" title="{tip}">{html.escape(token)}<sub>{first}</sub></span>')
    heading = f"layer {trace.layers[layer]}: each token and the number of its first expert"
    return f'<div style="line-height:2"><div><small>{heading}</small></div>{"".join(spans)}</div>'
