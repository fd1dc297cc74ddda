"""How long a model takes at least: all weights are read in every pass, and every operation is done."""

import torch

from aurora_lib.course import machine
from aurora_lib.model import memory

# Bytes and 16-bit operations a second that large kernels reach in practice; below the data sheets.
CARDS = {"an H100": (3e12, 600e12), "an A100": (1.7e12, 250e12), "a T4": (2.6e11, 40e12)}


def flops(config, tokens: int) -> float:
    """Operations to read `tokens`: two for a parameter in use. The head is left out: few tokens need it."""
    parts = memory.predict(config, train=False).parts  # half a byte a parameter
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    used = getattr(config, "num_experts_per_tok", count) / count
    return 4 * machine.GIB * (parts["experts"] * used + parts["attention"]) * tokens


def at_least(config, passes: int, tokens: int) -> tuple[float, str]:
    """Seconds for `passes` over `tokens` in all, and the card they are of: this machine's, else an H100.

    Each pass reads the weights, and writes and reads the 4-bit ones in 16 bits. Training makes three passes
    a batch (forward, recomputed forward, backward), over three times the tokens.
    """
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    card = next((name for name in CARDS if name.split()[1] in here), "an H100")
    bandwidth, speed = CARDS[card]
    budget = memory.predict(config, train=False)
    moved = budget.weights + 8 * (budget.parts["experts"] + budget.parts["attention"])
    return passes * moved * machine.GIB / bandwidth + flops(config, tokens) / speed, card
