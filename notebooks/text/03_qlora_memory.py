# %% [markdown]
# # 03 · QLoRA and memory: the case of the 45 GiB
#
# Paper: section 3, second paragraph, and Table 4. **After this notebook you can** quantize (量化) weights to NF4 with
# pencil-and-paper arithmetic, write the memory budget of a training step line by line, and say where the paper's 45 GiB
# most likely come from.
#
# ![Memory over one training step: in forward the layer inputs pile up like a stair; in backward one layer after the other is recomputed while the stair goes down; the peak is all layer inputs plus one layer.](images/memory_step.svg)

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("03")

# %% [markdown]
# ## The case
#
# The paper tuned Mixtral-8x7B in 4 bits on one GPU. The next cell prints how much memory that took, by the paper and its README. It also
# prints what this course predicts for the batch of the published command: 2 sequences of 1024 tokens.

# %%
from aurora_lib.course import paper
from aurora_lib.model import memory

MIXTRAL = memory.MIXTRAL_8X7B
ours = memory.predict(MIXTRAL, batch=2, length=1024)
for name in ("training", "training, README", "inference"):
    print(f"{name:24} {paper.MEMORY[name].value:5.1f} GiB   ({paper.MEMORY[name].source})")
missing = paper.MEMORY["training"].value - ours.total
print(f"{'training, our prediction':24} {ours.total:5.1f} GiB")
print(f"{'not explained yet':24} {missing:5.1f} GiB")

# %% [markdown]
# Who took the rest? Here are the suspects:
#
# - all logits, in 32 bits
# - all attention scores
# - a layer for every expert matrix
# - no double quantization (section 1 explains it)
# - no checkpointing (section 4)
# - memory that PyTorch reserves and does not use
#
# **Write down one name before you go on.** Then we count, line by line, and see how near we come to 45.
#
# ## 1 · Weights: 4 bits each
#
# A weight in NF4 is the number of one of 16 levels. Which 16? Most trained weights are close to zero. So the levels should be
# dense there. QLoRA puts them at the *quantiles* (分位数) of the normal distribution. The idea: each level should stand for about as
# many weights as the next.
#
# QLoRA wants zero itself as a level. That leaves 15 levels, an odd number: 7 below zero and 8 above. So NF4 is not symmetric.
# The outermost level cannot be the quantile of probability 1, since that quantile is infinite. QLoRA stops about half a step short of 1.

# %%
import torch
from bitsandbytes.functional import dequantize_blockwise, get_4bit_type, quantize_4bit
from scipy.stats import norm


def normal_levels(bits):
    """2**bits levels from -1 to 1: quantiles of the normal distribution, half of them above zero."""
    above = 2 ** (bits - 1)
    half_a_step = (1 / (4 * above) + 1 / (4 * above - 2)) / 2
    positive = norm.ppf(torch.linspace(0.5, 1 - half_a_step, above + 1)[1:])
    negative = -norm.ppf(torch.linspace(0.5, 1 - half_a_step, above)[1:])
    levels = torch.tensor([*negative[::-1], 0.0, *positive])
    return (levels / levels.max()).float()


nf4 = normal_levels(4)
assert torch.allclose(nf4, get_4bit_type("nf4", device="cpu"), atol=1e-6)
print("our 16 levels are those of bitsandbytes:", [round(level, 3) for level in nf4.tolist()])

# %% [markdown]
# ![A bell curve of weights, each divided by the largest absolute value of its block, above the 16 NF4 levels: close together near zero, far apart at the ends; each weight goes to its nearest level, whose number is stored in 4 bits.](images/nf4.svg)
#
# ### Draft: eight weights
#
# These are real weights: the first eight of the tiny model's first `q_proj`. Divide by the largest absolute value (*absmax*).
# Take the nearest level. Keep its number. The way back is one look-up and one multiplication.

# %%
import pandas as pd
from transformers import AutoModelForCausalLM

from aurora_lib.course import DATA

plain = AutoModelForCausalLM.from_pretrained(DATA / "tiny", dtype=torch.float32)
weights = plain.model.layers[0].self_attn.q_proj.weight.detach().flatten()

block = weights[:8]
absmax = block.abs().max()
codes = (block[:, None] / absmax - nf4).abs().argmin(1)
table = pd.DataFrame({"weight": block, "divided": block / absmax, "code": codes, "back": nf4[codes] * absmax})
table.round(4).astype({"code": str}).T

# %% [markdown]
# ### Final: blocks of 64, two codes in a byte
#
# The library's own result for the same weights must be the same, bit for bit.

# %%
def quantize(weights, levels):
    """Weights [n] -> codes [n/64, 64] (the numbers of the nearest levels), absmax [n/64]."""
    blocks = weights.reshape(-1, 64)
    absmax = blocks.abs().amax(dim=1)
    halfway = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(blocks / absmax[:, None], halfway), absmax


