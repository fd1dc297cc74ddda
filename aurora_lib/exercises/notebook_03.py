"""Checkers of notebook 03: NF4, LoRA, memory."""

import torch

from aurora_lib.exercises.checking import compare, exercise, normal, number


@exercise("03.1", 2, 10, "absmax and nearest level")
def quantize_block(quantize):
    from bitsandbytes.functional import get_4bit_type

    levels = get_4bit_type("nf4", device="cpu")

    def nearest(scaled):
        return (scaled[:, None] - levels).abs().argmin(1)

    for block in (torch.tensor([0.6, -1.2, 0.05, 0.0, 1.4, -2.4]), normal(64), 0.02 * normal(128)):
        codes = torch.as_tensor(quantize(block, levels))
        if codes.shape != block.shape:
            yield f"one code per weight is wanted: shape {tuple(block.shape)}, not {tuple(codes.shape)}."
        right = nearest(block / block.abs().max())
        if torch.is_floating_point(codes) and not torch.equal(codes.long(), right):
            yield "return the numbers of the levels (0 to 15), not their values."
        mistakes = {
            "divide the block by its absmax first: the levels reach from -1 to 1.": nearest(block),
            "is your scale the largest *absolute* value?": nearest(block / block.max()),
        }
        yield compare(codes.long(), right, mistakes, "some codes are not the nearest level.", torch.equal)


@exercise("03.2", 2, 6, "what double quantization saves")
def bits_per_weight(bits):
    right = 4 + 8 / 64 + 32 / (64 * 256)
    mistakes = {
        "that is without double quantization: the absmax values themselves take 8 bits, not 32.": 4 + 32 / 64,
        "that is the codes alone; each block of 64 also stores its absmax.": 4.0,
        "nearly: 256 absmax values share one 32-bit scale of their own.": 4 + 8 / 64,
        "the 32-bit scale serves 256 absmax values, and each of those 64 weights.": 4 + 8 / 64 + 32 / 256,
        "that is what comes on top; add the 4 bits of the code itself.": right - 4,
        "that is in bytes; the question is in bits.": right / 8,
    }
    yield number(bits, right, mistakes, tolerance=1e-4)


@exercise("03.3", 2, 8, "counting an adapter")
def lora_parameters(count):
    # q_proj is 4096 -> 4096 and v_proj 4096 -> 1024, in 32 layers, at rank 8
    mistakes = {
        "v_proj gives 8 key-value heads of 128: its output is 1024 wide, not 4096.": 32 * 8 * 4 * 4096,
        "that is one layer; Mixtral has 32.": 8 * (3 * 4096 + 1024),
        "those are the full matrices; LoRA trains r x in + out x r instead.": 32 * 4096 * (4096 + 1024),
        "each adapter has two matrices, A [r, in] and B [out, r]; A is missing.": 32 * 8 * (4096 + 1024),
        "each adapter has two matrices, A [r, in] and B [out, r]; B is missing.": 32 * 8 * (4096 + 4096),
    }
    yield number(count, 32 * 8 * (3 * 4096 + 1024), mistakes, tolerance=1e-9)
