"""Packing a stack of experts to NF4, and running each expert that was hit on *its part* of the packed stack.

NF4 (QLoRA, arXiv 2305.14314, section 3): 16 levels, and blocks of 64 weights that share one scale, their absmax.
"""

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise
from transformers import BitsAndBytesConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "nf4"  # under which transformers finds `experts_forward`
BLOCK = 64  # weights that share one absmax
NESTED_BLOCK = 256  # absmax values that share one second-level absmax (double quantization)
PIECE = 2**20  # weights quantized at a time on a CPU, and 64 times as many on a GPU; a multiple of BLOCK
FEW_SLOTS = 16  # token-slots (tokens x top_k) up to which `experts_forward` never asks the device which experts were hit


def pack(stack: torch.Tensor, config: BitsAndBytesConfig) -> bnb.nn.Params4bit:
    """Quantize a stack `[experts, out, in]`, bit for bit as bitsandbytes would in one go.

    Piece by piece and each into its place, because on a CPU bitsandbytes works in fp32 copies, many times the size of
    what comes out, and results kept between them would leave holes that no later copy fits.
    """
    home, storage = stack.device, config.bnb_4bit_quant_storage
    if storage.is_floating_point and torch.cuda.is_available():
        # loaded on the CPU to be sharded, where packing a large model would take an hour
        stack = stack.cuda()
    kind = dict(blocksize=BLOCK, quant_type=config.bnb_4bit_quant_type)
    codes = torch.empty(stack.numel() // 2, dtype=torch.uint8, device=stack.device)
    absmax = torch.empty(stack.numel() // BLOCK, device=stack.device)
    piece = PIECE if stack.device.type == "cpu" else 64 * PIECE
    parts = codes.split(piece // 2), absmax.split(piece // BLOCK), stack.flatten().split(piece)
    for some_codes, some_absmax, weights in zip(*parts, strict=True):
        # the operator itself, since `functional.quantize_4bit` copies the 16 levels to the device every time
        done = torch.ops.bitsandbytes.quantize_4bit(weights, quant_storage=torch.uint8, **kind)
        some_codes.copy_(done[0].flatten())
        some_absmax.copy_(done[1])
    offset = nested = None
    if config.bnb_4bit_use_double_quant:  # the absmax values, less their mean, become 8-bit themselves
        offset = absmax.mean()
        absmax, nested = quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    levels = get_4bit_type(kind["quant_type"], device=stack.device)
    state = QuantState(absmax, stack.shape, levels, dtype=stack.dtype, offset=offset, state2=nested, **kind)
    kind |= dict(quant_state=state, quant_storage=storage)
    return bnb.nn.Params4bit(codes.view(storage).unsqueeze(1), bnb_quantized=True, **kind).to(home)


def select(
    stack: tuple[torch.Tensor, QuantState], expert: int | torch.Tensor
) -> tuple[torch.Tensor, QuantState]:
    """Expert `expert` of a packed stack, as views, its state of shape `[out, in]`; for indices `[n]`, a stack of n copies.

    With n weights per expert: bytes `[e*n/2, (e+1)*n/2)`, absmax `[e*n/64, ...)`, second-level absmax `[e*n/16384, ...)`.
    """
    data, state = stack

    def part(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(state.shape[0], -1)[expert].flatten()

    nested = None
    if state.nested:
        second = state.state2
        nested = QuantState(
            part(second.absmax), code=second.code, blocksize=second.blocksize, dtype=second.dtype
        )
    chosen = QuantState(
        part(state.absmax),
        shape=state.shape[1:] if isinstance(expert, int) else (len(expert), *state.shape[1:]),
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
        offset=state.offset,
        state2=nested,
    )
    return part(data).unsqueeze(1), chosen


def experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """Run the experts that were hit, each on its rows: hidden `[tokens, hidden]`, index and weights `[tokens, top_k]`."""
    stacks = [(getattr(self, key).detach(), self.quant_states[key]) for key in ("gate_up_proj", "down_proj")]
    learning = torch.is_grad_enabled() and hidden_states.requires_grad
    path = _many_rows if learning or top_k_index.numel() > FEW_SLOTS else _few_rows
    return path(self, stacks, hidden_states, top_k_index, top_k_weights).to(hidden_states.dtype)


def _many_rows(self, stacks, hidden, index, weights):
    """Sort the rows by expert, and run each expert that was hit once on all of its rows (training, prompts)."""
    order = index.flatten().argsort(stable=True)  # token-slots, grouped by expert
    counts = torch.bincount(index.flatten(), minlength=self.num_experts).tolist()  # waits for the device
    rows = hidden[order // index.shape[1]].split(counts)
    outputs = torch.cat([_expert(self, stacks, e, part) for e, part in enumerate(rows) if len(part)])
    weighted = outputs * weights.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return weighted[back].view(*index.shape, -1).sum(dim=1)


def _few_rows(self, stacks, hidden, index, weights):
    """Shapes that do not depend on the routing, so that CUDA graphs and `torch.compile` can capture it (decoding).

    Up to as many token-slots as experts: the hit experts are copied, one for each slot, and run on one row each. More:
    copying would move more bytes than there are, so every expert runs on every row, with weight 0 where it was not hit.
    """
    if index.numel() <= self.num_experts:
        hit = [select(stack, index.flatten()) for stack in stacks]
        rows = hidden.repeat_interleave(index.shape[1], dim=0).split(1)
        outputs = torch.cat([_expert(self, hit, slot, row) for slot, row in enumerate(rows)])
        return (outputs.view(*index.shape, -1) * weights.unsqueeze(-1)).sum(dim=1)
    share = weights.new_zeros(len(hidden), self.num_experts).scatter_(1, index, weights)
    return sum(_expert(self, stacks, e, hidden) * share[:, e, None] for e in range(self.num_experts))


def _expert(self, stacks, expert: int, rows: torch.Tensor) -> torch.Tensor:
    gate_up, down = (select(stack, expert) for stack in stacks)
    return bnb.matmul_4bit(self._apply_gate(bnb.matmul_4bit(rows, *gate_up)), *down)


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
