"""Checkers of notebook 00: the paper in one page."""

from collections.abc import Iterable

from aurora_lib.exercises.checking import exercise, number


@exercise("00.1", 1, 3, "reading Table 1")
def multi_round_share(share):
    mistakes = {
        "that is the share within ShareGPT alone; divide by all three datasets.": 35_333 / 76_399,
        "that is per cent; a share lies between 0 and 1.": 100 * 35_333 / 176_678,
        "that is the ratio to single-round conversations; divide by the total.": 35_333 / 141_345,
    }
    yield number(share, 35_333 / 176_678, mistakes)


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
        yield f"{', '.join(sorted(others))} is not in the published training command."
    if len(parts) < 2:
        yield "one is missing: two projections of the attention carry an adapter."


@exercise("00.3", 2, 5, "batch, accumulation and steps")
def optimizer_steps(steps):
    mistakes = {
        "each of the 4 batches holds 2 conversations: a step sees 8.": 3 * 176_678 / 4,
        "a step happens after 4 batches of 2: gradient accumulation is missing.": 3 * 176_678 / 2,
        "that is one epoch; the paper trains three.": 176_678 / 8,
        "that is one step per conversation; 2 x 4 of them share a step.": 3 * 176_678,
    }
    yield number(steps, 3 * 176_678 / 8, mistakes)
