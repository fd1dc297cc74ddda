"""Recording what every router chose: one text, many in batches, a generation with a cache, or counts only."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aurora_lib.model.batching import left_pad, padding, ready

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class RoutingTrace:
    """The router's choices for one text or several, on the CPU; padded positions are not in it.

    tokens: pieces as strings; a space is ▁, a byte-fallback piece is <0xE9>.
    experts: int64 `[layers, tokens, top_k]`, strongest first.
    weights: float32, same shape, renormalised: they sum to one for every token.
    scores: float32, same shape: what the block multiplied by (equal to weights where the model renormalises).
    logits: float32 `[layers, tokens, experts]`.
    layers: which decoder layers these are (all of them in Mixtral).
    ids, positions, texts: int64 `[tokens]`: token id, place in its text from 0, and which text (from 0) it is of.
    """

    tokens: list[str]
    experts: Tensor
    weights: Tensor
    scores: Tensor
    logits: Tensor
    layers: list[int]
    ids: Tensor
    positions: Tensor
    texts: Tensor


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


def depth(name: str) -> int:
    """The decoder layer that a router's module name says it is in."""
    return int(re.findall(r"\.(\d+)\.", name)[-1])


@contextmanager
def watching(model: nn.Module, visit: Callable[[str, Tensor, Tensor, Tensor], None]) -> Iterator[list[str]]:
    """Calls `visit(router name, logits, scores, experts)`, each `[tokens, ...]`, at every forward of every router.

    Yields the routers' names. The model's output is untouched, and the hooks go when the `with` ends, also by an
    exception. Raises ValueError for a model without routers.
    """
    found = routers(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no top-k router: tracing needs a mixture-of-experts model."
        )

    def hook(name):
        def keep(module, inputs, output):
            if not (isinstance(output, tuple) and len(output) == 3):
                raise ValueError(
                    f"{name} does not return (logits, weights, experts), so it cannot be traced."
                )
            visit(name, *(part.detach() for part in output))

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in found.items()]
    try:
        yield list(found)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Tensor, Tensor]]]]:
    """Collects (logits, scores, experts), each `[tokens, ...]`, of every forward, by router name.

    Padded positions are in it: it holds what the routers saw. Raises ValueError for a model without routers.
    """
    records = {}
    with watching(model, lambda name, *parts: records[name].append(parts)) as names:
        records |= {name: [] for name in names}
        yield records


def trace(model: nn.Module, tokenizer, text: str) -> RoutingTrace:
    """Run `text` through the model once, without dropout, and return what every router chose.

    A `<s>` goes in front where the tokenizer has one and the text does not begin with it, as in training.
    Raises ValueError for an empty text, one longer than the context, and a model without routers.
    """
    return trace_many(model, tokenizer, [text])[0]


def trace_many(
    model: nn.Module, tokenizer, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS
) -> list[RoutingTrace]:
    """The trace of every text, in their order, run in padded batches of at most `batch_tokens` positions.

    `join` makes one trace of them. Raises ValueError as `trace` does.
    """
    rows = encode(model, tokenizer, texts)
    traces: list[RoutingTrace | None] = [None] * len(rows)
    for batch in batches(rows, batch_tokens):
        inputs, real = padded(model, tokenizer, [rows[i] for i in batch])
        with recording(model) as records:
            read(model, inputs)
        layers = [depth(name) for name in records]
        parts = [torch.stack([calls[0][i][real].cpu() for calls in records.values()]) for i in range(3)]
        split = [part.split([len(rows[i]) for i in batch], dim=1) for part in parts]
        for i, *own in zip(batch, *split, strict=True):
            traces[i] = _trace(tokenizer, rows[i], *own, layers)
    return traces


