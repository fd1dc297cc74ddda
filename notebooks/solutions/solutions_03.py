"""Solutions to notebook 03."""

import torch
from safetensors.torch import load_file

from aurora_lib.course import DATA
from aurora_lib.model import memory

# 03.1: seven more pairs of sequences: inputs, one layer and gradients grow eight times, but for the matrix
at_16 = memory.predict(memory.MIXTRAL_8X7B, batch=16).total


# 03.2: count up while the next batch fits
def largest_batch(gib, length):
    batch = 0
    while memory.predict(memory.MIXTRAL_8X7B, batch=batch + 1, length=length).total <= gib:
        batch += 1
    return batch


# 03.3: v_proj returns keys and values of few heads, and Adam keeps two means: four numbers of four bytes
def adapter_bytes(rank, layers, hidden, keys):
    q_proj = rank * (hidden + hidden)
    v_proj = rank * (hidden + keys)
    return layers * (q_proj + v_proj) * 4 * 4


# 03.4: Lloyd's algorithm, from even levels; each moves to the mean of its weights
stored = load_file(DATA / "tiny" / "model.safetensors")
blocks = torch.cat([w.float().flatten() for n, w in stored.items() if "_proj" in n or ".experts." in n]).view(
    -1, 64
)
size = blocks.abs().amax(1, keepdim=True)
my_levels = torch.linspace(-1, 1, 16)
for _ in range(30):
    code = torch.bucketize(blocks / size, (my_levels[1:] + my_levels[:-1]) / 2)
    # weighted by the square of absmax, since that is what an error is multiplied by
    share = size.square().expand_as(blocks).flatten()
    top, bottom = torch.zeros(16), torch.zeros(16)
    top.scatter_add_(0, code.flatten(), (blocks / size).flatten() * share)
    bottom.scatter_add_(0, code.flatten(), share)
    my_levels = top / bottom

ANSWERS = {"03.1": at_16, "03.2": largest_batch, "03.3": adapter_bytes, "03.4": my_levels}