codes, absmax = quantize(weights, nf4)
packed = (codes[:, 0::2] << 4 | codes[:, 1::2]).to(torch.uint8).flatten()
library, state = quantize_4bit(weights, blocksize=64, quant_type="nf4")
assert torch.equal(packed, library.flatten()) and torch.equal(absmax, state.absmax)
small = f"{packed.numel():,} of codes + {absmax.numel() * 4:,} of absmax"
print(f"{weights.numel() * 2:,} bytes in 16 bits -> {small}")

# %% [markdown]
# Are uneven levels worth the trouble? We compare them with 16 *even* levels, block by block, on all matrices of the tiny model.

# %%
def rounded(weights, levels):
    """Weights as they come back from the nearest levels."""
    codes, absmax = quantize(weights, levels)
    return (levels[codes] * absmax[:, None]).view_as(weights)


def matrices(model):
    """The parameters that QLoRA quantizes: attention and experts."""
    return [p for name, p in model.named_parameters() if "_proj" in name]


everything = torch.cat([parameter.detach().flatten() for parameter in matrices(plain)])
even = torch.linspace(-1, 1, 16)
errors = {
    name: (rounded(everything, levels) - everything).view(-1, 64).norm(dim=1)
    for name, levels in (("NF4", nf4), ("even", even))
}
for name, error in errors.items():
    print(f"{name:5} relative error {error.norm() / everything.norm():.1%}")
even_wins = (errors["even"] < errors["NF4"]).float().mean().item()
print(f"even levels are better in {even_wins:.0%} of {len(everything) // 64:,} blocks")

# %% [markdown]
# NF4 is better on the whole, but not in every block: 64 weights need not look like a bell.
#
# ### What do 4 bits cost?
#
# **Before you run the cells:** at how many bits does the tiny model break: 4, 3 or 2? The loss is that of the right English answers.
# Embeddings and the output layer (head) stay as they are, as in QLoRA. So do the routers.

# %%
import copy

from aurora_lib import evaluation
from aurora_lib.model import load_tokenizer

tokenizer = load_tokenizer(DATA / "tiny")
probes = evaluation.load_probes(held_out=True)[:60]


def loss_of_answers(model):
    """The mean loss of the right English answers, on the tokens of the answers."""
    losses = []
    for probe in probes:
        roles = zip(("user", "assistant"), (probe["en"]["question"], probe["en"]["answer"]), strict=True)
        turns = [dict(role=role, content=text) for role, text in roles]
        row = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        ids, answer = torch.tensor([row["input_ids"]]), torch.tensor([row["assistant_masks"]])
        with torch.no_grad():
            losses.append(model(ids, labels=ids.masked_fill(answer == 0, -100)).loss.item())
    return sum(losses) / len(losses)


# %%
costs = {}
kinds = {
    "16 bits": None,
    "NF4": nf4,
    "4 bits, even": even,
    "3 bits": normal_levels(3),
    "2 bits": normal_levels(2),
}
for name, levels in kinds.items():
    model = copy.deepcopy(plain)
    for parameter in matrices(model) if levels is not None else ():
        parameter.data = rounded(parameter.data, levels)
    right = evaluation.probe(model, tokenizer, probes, progress=False).score("en", "correct")
    costs[name] = {"loss of right answers": f"{loss_of_answers(model):.3f}", "right in English": right}
pd.DataFrame.from_dict(costs, orient="index")

# %% [markdown]
# Every forward pass uses the rounded weights. At 4 bits this tiny model hardly notices, with even levels too. At 3 bits the loss
# grows. At 2 bits the model breaks. LoRA is trained on top of the rounded model, so it learns with the error in place.
#
# *Double quantization* also rounds the absmax values: 8 bits each, and one 32-bit scale for 256 of them.

# %%
single, double = 8 * memory.nf4_bytes(double_quant=False), 8 * memory.nf4_bytes()
print(f"bits per weight: {single:.3f}, with double quantization {double:.3f}")

# %% [markdown]
# ## 2 · "4-bit matrix multiplication"
#
# So the paper calls it (section 3). More exactly: *storage* is 4-bit, *arithmetic* is 16-bit. A matrix is unpacked, it
# multiplies, and the unpacked copy is thrown away. Here is an expert (专家) of the tiny model, by hand (in 32 bits, as this course does on every CPU).

# %%
from torch.nn.functional import silu

from aurora_lib.model import load_model
from aurora_lib.model import nf4 as packing

quantized = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
experts = quantized.model.layers[0].mlp.experts


def unpack(stack, expert):
    """One expert's matrix [out, in] from a packed stack: two codes in a byte, look-up, times absmax."""
    packed, state = packing.select(stack, expert)
    absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset  # undo double quantization
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    return (nf4[codes].view(-1, 64) * absmax[:, None]).view(state.shape)


