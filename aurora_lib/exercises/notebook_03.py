"""Checkers of notebook 03: NF4, LoRA, memory."""

import torch

from aurora_lib.exercises.checking import exercise, number


@exercise("03.1", 2, 10, "absmax and nearest level")
def _quantize_block(quantize):
    from bitsandbytes.functional import get_4bit_type

    levels = get_4bit_type("nf4", device="cpu")
    block = torch.tensor([0.6, -1.2, 0.05, 0.0, 1.4, -2.4])
    distance = (block[:, None] / block.abs().max() - levels).abs()
    codes = torch.as_tensor(quantize(block.clone(), levels.clone()))
    if codes.shape != block.shape:
        return f"one code per weight is wanted: shape {tuple(block.shape)}, not {tuple(codes.shape)}."
    if torch.equal(codes.long(), distance.argmin(1)):
        return None
    if torch.is_floating_point(codes):
        return "return the numbers of the levels (0 to 15), not their values."
    if torch.equal(codes.long(), (block[:, None] - levels).abs().argmin(1)):
        return "divide the block by its absmax first: the levels reach from -1 to 1."
    if torch.equal(codes.long(), (block[:, None] / block.max() - levels).abs().argmin(1)):
        return "is your scale the largest *absolute* value?"
    return "some codes are not the nearest level."


@exercise("03.2", 2, 6, "what double quantization saves")
def _bits_per_weight(bits):
    return number(
        bits,
        4 + 8 / 64 + 32 / (64 * 256),
        {
            4.5: "that is without double quantization: the absmax values themselves take 8 bits, not 32.",
            4.0: "that is the codes alone; each block of 64 also stores its absmax.",
            4 + 8 / 64: "nearly: 256 absmax values share one 32-bit scale of their own.",
            4 + 8 / 64 + 32 / 256: "the 32-bit scale serves 256 absmax values, and each of those 64 weights.",
            8 / 64 + 32 / (64 * 256): "that is what comes on top; add the 4 bits of the code itself.",
            (4 + 8 / 64 + 32 / (64 * 256)) / 8: "that is in bytes; the question is in bits.",
        },
        tolerance=1e-4,
    )


@exercise("03.3", 2, 8, "counting an adapter")
def _lora_parameters(count):
    return number(
        count,
        3_407_872,
        {
            # q_proj is 4096 -> 4096 and v_proj 4096 -> 1024, in 32 layers, at rank 8
            32 * 8 * 4 * 4096: "v_proj gives 8 key-value heads of 128: its output is 1024 wide, not 4096.",
            8 * (3 * 4096 + 1024): "that is one layer; Mixtral has 32.",
            32 * 4096 * (4096 + 1024): "those are the full matrices; LoRA trains r x in + out x r instead.",
            32 * 8 * (4096 + 1024): "each adapter has two matrices, A [r, in] and B [out, r]; A is missing.",
            32 * 8 * (4096 + 4096): "each adapter has two matrices, A [r, in] and B [out, r]; B is missing.",
        },
        tolerance=1e-9,
    )
