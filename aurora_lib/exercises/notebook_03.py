"""Checkers of notebook 03: NF4, LoRA, memory."""

import torch

from aurora_lib.course import DATA
from aurora_lib.exercises.checking import compare, exercise
from aurora_lib.model import memory


@exercise("03.2", 2, 10, "asking the budget")
def largest_batch(largest):
    def fitting(gib, length):
        batch = 0
        while memory.predict(memory.MIXTRAL_8X7B, batch=batch + 1, length=length).total <= gib:
            batch += 1
        return batch

    for gib, length in ((80, 1024), (40, 700), (32, 2048), (24, 512), (16, 256)):
        made = largest(gib, length)
        if made is True or made is False or not isinstance(made, int):
            yield "a batch is a whole number of sequences."
        right = fitting(gib, length)
        none = {"not even one sequence fits there: return 0. A loop must not count one unasked.": 1}
        mistakes = (none if right == 0 else {}) | {
            "that is the first batch that does not fit. Go one back.": right + 1,
            "it ignores `length`: give it to `memory.predict`.": fitting(gib, 1024),
        }
        yield compare(made, right, mistakes, f"in {gib} GiB at {length} tokens {right} fit, not {made}.")


@exercise("03.3", 2, 8, "checking a budget")
def adapter_bytes(count):
    for rank, layers, hidden, keys in ((8, 32, 4096, 1024), (5, 3, 64, 16), (16, 7, 96, 96)):
        narrow, wide = (rank * layers * (2 * hidden + hidden + out) for out in (keys, hidden))
        mistakes = {
            "these are the two bugs, still there.": 12 * wide,
            "one bug is left: how wide is what v_proj returns?": 16 * wide,
            "one bug is left: weight, gradient, and how many running means of Adam?": 12 * narrow,
            "that is the number of parameters; each takes four numbers of four bytes.": narrow,
            "that is one copy of the weights; count gradient and Adam too.": 4 * narrow,
        }
        apart = hidden != keys  # else nobody can tell the two bugs apart
        sizes = f"rank {rank} and {layers} layers of {hidden} and {keys}"
        otherwise = f"expected {16 * narrow:,} bytes for {sizes}."
        yield compare(count(rank, layers, hidden, keys), 16 * narrow, mistakes if apart else {}, otherwise)


@exercise("03.4", 3, 20, "levels made for these weights")
def levels(levels):
    from bitsandbytes.functional import get_4bit_type
    from safetensors.torch import load_file

    levels = torch.as_tensor(levels).float().flatten().sort().values
    if len(levels) != 16:
        yield f"16 levels are wanted, one for each number of 4 bits; these are {len(levels)}."
    if levels.abs().max() > 1.5:
        yield "weights are divided by their absmax: useful levels lie between -1 and 1."
    stored = load_file(DATA / "tiny" / "model.safetensors")
    quantized = [w for name, w in stored.items() if "_proj" in name or ".experts." in name]
    blocks = torch.cat([w.float().flatten() for w in quantized]).view(-1, 64)
    scaled, size = blocks / blocks.abs().amax(1, keepdim=True), blocks.abs().amax(1, keepdim=True)

    def error(of):
        nearest = of[torch.bucketize(scaled, (of[1:] + of[:-1]) / 2)]
        return (((nearest - scaled) * size).norm() / blocks.norm()).item()

    mine, nf4 = error(levels), error(get_4bit_type("nf4", device="cpu"))
    if mine >= nf4:
        remedy = "Move each level to the mean of its weights."
        yield f"their error is {mine:.2%}, and NF4's is {nf4:.2%}. {remedy}"