def trace_generation(
    model: nn.Module, tokenizer, prompts: Sequence[str], *, max_new_tokens: int = 32
) -> list[RoutingTrace]:
    """Traces of the prompts and of the greedy continuations, written in one batch with the key-value cache.

    The tokens of an answer begin behind those of its prompt. A token is routed when it is read, so neither the
    last one written nor an end token is in the trace. Raises ValueError as `trace` does.
    """
    rows = encode(model, tokenizer, prompts)
    with recording(model) as records, ready(model):
        inputs = left_pad(rows, tokenizer, _device(model))
        ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=padding(tokenizer))
        out = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True, **ends
        )
    width = inputs["input_ids"].shape[1]
    # one call for the prompts, then one for each new token: as `[rows, positions, ...]`
    seen = [
        torch.stack(
            [
                torch.cat([c[i].view(len(rows), -1, c[i].shape[-1]).cpu() for c in calls], 1)
                for calls in records.values()
            ]
        )
        for i in range(3)
    ]
    layers, traces = [depth(name) for name in records], []
    for number, (row, said) in enumerate(zip(rows, out[:, width:].tolist(), strict=True)):
        written = said[: said.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in said else said
        ids = row + written[: len(said) - 1]
        first = width - len(row)
        own = [part[:, number, first : first + len(ids)] for part in seen]
        traces.append(_trace(tokenizer, ids, *own, layers))
    return traces


def join(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """Several texts' traces by one model as one, tokens in order, for statistics over all of them."""
    if not traces:
        raise ValueError("There is no trace to join: pass at least one.")
    parts = ("experts", "weights", "scores", "logits")
    joined = {part: torch.cat([getattr(one, part) for one in traces], dim=1) for part in parts}
    joined |= {part: torch.cat([getattr(one, part) for one in traces]) for part in ("ids", "positions")}
    starts = [0]
    for one in traces:
        starts.append(starts[-1] + int(one.texts.max()) + 1)
    texts = torch.cat([one.texts + start for one, start in zip(traces, starts[:-1], strict=True)])
    tokens = [token for one in traces for token in one.tokens]
    return RoutingTrace(tokens=tokens, layers=traces[0].layers, texts=texts, **joined)


def select(trace: RoutingTrace, keep: Tensor) -> RoutingTrace:
    """The part of a trace where the bool tensor `keep [tokens]` is true: without `<s>`, only the answer, ..."""
    layered = {part: getattr(trace, part)[:, keep] for part in ("experts", "weights", "scores", "logits")}
    flat = {part: getattr(trace, part)[keep] for part in ("ids", "positions", "texts")}
    tokens = [token for token, kept in zip(trace.tokens, keep.tolist(), strict=True) if kept]
    return RoutingTrace(tokens=tokens, layers=trace.layers, **layered, **flat)


# ---- from texts to forwards


def encode(model: nn.Module, tokenizer, texts: Sequence[str], first: int = 0) -> list[list[int]]:
    """The token ids of every text, `<s>` in front. Raises ValueError that names the text which is empty or too long.

    `first` is the number that the first of them goes by.
    """
    room = getattr(model.config, "max_position_embeddings", None)

    def name(i):
        return f"Text {first + i}" if first or len(texts) > 1 else "The text"

    for i, text in enumerate(texts):
        if not text:
            raise ValueError(f"{name(i)} is empty: there is no token to route. Pass at least one character.")
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    start = tokenizer.bos_token_id
    if start is not None:
        rows = [row if row[:1] == [start] else [start, *row] for row in rows]
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"{name(i)} has no token for this tokenizer: leave it out.")
        if room and len(row) > room:
            raise ValueError(
                f"{name(i)} has {len(row)} tokens, and the model reads {room}: cut it into pieces."
            )
    return rows


def batches(rows: Sequence[list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of `rows`, texts of similar length together, so that little is padding."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(model: nn.Module, tokenizer, rows: Sequence[list[int]]) -> tuple[dict[str, Tensor], Tensor]:
    """The rows as one batch padded on the right, and the int64 places of what is no padding when it is flattened."""
    device, longest = _device(model), max(map(len, rows))
    ids = torch.tensor([row + [padding(tokenizer)] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
    return inputs, mask.flatten().nonzero().squeeze(1).to(device)


def read(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """One forward in evaluation mode, for the sake of the routers: logits of one position, nothing cached."""
    # no inference mode: a reader's own hooks may go on computing with what they see
    with ready(model), torch.inference_mode(False), torch.no_grad():
        model(**inputs, use_cache=False, logits_to_keep=1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _trace(tokenizer, ids: list[int], logits, scores, experts, layers: list[int]) -> RoutingTrace:
    scores = scores.float()
    return RoutingTrace(
        tokens=tokenizer.convert_ids_to_tokens(ids),
        experts=experts.long(),
        weights=scores / scores.sum(-1, keepdim=True),
        scores=scores,
        logits=logits.float(),
        layers=layers,
        ids=torch.tensor(ids),
        positions=torch.arange(len(ids)),
        texts=torch.zeros(len(ids), dtype=torch.int64),
    )
