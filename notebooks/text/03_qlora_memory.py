# %% [markdown]
# # 03 · QLoRA and memory: NF4 and LoRA by hand, the budget before the bill
#
# Paper: section 3, second paragraph, and Table 4. **After this notebook you can** quantize (量化) a block of weights to NF4 with
# pencil-and-paper arithmetic, say why today's libraries silently leave Mixtral's experts in 16 bits, and predict what a tuning
# run needs before anything is loaded.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("03")

# %% [markdown]
# ## NF4: sixteen levels
#
# Trained weights are roughly normally distributed. NF4 puts its 16 levels where such weights are dense: close together around
# zero, far apart at the ends. (The spikes at -1 and 1 are each block's own largest weight.)

# %%
import matplotlib.pyplot as plt
import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit

levels = get_4bit_type("nf4", device="cpu")
torch.manual_seed(0)
weights = torch.randn(64 * 256) * 0.02

figure, axes = plt.subplots(figsize=(6, 2.2))
scaled = weights.view(-1, 64) / weights.view(-1, 64).abs().amax(1, keepdim=True)
axes.hist(scaled.flatten(), bins=80, color="lightgrey")
axes.vlines(levels, 0, axes.get_ylim()[1] / 2, color="C3")
axes.set_title("The 16 NF4 levels (red) over scaled weights")
axes.set(xlabel="weight / absmax of its block", yticks=[]);

# %% [markdown]
# ### Draft: eight weights
#
# Divide by the largest absolute value (*absmax*), take the nearest level, remember its number. Going back is one look-up and one
# multiplication.

# %%
import pandas as pd

block = weights[:8]
absmax = block.abs().max()
codes = (block[:, None] / absmax - levels).abs().argmin(1)
pd.DataFrame(
    {
        "weight": [f"{w:.4f}" for w in block],
        "divided": [f"{w / absmax:.4f}" for w in block],
        "code": codes,
        "back": [f"{w:.4f}" for w in levels[codes] * absmax],
    }
).T

# %% [markdown]
# ### Final: blocks of 64, two codes in a byte
#
# And the library's own result for the same weights must be the same, bit for bit.

# %%
def quantize_nf4(weights):
    """Weights [n] -> packed codes uint8 [n/2], absmax [n/64]."""
    blocks = weights.view(-1, 64)
    absmax = blocks.abs().amax(dim=1)
    codes = (blocks[:, :, None] / absmax[:, None, None] - levels).abs().argmin(-1).flatten().to(torch.uint8)
    return codes[0::2] << 4 | codes[1::2], absmax


packed, absmax = quantize_nf4(weights)
library, state = quantize_4bit(weights, blocksize=64, quant_type="nf4")
assert torch.equal(packed, library.flatten()) and torch.equal(absmax, state.absmax)
small = f"{packed.numel():,} of codes + {absmax.numel() * 4:,} of absmax"
print(f"{weights.numel() * 2:,} bytes in 16 bits -> {small}")

# %% [markdown]
# Is NF4 worth its crooked levels? The same block size with 16 *uniform* levels, and plain bfloat16, beside it:

# %%
uniform = torch.linspace(-1, 1, 16)
blocks = weights.view(-1, 64)
scaled = blocks / blocks.abs().amax(1, keepdim=True)
restored = {
    "uniform int4": uniform[(scaled[:, :, None] - uniform).abs().argmin(-1)]
    * blocks.abs().amax(1, keepdim=True),
    "NF4": dequantize_4bit(library, state).view_as(blocks),
    "bfloat16": blocks.bfloat16().float(),
}
errors = {name: ((value - blocks).norm() / blocks.norm()).item() for name, value in restored.items()}
figure, axes = plt.subplots(figsize=(5, 2.2))
bars = axes.barh(list(errors), list(errors.values()))
axes.bar_label(bars, [f" {error:.1%}" for error in errors.values()])
axes.set(xlabel="relative error of the weights", xlim=(0, max(errors.values()) * 1.2));

# %% [markdown]
# The crooked levels lose a little less at the same size; both are far coarser than bfloat16, for about a quarter of its bytes. QLoRA lives with that error, because
# what is trained is not the quantized part.
#
# *Double quantization* then squeezes the absmax values themselves: 8 bits each, and one 32-bit scale for 256 of them.

# %%
from aurora_lib.model import memory

plain, double = 8 * memory.nf4_bytes(double_quant=False), 8 * memory.nf4_bytes()
print(f"bits per weight: {plain:.3f}, with double quantization {double:.3f}")

# %% [markdown]
# ## LoRA: a frozen matrix and a thin detour
#
# `y = W x + (alpha / r) B A x`, with `A [r, in]` and `B [out, r]`. B starts at zero, so training starts exactly at the base model.
# By hand, beside PEFT:

# %%
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear

frozen = torch.nn.Linear(16, 12, bias=False)
x = torch.randn(3, 16)
wrapped = LoraLinear(frozen, "default", LoraConfig(r=4, lora_alpha=8), r=4, lora_alpha=8)
A, B = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
print("at the start the adapter changes nothing:", torch.equal(wrapped(x), frozen(x)))
torch.nn.init.normal_(B)
assert torch.allclose(wrapped(x), frozen(x) + (8 / 4) * x @ A.T @ B.T, atol=1e-5)
print(f"full matrix {frozen.weight.numel()} parameters, adapter {A.numel() + B.numel()}")

# %% [markdown]
# ## The trap: the experts that stay in 16 bits
#
# `load_in_4bit` quantizes `nn.Linear` modules. In transformers 5 the experts of a layer are two stacked tensors, not linear
# layers, and so they stay as they were, without a word. Stock loading and this course's `load_model`, side by side on the tiny model:

# %%
from transformers import AutoModelForCausalLM

from aurora_lib.course import DATA
from aurora_lib.model import load_model, nf4

stock = AutoModelForCausalLM.from_pretrained(DATA / "tiny", quantization_config=nf4.config(torch.float32))
ours = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
for name, model in (("stock load_in_4bit", stock), ("load_model", ours)):
    stack, parameter = next(iter(nf4.expert_stacks(model).items()))
    print(f"{name:20} {stack} is {parameter.dtype}, {parameter.numel() * parameter.element_size():,} bytes")

# %% [markdown]
# `aurora_lib/model/nf4.py` closes the gap in three small pieces: a quantizer that also claims expert stacks, a loading step that packs
# them, and a forward that runs each expert on its slice of the packed bytes. Same mathematics, less memory:

# %%
import bitsandbytes.functional as bnb

reference = AutoModelForCausalLM.from_pretrained(DATA / "tiny", dtype=torch.float32)
weights_of = dict(reference.named_parameters())
for name, parameter in ours.named_parameters():
    if getattr(parameter, "quant_state", None) is not None:
        weights_of[name].data = (
            bnb.dequantize_4bit(parameter.data, parameter.quant_state).view(weights_of[name].shape).float()
        )
ids = torch.randint(300, 2000, (1, 32))
with torch.no_grad():
    difference = (ours(ids).logits - reference(ids).logits).abs().max().item()
assert difference < 1e-3
print(f"largest difference from a model with the same weights, unpacked: {difference:.1e}")

# %% [markdown]
# ## The budget of Mixtral-8x7B, predicted
#
# All of it follows from the configuration. Whether a GPU has confirmed it, the closing table says. Two rows need a word. *One layer, recomputed*:
# with *gradient checkpointing* only each layer's input is kept, and one layer at a time is recomputed for its backward pass. *Logits beyond that*: they
# peak after that layer's memory is freed, so only what exceeds it would count.

# %%
training = memory.predict(memory.MIXTRAL_8X7B)
training

# %%
variants = {
    "NF4, every expert": {},
    "without double quantization": {"double_quant": False},
    "stock load_in_4bit (the trap)": {"quantization": "nf4-linear-only"},
    "bfloat16": {"quantization": "bf16"},
}
totals = {name: memory.predict(memory.MIXTRAL_8X7B, **settings).total for name, settings in variants.items()}
figure, axes = plt.subplots(figsize=(6, 2.2))
axes.bar_label(axes.barh(list(totals)[::-1], list(totals.values())[::-1]), fmt=" %.1f")
axes.axvline(80, color="C3", linestyle="--", label="one H100")
axes.set(xlabel="GiB to train Mixtral-8x7B, predicted", xlim=(0, 105))
axes.legend();

# %% [markdown]
# The paper's Table 4 says 45 GiB in training and its README 43; parameters do not explain so much. What `nvidia-smi` shows also holds the
# allocator's cache, and the stack of 2023 ran each expert as a separate module; what exactly filled it is an open question
# until both ways are measured on one card.
#
# Better to know beforehand: `require` refuses what cannot fit, before anything is loaded.

# %%
try:
    training.require(16)
except memory.DoesNotFit as refusal:
    print(refusal)

# %% [markdown]
# Length and batch cost the same, token for token, and *gradient checkpointing* decides how much. Move the sliders for everything else
# (they need a running notebook).

# %%
lengths = range(256, 8193, 256)
figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
for batch in (2, 8):
    for checkpointing, line in ((True, "-"), (False, ":")):
        needed = [
            memory.predict(memory.MIXTRAL_8X7B, batch=batch, length=n, checkpointing=checkpointing).total
            for n in lengths
        ]
        label = f"batch {batch}, checkpointing {'on' if checkpointing else 'off'}"
        axes.plot(lengths, needed, line, color=f"C{batch // 8}", label=label)
axes.axhline(80, color="C3", linestyle="--", label="one H100")
axes.set(xlabel="tokens in a sequence", ylabel="GiB, predicted", ylim=(0, 160))
axes.legend(fontsize=8, bbox_to_anchor=(1, 1));

# %%
import ipywidgets