def forward(x, expert):
    """x [rows, hidden] -> [rows, hidden]"""
    gate_up, down = (
        (getattr(experts, key), experts.quant_states[key]) for key in ("gate_up_proj", "down_proj")
    )
    gate, up = (x @ unpack(gate_up, expert).T).chunk(2, dim=-1)
    return (silu(gate) * up) @ unpack(down, expert).T


x = torch.randn(5, quantized.config.hidden_size)
theirs = experts(x, torch.full((5, 1), 3), torch.ones(5, 1))  # every row to expert 3, with weight 1
assert torch.allclose(forward(x, 3), theirs, atol=1e-4)
print("by hand and by the library: the same output of expert 3")

# %% [markdown]
# The unpacked matrix exists for a moment only. Remember it: in the budget it is part of *passing through*.
#
# ### The trap: experts that stay in 16 bits
#
# `load_in_4bit` quantizes `nn.Linear` modules. In transformers 5 the experts of a layer are two stacked tensors, not linear
# layers. So they stay as they are, without a warning. Stock loading and this course's `load_model`, side by side:

# %%
stock = AutoModelForCausalLM.from_pretrained(DATA / "tiny", quantization_config=packing.config(torch.float32))
for name, model in (("stock load_in_4bit", stock), ("load_model", quantized)):
    stack, parameter = next(iter(packing.expert_stacks(model).items()))
    print(f"{name:20} {stack} is {parameter.dtype}, {parameter.numel() * parameter.element_size():,} bytes")
trap = memory.predict(MIXTRAL, quantization="nf4-linear-only")
print(
    f"Mixtral-8x7B would then need {trap.weights:.1f} GiB for its weights, not {ours.weights:.1f} (predicted)"
)

# %% [markdown]
# ## 3 · LoRA: a frozen matrix and a thin detour
#
# ![The input x goes through the large frozen matrix W, in 4 bits, and through the thin trained detour A, then B; both results are added.](images/lora.svg)
#
# `y = W x + (alpha / r) B A x`, with `A [r, in]` and `B [out, r]`. `r` is the *rank*, here 8, and `alpha / r` a fixed factor. B
# starts at zero, so training starts exactly at the base model. By hand, beside PEFT, in the size of Mixtral's `q_proj`:

# %%
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear

frozen = torch.nn.Linear(4096, 4096, bias=False)
x = torch.randn(3, 4096)
wrapped = LoraLinear(frozen, "default", LoraConfig(r=8, lora_alpha=16), r=8, lora_alpha=16)
A, B = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
print("at the start the adapter changes nothing:", torch.equal(wrapped(x), frozen(x)))
torch.nn.init.normal_(B)
assert torch.allclose(wrapped(x), frozen(x) + (16 / 8) * x @ A.T @ B.T, atol=1e-3)
thin, whole = A.numel() + B.numel(), frozen.weight.numel()
print(f"matrix {whole:,} numbers, adapter {thin:,}: {thin / whole:.1%}")

# %% [markdown]
# ## 4 · The budget, line by line
#
# Now draw the budget as a bar. Every line is computed in bytes, from a few sizes of Mixtral-8x7B and of the batch. `show` compares each line with
# `memory.predict`, and draws what we have so far.

# %%
import matplotlib.pyplot as plt

GIB = 2**30
SHADES = ["#33508a", "#5b7bb4", "#8fa8d0", "#c3d0e6", "#111111", "#2a7f62", "#8cb369", "#f4a259", "#bc4b51"]
COLOURS = dict(zip(memory.predict(MIXTRAL, stack=memory.OF_2023).parts, [*SHADES, "#5b3a70"], strict=True))
budget = {}


def show():
    """Each line must be the library's, in GiB; then the bar so far, on the way to the paper's 45."""
    _, axes = plt.subplots(figsize=(9, 2.4), layout="constrained")
    left = 0
    for name, size in budget.items():
        assert abs(size / GIB - ours.parts[name]) < 0.001, (
            f"{name}: {size / GIB:.3f}, not {ours.parts[name]:.3f}"
        )
        axes.barh(0, size / GIB, left=left, color=COLOURS[name], label=f"{name} {size / GIB:.2f}")
        left += size / GIB
    for name in ("training", "training, README"):
        axes.axvline(paper.MEMORY[name].value, color="C3", linestyle="--")
    axes.set(xlim=(0, 48), yticks=[], xlabel="GiB, predicted; dashed: the paper and its README")
    axes.set_title(f"{left:.2f} GiB so far", loc="left", fontsize=10)
    axes.legend(fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.35))


