"""Checkers of notebook 00: the paper in one page."""

from collections.abc import Iterable

from aurora_lib.exercises.checking import exercise


@exercise("00.2", 1, 3, "what LoRA trains here")
def trained_parts(parts):
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        yield "give the names as a set of strings."
    parts = {str(name).rpartition(".")[2] for name in parts}
    if parts & {"gate", "router"}:
        yield "the router stays frozen: the adapter sits in the attention only."
    if parts & {"experts", "w1", "w2", "w3", "gate_up_proj", "down_proj"}:
        yield "the experts stay frozen in 4 bits: the adapter sits in the attention only."
    if others := parts - {"q_proj", "v_proj"}:
        yield f"the published command names two matrices, and not {', '.join(sorted(others))}."
    if len(parts) < 2:
        yield "one is missing: two projections of the attention carry an adapter."