def budget(batch=2, length=1024, rank=8, double_quant=True, checkpointing=True):
    settings = dict(rank=rank, double_quant=double_quant, checkpointing=checkpointing)
    print(memory.predict(memory.MIXTRAL_8X7B, batch=batch, length=length, **settings))


ipywidgets.interact(budget, batch=(1, 32), length=(256, 8192, 256), rank=(1, 64));

# %% [markdown]
# ## Predicted and measured
#
# The model of your scale, loaded: the bytes its tensors really hold, beside the prediction.

# %%
base = load_model(scale.base_model, **scale.loading)
predicted = memory.predict(base.config, dtype=scale.loading["dtype"]).weights


def held(parameter):
    size = parameter.numel() * parameter.element_size()
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        size += state.absmax.numel() * state.absmax.element_size()
        size += state.state2.absmax.numel() * 4 if state.nested else 0
    return size


measured = sum(held(p) for p in base.parameters()) / 2**30
both = f"predicted {predicted * 1024:.2f} MiB, measured {measured * 1024:.2f} MiB"
print(f"weights: {both} ({measured / predicted - 1:+.1%})")

# %% [markdown]
# Weights are not all that training needs. The next cell follows the memory of a Mixtral with random weights, small enough for any laptop,
# from loading through two training steps: on a GPU what PyTorch has allocated, on a CPU the bytes of all tensors. Look for three things:
# loading rises in steps, one stack of experts after the other; *backward* has one peak for every layer, which is recomputed there; and
# the highest peak comes close to the dashed line, which was computed beforehand.

# %%
from peft import get_peft_model
from transformers import MixtralConfig

from aurora_lib.model import random_model
from aurora_lib.training import adapters_in_fp32, lora_config

sizes = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8)
small = MixtralConfig(vocab_size=1000, **sizes, use_cache=False)
with memory.profile(scale.device, tensors=True) as timeline:
    timeline.mark("load")
    model = random_model(small, dtype=scale.loading["dtype"], device=scale.device)
    model.activation_checkpointing_enable(dict(use_reentrant=False))
    tuned = get_peft_model(model, lora_config()).train()
    adapters_in_fp32(tuned)
    optimizer = torch.optim.AdamW(p for p in tuned.parameters() if p.requires_grad)
    ids = torch.randint(small.vocab_size, (2, 512), device=scale.device)
    for _ in range(2):
        timeline.mark("forward")
        with torch.autocast(scale.device, dtype=torch.bfloat16, enabled=scale.device == "cuda"):
            loss = tuned(ids, labels=ids).loss
        timeline.mark("backward")
        loss.backward()
        timeline.mark("step")
        optimizer.step()
        optimizer.zero_grad()
expected = memory.predict(small, batch=2, length=512, dtype=scale.loading["dtype"])
timeline.plot(expected);

# %% [markdown]
# ## Exercises
#
# **03.1** Codes of one block: weights `[n]` and levels `[16]` to the numbers of the nearest levels, `[n]`.

# %%
from aurora_lib import exercises


def quantize_block(block, levels):
    return ...


exercises.check("03.1", quantize_block)

# %% [markdown]
# <details><summary>Hint</summary>Absmax first. Then <code>[:, None]</code> compares every weight with every level.</details>
#
# **03.2** Bits per weight with double quantization: 4, and what else?

# %%
bits = ...
exercises.check("03.2", bits)

# %% [markdown]
# <details><summary>Hint</summary>One 8-bit absmax for 64 weights, one 32-bit scale for 256 of those.</details>
#
# **03.3** How many parameters has the paper's adapter on Mixtral-8x7B (rank 8, q_proj and v_proj, 32 layers)?

# %%
parameters = ...
exercises.check("03.3", parameters)

# %% [markdown]
# <details><summary>Hint</summary>q_proj is 4096 x 4096. v_proj serves 8 key-value heads of 128.</details>
#
# ## Paper, records and you

# %%
from aurora_lib.course import results

inference = memory.predict(memory.MIXTRAL_8X7B, train=False, batch=1, length=2048)
results.record(
    "03",
    {
        "Mixtral-8x7B training memory, predicted [GiB]": round(training.total, 2),
        "Mixtral-8x7B inference memory, predicted [GiB]": round(inference.total, 2),
        "Mixtral-8x7B weights, predicted [GiB]": round(training.weights, 2),
        "adapter parameters of Mixtral-8x7B": training.adapter_parameters,
        "NF4 error of normal weights [share]": round(errors["NF4"], 4),
        "weights of this scale's model, measured [GiB]": round(measured, 5),
    },
)
results.compare("03")

# %% [markdown]
# **In short.** NF4 is an absmax, sixteen levels and a look-up. LoRA is a thin detour that starts at zero. `load_in_4bit` skips
# fused experts, so check what was quantized. A budget is arithmetic: do it before renting. Predicted and measured weights agree
# here; on a GPU the allocator adds its own.
#
# **Next:** [04 Fine-tune](04_finetune.ipynb). **Read:** QLoRA (2305.14314), LoRA (2106.09685).