# %%
H, inner, V = MIXTRAL.hidden_size, MIXTRAL.intermediate_size, MIXTRAL.vocab_size
layers, experts, k = MIXTRAL.num_hidden_layers, MIXTRAL.num_local_experts, MIXTRAL.num_experts_per_tok
keys = H // MIXTRAL.num_attention_heads * MIXTRAL.num_key_value_heads  # width of the keys, and of the values

in_experts = layers * experts * 3 * H * inner  # gate, up and down
in_attention = layers * (2 * H * H + 2 * H * keys)  # queries and output; keys and values
budget["experts"] = in_experts / 2  # half a byte each
budget["attention"] = in_attention / 2
budget["absmax"] = (in_experts + in_attention) * (1 / 64 + 4 / (64 * 256))
budget["rest"] = 2 * (
    2 * V * H + layers * (experts * H + 2 * H) + H
)  # embeddings, head, routers, norms: 16 bits
show()

# %% [markdown]
# Next, the adapter. For each of its weights, four numbers are kept in 32 bits: the weight, its gradient, and the two running means
# of Adam. That is 16 bytes. Because the adapter is so small, a smaller optimizer would save almost nothing.

# %%
rank = 8
budget["adapters, gradients, Adam"] = 16 * layers * rank * ((H + H) + (H + keys))  # q_proj and v_proj
show()

# %% [markdown]
# Then what the batch brings. *Gradient checkpointing* (梯度检查点) keeps one thing of each layer: its input. When the backward
# pass comes to a layer, that layer alone is computed again. So we need the inputs of all layers, and everything that *one* layer
# keeps for its backward pass.

# %%
tokens = 2 * 1024
budget["layer inputs"] = layers * tokens * H * 2  # 16 bits
kept = {
    "inputs of both norms, in 32 bits": 2 * 4 * H,
    "inputs of both adapters after dropout, with a byte of mask": 2 * (2 + 1) * H,
    "queries, keys, values, output of attention": 2 * (2 * H + 2 * keys),
    "residual, output of the second norm": 2 * 2 * H,
    "gate, up, SiLU and output of two experts": k * 2 * (3 * inner + H),
}
budget["one layer, recomputed"] = tokens * sum(kept.values())
show()
pd.Series(kept, name="bytes a token").to_frame()

# %% [markdown]
# Last, what passes through and is not kept. A *row* is the vector of one token. The gradient of the layer's output comes in. Rows are on
# their way into the experts. What the experts return is multiplied by the router weights in 32 bits, so its gradient has 32 bits too. Then
# comes the larger of two things that are never there together: one unpacked matrix, or the weighted rows themselves.

# %%
incoming = 2 * H * (1 + k)  # the gradient of the layer's output, and the rows that go into two experts
weighted = 4 * k * H  # expert rows times router weights, in 32 bits; their gradient is as large
unpacked = 2 * (2 * inner) * H  # gate and up of one expert, in 16 bits
budget["passing through"] = tokens * (incoming + weighted) + max(unpacked, tokens * weighted)
budget["logits beyond that"] = 0  # made for some tokens at a time, and gone before a layer is recomputed
show()
assert abs(sum(budget.values()) / GIB - ours.total) < 0.001

# %% [markdown]
# All lines are in, and the bar ends far left of the dashed lines. Each line is made of tensors that exist at the peak. Section 7 counts them. (The drawing at the top of
# this page joins the last two lines above zero.)
#
# ## 5 · The suspects
#
# The authors used other software: LLaMA-Factory and transformers of December 2023. `memory.OF_2023` describes it. It stores all
# attention scores, holds every expert in three layers of its own, and makes all logits in 32 bits. We ask each suspect: how many
# GiB do you explain at batch 2? The reserve of the allocator cannot be computed by a short formula. It was *counted*: section 7 says how.

# %%
from dataclasses import replace

from aurora_lib.course import results

counted, measured = (results.recorded("mixtral_8x7b", where) for where in ("counted", "h100"))


def of_2023(batch=2, stack=memory.OF_2023, **settings):
    return memory.predict(MIXTRAL, batch=batch, stack=stack, **settings).total


def without(batch=2, **field):
    return of_2023(batch, stack=replace(memory.OF_2023, **field))


explained = {
    "all logits, in 32 bits": of_2023() - without(whole_logits=False),
    "all attention scores": of_2023() - without(eager_attention=False),
    "a layer for every expert matrix": of_2023() - without(expert_layers=False),
    "no double quantization": of_2023(double_quant=False) - of_2023(),
    "no checkpointing": of_2023(checkpointing=False) - of_2023(),
}

