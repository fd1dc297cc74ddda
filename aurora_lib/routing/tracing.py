"""Record what every router chose, for one text or for many in padded batches."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from aurora_lib.model import batching


@dataclass(frozen=True)
class RoutingTrace:
    """The routers' choices for one text or several, on the CPU; padded positions are not in it.

    tokens: pieces as strings; a space is ▁, a byte that is no character is <0xE9>.
    experts: int64 `[layers, tokens, top_k]`, strongest first.
    weights: float32, same shape, renormalised: they sum to one for every token.
    logits: float32 `[layers, tokens, experts]`.
    layers: which decoder layers these are (all of them in Mixtral).
    ids, texts: int64 `[tokens]`: token id, and which text it is of, from 0.
    """

    tokens: list[str]
    experts: Tensor
    weights: Tensor
    logits: Tensor
    layers: list[int]
    ids: Tensor
    texts: Tensor


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """The top-k routers of a model by module name, in order of depth. Raises ValueError for a dense model."""
    blocks = [name for name, module in model.named_modules() if hasattr(module, "experts")]
    names = {f"{block}.{child}" for block in blocks for child in ("gate", "router")}
    found = {name: module for name, module in model.named_modules() if name in names}
    if not found:
        raise ValueError(f"{type(model).__name__} has no top-k router: choose a mixture-of-experts model.")
    return found


@contextmanager
def recording(model: nn.Module, by: nn.Module | None = None) -> Iterator[dict[str, list[tuple]]]:
    """Collect (logits, scores, experts), each `[tokens, ...]`, of every forward of every router, by its name.

    scores: what the block multiplies by. Padded positions are in it: it holds what the routers saw.
    by: a model of the same shape; what *its* routers choose is kept, on the inputs that `model`'s read.
    The model's output is untouched. Raises ValueError for a model without routers.
    """
    found = routers(model)
    records, others = {name: [] for name in found}, routers(by or model)

    def keep(name, module, inputs, output):
        output = others[name].forward(*inputs) if by else output
        if not (isinstance(output, tuple) and len(output) == 3):
            raise ValueError(f"{name} does not return (logits, weights, experts): it cannot be traced.")
        records[name].append(tuple(part.detach() for part in output))

    handles = [router.register_forward_hook(partial(keep, name)) for name, router in found.items()]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def trace_many(
    model: nn.Module, tokenizer, texts: Sequence[str], *, by: nn.Module | None = None, batch_tokens=4096
) -> RoutingTrace:
    """What every router chose when the model read the texts, without dropout: one trace, in their order.

    `<s>` goes in front where the tokenizer has one, as in training. Batches have at most `batch_tokens`
    positions, padding included. by: see `recording`. Raises ValueError that names a text which is empty or
    too long, and for a model without routers.
    """
    if not texts:
        raise ValueError("There is no text to trace: pass at least one.")
    rows, device = batching.encode_all(tokenizer, list(texts)), next(model.parameters()).device
    room = getattr(model.config, "max_position_embeddings", None)
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        name = f"Text {i}" if len(texts) > 1 else "The text"
        if not text:
            raise ValueError(f"{name} is empty: there is no token to route. Pass at least one character.")
        if room and len(row) > room:
            raise ValueError(f"{name} has {len(row)} tokens, and the model reads {room}: cut it into pieces.")
    by_text = [()] * len(rows)
    size = max(1, batch_tokens // max(map(len, rows)))
    for batch in batching.batches(rows, size, progress=False, label="tracing"):
        read = {"input_ids": [rows[i] for i in batch]}
        inputs = tokenizer.pad(read, padding_side="right", return_tensors="pt").to(device)
        with recording(model, by) as records, batching.ready(model):
            # only the routers matter: nothing is cached, and the head computes one position
            model(**inputs, use_cache=False, logits_to_keep=1)
        real = inputs["attention_mask"].flatten().nonzero().squeeze(1)
        parts = [torch.stack([calls[0][i][real].cpu() for calls in records.values()]) for i in range(3)]
        split = [part.split([len(rows[i]) for i in batch], dim=1) for part in parts]
        for i, *own in zip(batch, *split, strict=True):
            by_text[i] = own
    logits, scores, experts = (torch.cat(part, dim=1) for part in zip(*by_text, strict=True))
    ids, lengths = [token for row in rows for token in row], torch.tensor([len(row) for row in rows])
    return RoutingTrace(
        tokens=batching.pieces(tokenizer, ids),
        experts=experts.long(),
        weights=scores.float() / scores.float().sum(-1, keepdim=True),
        logits=logits.float(),
        layers=[int(re.findall(r"\.(\d+)\.", name)[-1]) for name in routers(model)],
        ids=torch.tensor(ids),
        texts=torch.arange(len(rows)).repeat_interleave(lengths),
    )
