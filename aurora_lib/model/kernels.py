"""Decoding on a GPU: a Triton kernel that multiplies packed weights and never stores them unpacked.

It reads the expert's number on the device: nothing is copied or waited for, and a CUDA graph can capture it.
Where it cannot run, `nf4` goes its other ways. On an H100 it is as fast as those, not faster (results/h100).
"""

from __future__ import annotations  # `tl` may be missing

import shutil
import sysconfig
from math import gcd
from pathlib import Path

import torch
from torch import Tensor, library

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
# Triton compiles a launcher for each kernel
READY = bool(triton and shutil.which("gcc") and Path(sysconfig.get_path("include"), "Python.h").exists())


@triton.jit if triton else lambda function: function
def _kernel(
    x, out, experts, packed, levels, absmax, nested_levels, nested_absmax, offset, TOP_K: tl.constexpr,
    OUT: tl.constexpr, IN: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of a slot's expert: `W x`, or with two PARTS, gate and up, `silu(gate x) * (up x)`."""
    first, slot = tl.program_id(0) * ROWS, tl.program_id(1)
    # the expert's part of the stack, as in `nf4.select`; int64, as its number is, since stacks are large
    before = tl.load(experts + slot) * (PARTS * OUT * IN // 64)
    packed, absmax, nested_absmax = packed + before * 32, absmax + before, nested_absmax + before // 256
    number = tl.arange(0, ROWS * PARTS)[:, None, None]
    row = first + number // PARTS + number % PARTS * OUT  # of gate and of up in turn
    total = tl.zeros([ROWS * PARTS, STEP, 32], tl.float32)
    for start in range(0, IN // 64, STEP):
        place, byte = start + tl.arange(0, STEP)[:, None], tl.arange(0, 32)
        block = row * (IN // 64) + place  # of 64 weights, which are 32 bytes
        # 1. A byte holds two neighbouring weights, the first in its upper half: the numbers of two levels.
        pair = tl.load(packed + block * 32 + byte).to(tl.int32)
        upper, lower = tl.load(levels + (pair >> 4)), tl.load(levels + (pair & 15))
        # 2. The block's absmax is 8-bit itself: a level again, times what 256 blocks share, plus an offset.
        nested = tl.load(nested_levels + tl.load(absmax + block).to(tl.int32))
        scale = nested * tl.load(nested_absmax + block // 256) + tl.load(offset)
        # 3. A level times its absmax is the weight; its products with x are added up in fp32.
        at = x + slot // TOP_K * IN + place * 64 + byte * 2
        total += scale * (upper * tl.load(at) + lower * tl.load(at + 1))
    result = tl.sum(tl.sum(total, 2), 1)
    if PARTS == 2:
        gate, up = tl.split(tl.reshape(result, (ROWS, 2)))
        result = gate * tl.sigmoid(gate) * up
    tl.store(out + slot * OUT + first + tl.arange(0, ROWS), result.to(out.dtype.element_ty))


@library.custom_op("aurora::nf4_product", mutates_args=())
def product(x: Tensor, index: Tensor, stack: list[Tensor], width: int, parts: int) -> Tensor:
    """The product `[slots, width]` of each token-slot's row and expert, as in `_kernel`; it has no gradient.

    x `[tokens or slots, in]`, in multiples of 64; index `[tokens, top_k]`; stack: `_kernel`'s next six.
    """
    out = x.new_empty(index.numel(), width)
    rows, step = gcd(width, 4 // parts), gcd(x.shape[1] // 64, 16)  # powers of two, as Triton wants
    sizes = len(out) // len(x), width, x.shape[1], parts, rows, step
    with torch.cuda.device_of(x):
        _kernel[width // rows, len(out)](x.contiguous(), out, index.flatten(), *stack, *sizes)
    return out


product.register_fake(lambda x, index, stack, width, parts: x.new_empty(index.numel(), width))