# %%
label = "training, the stack of 2023: batch 2, varied lengths, {} [GiB]"
reserved, allocated = (counted[label.format(kind)] for kind in ("reserved", "allocated"))
explained["reserved, not used (counted)"] = reserved - allocated
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
bars = axes.barh(list(explained)[::-1], [max(size, 0) for size in explained.values()][::-1])
axes.bar_label(bars, fmt=" %.1f")
axes.axvline(missing, color="C3", linestyle="--", label=f"missing: {missing:.1f}")
axes.set(xlabel="GiB at batch 2, predicted; the last one counted", xlim=(-1, 40))
axes.set_title("How much does each suspect explain?")
axes.legend();
# %% [markdown]
# - **Logits** explain nothing. They are large, but they are gone before a layer is recomputed. The peak is elsewhere.
# - **A layer for every expert matrix** explains nothing either, at a batch of 2. More rows are kept, but the matrix that is unpacked is smaller.
# - **No checkpointing** explains too much: its bar goes far past the line. And by its sources LLaMA-Factory had checkpointing on.
# - **The other three together** explain a small part.
#
# At the published batch, nobody on the list took what is missing.
#
# ## 6 · One more suspect
#
# The released adapter lies beside the log of its run, `all_results.json`. Two of its numbers are speeds. Divide one by the other.

# %%
per_second, steps = paper.RUN["conversations a second"], paper.RUN["steps a second"]
print(f"{per_second.value} conversations a second / {steps.value} steps a second   ({per_second.source})")
least = (per_second.value - 0.0005) / (steps.value + 0.0005)  # both are rounded to three digits
most = (per_second.value + 0.0005) / (steps.value - 0.0005)
print(f"= {per_second.value / steps.value:.1f} conversations a step: between {least:.2f} and {most:.2f}")
published = paper.TRAINING["batch per device"].value * paper.TRAINING["gradient accumulation"].value
print(f"the published command makes {published:.0f}")

# %% [markdown]
# Only one whole number lies in that range: 32. That run made 32 conversations a step, not 8. The paper and the README say one GPU. Then 32 is a
# batch times an accumulation: 2 x 16, 4 x 8, 8 x 4, 16 x 2 or 32 x 1 (1 x 32 needs less than all of them). Accumulation costs no memory.
# The batch does.
#
# **Exercise 03.1, a prediction.** The bar of section 4 is for a batch of 2. How many GiB does this course's stack take at a batch of
# 16? Which lines of section 4 grow with the batch?

# %%
from aurora_lib import exercises

at_16 = ...
exercises.check("03.1", at_16)

# %% [markdown]
# <details><summary>Hint</summary>Weights and adapter stay. Everything that has <code>tokens</code> in it grows eight times. Mind the <code>max</code>.</details>
#
# Now the authors' stack, at each of the five batches. In grey, what the allocator reserves beyond that (counted, for batches of
# varied length; for 32 x 1 it was not counted).

# %%
colours = COLOURS | {"reserved, not used (counted)": "#d9d9d9"}
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
shown = {}
for place, batch in enumerate((2, 4, 8, 16, 32)):
    parts = dict(memory.predict(MIXTRAL, batch=batch, stack=memory.OF_2023).parts)
    label = f"training, the stack of 2023: batch {batch}, varied lengths, reserved [GiB]"
    if label in counted:
        parts["reserved, not used (counted)"] = counted[label] - sum(parts.values())
    shown[batch], bottom = parts, 0
    for name, size in parts.items():
        axes.bar(place, size, bottom=bottom, color=colours[name], label=name if batch == 16 else None)
        bottom += size
    axes.text(place, bottom + 0.5, f"{bottom:.1f}", ha="center", bbox=dict(facecolor="white", lw=0, pad=1))
    on_gpu = measured.get(f"training, the stack of 2023: batch {batch}, nvidia-smi [GiB]")
    if on_gpu is not None:
        axes.plot(place, on_gpu, "k_", markersize=40, label="nvidia-smi, measured" if batch == 16 else None)
for name in ("training", "training, README"):
    axes.axhline(paper.MEMORY[name].value, color="C3", linestyle="--")
axes.set_xticks(range(5), ["2 x 16", "4 x 8", "8 x 4", "16 x 2", "32 x 1"])
axes.set(
    xlabel="batch x accumulation",
    ylabel="GiB, predicted; grey: counted",
    ylim=(20, 54),
    title="The stack of 2023; dashed: the paper, README",
)
axes.legend(fontsize=7, bbox_to_anchor=(1, 1));
# %% [markdown]
# We assume that the authors read `nvidia-smi`; they do not say. It shows more than a bar, because it also counts the CUDA context and the
# workspaces of libraries. Then the bar we look for must end *below* the dashed lines. 32 x 1 ends above them. Of the others, **16 x 2** is
# the only one that comes near.
#
# ### The verdict
#
# The paper's run most likely had a batch of 16. About its other settings we know less. Here is the way from our figure to the paper's.

# %%
theirs, same_batch = shown[16], memory.predict(MIXTRAL, batch=16).total
way = {
    "our weights": ours.weights,
    "all else in ours, at a batch of 2": ours.total - ours.weights,
    "a batch of 16": same_batch - ours.total,
    "the software of 2023": of_2023(16) - same_batch,
    "what its allocator reserves (counted)": theirs["reserved, not used (counted)"],
    "not explained": paper.MEMORY["training"].value - sum(theirs.values()),
}
figure, axes = plt.subplots(figsize=(9, 2.2), layout="constrained")
ends = [sum(list(way.values())[:place]) for place in range(len(way))]
shades = [*SHADES[1:2], *SHADES[5:9], "white"]
bars = axes.barh(list(way), list(way.values()), left=ends, color=shades, edgecolor="grey")
axes.bar_label(bars, fmt=" %.1f", padding=1)
axes.invert_yaxis()
axes.set(xlim=(0, 52), xlabel="GiB, predicted; the reserve counted; the end is the paper's Table 4")
axes.set_title("From our figure to the paper's");

# %% [markdown]
# And line by line. The last line is counted: for the rebuilt run with batches of varied length, for ours with full ones.

# %%
mine = dict(ours.parts)
mine["reserved, not used (counted)"] = counted["training: batch 2, reserved [GiB]"] - ours.total
columns = {"rebuilt, predicted: 16 x 1024, stack of 2023": theirs, "ours, predicted: 2 x 1024, today": mine}
table = pd.DataFrame(columns).fillna(0)
table.loc["in all"] = table.sum()
table["difference"] = table.iloc[:, 0] - table.iloc[:, 1]
table.round(1)

# %% [markdown]
# **What speaks for it.** Two things speak for 32 conversations a step. One is the log's two speeds. The other is the last checkpoint, number
# 16,000: at 32 a step it lies near three epochs, as in the paper (next cell). Only memory speaks for 16 x 2: of the five batches, it comes
# nearest from below.
#
# **What a GPU says.** That stack was rebuilt from its sources, and its tensors were counted. It was then run on an H100, on today's libraries and with random
# weights: the next cell prints what nvidia-smi showed, context and workspaces included.
#
# **What remains unproven.** The paper does not say its batch. The log does not say the number of GPUs (their early README says one), nor that it belongs to the run of
# Table 4. Without double quantization (32-bit absmax) the bar would be
# higher. With FlashAttention it would be much lower, and 32 x 1 would come near before any reserve. So the verdict assumes eager
# attention. And if the authors read thousands of MiB as GiB, they used less than their figures say. The next cell has these numbers.
#
# **What would refute it.** A run of that stack that shows as much as the paper says at batch 2, or that does not come near it at batch 16.
# The H100 showed neither. Or the authors' own settings, if they name another batch.

# %%
conversations, last = paper.CONVERSATIONS["total"].value, paper.RUN["last checkpoint"].value
for a_step in (32, 8):
    print(f"{last:,} steps of {a_step:2} conversations: {last * a_step / conversations:.1f} epochs")
for name in ("training", "training, README"):
    stated = paper.MEMORY[name].value
    print(f"{name}: {stated:g} GiB, {stated - sum(theirs.values()):.1f} above our bar", end="; ")
    print(f"{1000 * stated:,.0f} MiB would be {1000 * stated / 1024:.1f} GiB")
for change in ("32-bit absmax", "FlashAttention"):
    bar = counted[f"training, the stack of 2023: batch 16, {change}, reserved [GiB]"]
    print(f"our bar with {change}: {bar:.1f} GiB (counted)")
for batch in ("batch 2", "batch 16, accumulation 2, varied lengths"):
    shown = measured.get(f"training, the stack of 2023: {batch}, nvidia-smi [GiB]", float("nan"))
    print(f"the stack of 2023 on an H100, {batch}: nvidia-smi {shown:.1f} GiB (measured, random weights)")
largest = without(batch=32, eager_attention=False)
print(f"32 x 1 with FlashAttention: {largest:.1f} GiB before any reserve (predicted)")

# %% [markdown]
# ### And the 25 GiB of inference?
#
# Nothing is kept for a backward pass, and no optimizer exists. What remains: weights, the keys and values of the conversation so far,
# and one layer at work. Predicted:

# %%
inference = memory.predict(MIXTRAL, train=False, batch=1, length=2048)
on_h100 = measured.get("inference: batch 1, nvidia-smi [GiB]", float("nan"))
print(f"nvidia-smi on an H100: {on_h100:.1f} GiB (measured, random weights)")
inference

# %% [markdown]
# The paper's figure is higher. Ours counts neither the CUDA context nor what loading leaves in the allocator. nvidia-smi counts both, and is nearer.
#
# ## 7 · Predicted, counted, measured
#
# How can one count without a GPU? PyTorch has a device called *meta*. A tensor there has a size and no data. So a full-size training
# step runs on a laptop, and every tensor that is made or freed is noted. `python -m tools.record.count` does it for both stacks. It then
# plays the list through a model of PyTorch's allocator. That gives what is *reserved*, here for steps in which every sequence has 1024 tokens. *Measured* needs an
# H100: `python -m tools.record.h100`.

# %%
rows = {}
for part, stack in (("training", memory.TODAY), ("training, the stack of 2023", memory.OF_2023)):
    for batch in (2, 4, 8, 16):
        predicted = memory.predict(MIXTRAL, batch=batch, stack=stack).total
        label = f"{part}: batch {batch}, {{}} [GiB]"
        on_gpu = label.replace("batch 2,", "batch 2, accumulation 4,") if part == "training" else label
        allocated = counted[label.format("allocated")]
        rows[f"{part}, batch {batch}"] = {
            "predicted": f"{predicted:.2f}",
            "counted": f"{allocated:.2f}",
            "off by, beyond the weights": f"{(predicted - allocated) / (allocated - ours.weights):+.1%}",
            "reserved, counted": f"{counted[label.format('reserved')]:.2f}",
            "measured": measured.get(on_gpu.format("allocated"), "not measured"),
            "nvidia-smi": measured.get(on_gpu.format("nvidia-smi"), "not measured"),
        }
pd.DataFrame.from_dict(rows, orient="index")

# %% [markdown]
# The formula and the count agree. They were made in different ways, under the same assumptions: every expert gets the same
# number of rows, and no sequence is padded. And here is a counted step, allocation by allocation: small
# teeth on a rising stair of layer inputs, then 32 large teeth, one for each recomputed layer. It is the drawing at the top of this page,
# at full size. On the right is the stack of 2023 at batch 16. Mind the different scales.

# %%
steps = {"ours, batch 2": "training: batch 2", "2023, batch 16": "training, the stack of 2023: batch 16"}
figure, axes = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
for ax, (name, label) in zip(axes, steps.items(), strict=True):
    step = results.recorded("mixtral_8x7b", "counted", "series")[label]
    ax.plot(step["alive"])
    ax.axvline(step["backward"], color="grey", linewidth=0.8)
    ax.text(step["backward"], min(step["alive"]), " backward begins", fontsize=8)
    ax.set(title=f"{name}: peak {max(step['alive']):.1f} GiB, counted", xticks=[], xlabel="allocations")
axes[0].set(ylabel="GiB alive")
if trainer := results.recorded("mixtral_8x7b", "h100", "series").get("training, SFTTrainer"):
    figure, ax = plt.subplots(figsize=(10, 2.8), layout="constrained")
    for name in ("used", "reserved"):
        ax.plot(trainer["seconds"], trainer[name], label=f"{name}, measured on an H100")
    ax.axhline(ours.total, color="black", linestyle="--", label="predicted")
    ax.set(xlabel="seconds", ylabel="GiB")
    ax.legend(fontsize=8)

# %% [markdown]
# ### On your machine
#
# The model of your scale, loaded: the bytes that its tensors really hold, beside the prediction.

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


in_memory = sum(held(p) for p in base.parameters()) / GIB
both = f"predicted {predicted * 1024:.2f} MiB, measured {in_memory * 1024:.2f} MiB"
print(f"weights: {both} ({in_memory / predicted - 1:+.1%})")

# %% [markdown]
# And two training steps, with random weights in a size for any laptop. On a GPU the line is what PyTorch has allocated, on a CPU the
# bytes of all tensors. Look for six teeth in each backward pass. The dashed line is computed from the sizes alone. The curve is sampled
# and can miss the peak; the title gives it. On a CPU the peak lies a little above the prediction, since dropout keeps larger masks there.

# %%
from peft import get_peft_model
from transformers import MixtralConfig

from aurora_lib.course import machine
from aurora_lib.model import random_model
from aurora_lib.training import adapters_in_fp32, lora_config

sizes = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8)
small = MixtralConfig(vocab_size=1000, **sizes, use_cache=False)
with machine.profile(scale.device) as timeline:
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

# %%
expected = memory.predict(small, batch=2, length=512, dtype=scale.loading["dtype"])
figure, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
ax.plot(timeline.seconds, [used / 2**20 for used in timeline.used], label="measured here")
ax.axhline(
    expected.total * 1024, color="black", linestyle="--", label=f"predicted {expected.total * 1024:.1f}"
)
for place, (seconds, phase) in enumerate(timeline.marks):
    ax.axvline(seconds, color="grey", linewidth=0.8)
    ax.text(
        seconds, 2 + 18 * (place % 3), f" {phase}", rotation=90, fontsize=8
    )  # three heights: a step is short
ax.set(xlabel="seconds", ylabel="MiB", ylim=(0, None), title=f"peak {timeline.peak * 1024:.1f} MiB")
ax.legend(loc="lower right", fontsize=8);
# %% [markdown]
# ### Before you rent
#
# `require` refuses what by its prediction cannot fit, before anything is loaded. It knows neither the allocator's reserve nor the CUDA context, so leave some
# GiB free. The sliders need a running notebook.

# %%
try:
    ours.require(16)
except memory.DoesNotFit as refusal:
    print(refusal)

# %%
import ipywidgets

choices = {
    "batch": ipywidgets.IntSlider(2, 1, 32, description="batch"),
    "length": ipywidgets.IntSlider(1024, 256, 8192, 256, description="length"),
    "rank": ipywidgets.IntSlider(8, 1, 64, description="LoRA rank"),
    "double_quant": ipywidgets.Checkbox(True, description="double quantization"),
    "checkpointing": ipywidgets.Checkbox(True, description="checkpointing"),
    "stack": ipywidgets.Dropdown(options={"today": memory.TODAY, "of 2023": memory.OF_2023}),
}
table = ipywidgets.HTML()


def look(_=None):
    chosen = memory.predict(MIXTRAL, **{name: choice.value for name, choice in choices.items()})
    table.value = f"<pre>{chosen}</pre>"


for choice in choices.values():
    choice.observe(look, "value")
look()
ipywidgets.VBox([*choices.values(), table])

# %% [markdown]
# ## Exercises
#
# **03.2 Build.** The largest batch of Mixtral-8x7B that trains in `gib` GiB, with sequences of `length` tokens. Return 0 where not
# even one sequence fits.

# %%
from aurora_lib import exercises


def largest_batch(gib, length):
    return ...


exercises.check("03.2", largest_batch)

# %% [markdown]
# <details><summary>Hint</summary>Count up from 1, and ask <code>memory.predict(MIXTRAL, batch=..., length=...).total</code> each time.</details>
#
# **03.3 Hunt.** This function should give the bytes that an adapter of `rank` takes in training: weights, gradients and Adam, all in 32
# bits, on `q_proj` and `v_proj` of every layer. It has two bugs. Write it again without them.
#
# ```python
# def adapter_bytes(rank, layers, hidden, keys):
#     q_proj = rank * (hidden + hidden)
#     v_proj = rank * (hidden + hidden)
#     return layers * (q_proj + v_proj) * 4 * 3
# ```

# %%
from aurora_lib import exercises


def adapter_bytes(rank, layers, hidden, keys):
    return ...


exercises.check("03.3", adapter_bytes)

# %% [markdown]
# <details><summary>Hint</summary>How wide is what <code>v_proj</code> returns? And how many numbers does section 4 count for each weight?</details>
#
# **03.4 Try.** Invent 16 levels that beat NF4 on this model's own weights: a smaller relative error over `everything`. No answer
# is on this page. Where do the weights lie, once each block is divided by its absmax?

# %%
from aurora_lib import exercises

my_levels = ...
exercises.check("03.4", my_levels)

# %% [markdown]
# <details><summary>Hint</summary>Start from NF4. Give every level all weights that are nearest to it. Move it to their mean. Repeat.</details>
#
# ## Paper, records and you

# %%
results.record(
    "03",
    {
        "Mixtral-8x7B training memory, predicted [GiB]": round(ours.total, 2),
        "the rebuilt run at batch 16, predicted and counted [GiB]": round(sum(theirs.values()), 2),
        "Mixtral-8x7B inference memory, predicted [GiB]": round(inference.total, 2),
        "Mixtral-8x7B weights, predicted [GiB]": round(ours.weights, 2),
        "adapter parameters of Mixtral-8x7B": ours.adapter_parameters,
        "NF4 error of the tiny model's weights [share]": round(
            (errors["NF4"].norm() / everything.norm()).item(), 4
        ),
        "blocks where even levels beat NF4 [share]": round(even_wins, 3),
        "weights of this scale's model, measured [GiB]": round(in_memory, 5),
    },
)
results.compare("03")

# %% [markdown]
# **In short.** NF4 is an absmax, sixteen levels and a look-up; the arithmetic stays 16-bit. `load_in_4bit` skips stacked experts, so check
# what was quantized. A budget is arithmetic: each line is made of tensors that exist at the peak. The paper's run most
# likely had a batch of 16, with the software of 2023 and eager attention. A part of its memory is still not explained. Ours has a batch of 2. All of this is
# predicted or counted. One H100 has confirmed the memory, with random weights.
#
# **Next:** [04 Fine-tune](04_finetune.ipynb). **Read:** QLoRA (2305.14314), LoRA (2106.09685).
