# %% [markdown]
# # 01 · Inside the router
#
# Paper: section 3, first paragraph. **After this notebook you can** turn a dense feed-forward block into a sparse one and back it with
# a test, say what Mixtral stores and what a token uses, tell what is fast about it, and look at the choices of a router (路由器)
# without reading more into them than a random router shows. Unless a sentence names another scale, its results are those of `tiny`.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("01")

# %% [markdown]
# ## From a dense block to a sparse one
#
# Every layer of a transformer has a *feed-forward block* (前馈块). Mixtral's is *gated*: two matrices to a wider space, one of them through SiLU as a gate on
# the other, and one matrix back. All tokens pass through the same three matrices.

# %%
import torch
import torch.nn.functional as F


def feed_forward(x, gate_up, down):
    """x [tokens, hidden]; gate_up [2 * intermediate, hidden]; down [hidden, intermediate]."""
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


torch.manual_seed(0)
feed_forward(torch.randn(3, 32), torch.randn(2 * 64, 32), torch.randn(32, 64)).shape

# %% [markdown]
# A *mixture of experts* (混合专家, MoE) has eight of these blocks, the *experts* (专家), and picks two of them for every token. The picking is done by one
# more matrix, the router. It gives each token a score (*router logit*) per expert. Every token fills two *slots*, one for each expert it
# chose. A toy case: three tokens, four experts. **Before you run the cell:** which
# two experts does token 2 get, and with about what weights?

# %%
import pandas as pd

pd.options.display.max_colwidth, pd.options.display.max_rows, pd.options.display.max_columns = 70, 200, 70
logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.1], [1.0, 1.1, 0.9, 1.2]])
probabilities = logits.softmax(dim=-1)
top, chosen = probabilities.topk(2, dim=-1)
weights = top / top.sum(dim=-1, keepdim=True)
pd.DataFrame(
    {
        "probabilities": [[round(p, 2) for p in row.tolist()] for row in probabilities],
        "experts": chosen.tolist(),
        "weights": [[round(w, 2) for w in row.tolist()] for row in weights],
    },
    index=["token 0", "token 1", "token 2"],
)

# %% [markdown]
# Token 1 is sure of expert 2. Token 2 hardly prefers any expert, and still exactly two experts run. That is what makes the layer
# *sparse*, and its cost constant.
#
# The Mixtral report writes it the other way round: first the top 2, then a softmax over those two logits. Is that another router?

# %%
kept, same = logits.topk(2, dim=-1)
ways = {"softmax, top-2, renormalise": weights, "top-2, softmax": kept.softmax(-1)}
ways["softmax, top-2, as it is"] = top
for name, pair in ways.items():
    print(f"{name:<28} {pair[0, 0]:.3f} {pair[0, 1]:.3f}")
assert torch.equal(same, chosen)
torch.testing.assert_close(weights, kept.softmax(-1))

# %% [markdown]
# It is the same one. Softmax keeps the order, so the same two win; and it divides all exponentials by one sum, which renormalising takes
# out again. Without renormalising (OLMoE, the model of `mid`, does not) the two ways differ, as the last line shows.
#
# ### The whole block
#
# Route, gather the tokens of each expert, run it, scatter the weighted results back.

# %%
def route(x, router, top_k):
    """x [tokens, hidden], router [experts, hidden] -> weights and experts, both [tokens, top_k]."""
    probabilities = (x @ router.T).softmax(dim=-1)
    top, chosen = probabilities.topk(top_k, dim=-1)
    return top / top.sum(dim=-1, keepdim=True), chosen


def loop(x, weights, chosen, gate_up, down):
    """One expert after the other.

    gate_up [experts, 2 * intermediate, hidden]; down [experts, hidden, intermediate].
    """
    output = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        token, slot = torch.where(chosen == expert)  # gather: who chose this expert, as first or as second?
        y = feed_forward(x[token], gate_up[expert], down[expert])
        output.index_add_(0, token, weights[token, slot, None] * y)  # scatter
    return output


def moe_block(x, router, gate_up, down, top_k=2, run=loop):
    """A sparse mixture-of-experts block: x [tokens, hidden] -> [tokens, hidden]."""
    weights, chosen = route(x, router, top_k)
    return run(x, weights, chosen, gate_up, down)

# %% [markdown]
# Is it the real thing? The library's own block gets the same random weights and the same input. Equal outputs are half of the proof: training
# needs equal *gradients* too, of the input, the router and the experts.

# %%
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

small = MixtralConfig(
    hidden_size=32, intermediate_size=64, num_local_experts=8, experts_implementation="eager"
)
library = MixtralSparseMoeBlock(small)
for parameter in library.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
parts = [library.gate.weight, library.experts.gate_up_proj, library.experts.down_proj]
x, goal = torch.randn(1, 10, 32, requires_grad=True), torch.randn(10, 32)

outputs = {"transformers": library(x)[0], "ours": moe_block(x[0], *parts)}
gradients = {name: torch.autograd.grad((y * goal).sum(), [x, *parts]) for name, y in outputs.items()}
pairs = zip(*([outputs[name], *gradients[name]] for name in outputs), strict=True)
names = ("output", "gradient of the input", "... the router", "... the experts, up", "... the experts, down")
for name, (one, other) in zip(names, pairs, strict=True):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    print(f"{name:<26} largest difference {(one - other).abs().max().item():.1e}")

# %% [markdown]
# What does a token teach the router? The choice itself has no gradient: a number is among the top 2 or it is not. Only the *weights* of the two chosen
# experts pass one on.

# %%
scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]], requires_grad=True)
top, chosen = scores.softmax(-1).topk(2)
(top / top.sum())[0, 0].backward()
print("gradient of the four logits:", [round(g, 3) + 0.0 for g in scores.grad[0].tolist()])

# %% [markdown]
# The experts that were not chosen get none. One that is never chosen learns nothing, and so tends to stay unchosen: we come back to that.
#
# ## 8 x 7B is not 56B
#
# The paper says "8 experts, each with 7 billion parameters". Only the feed-forward blocks exist eight times; attention and
# embeddings exist once. A formula, and the same model built on the *meta* device, where tensors have a shape but no memory:

# %%
from transformers import AutoModelForCausalLM

from aurora_lib.model import memory

MIXTRAL_8X7B = memory.MIXTRAL_8X7B


def parameters(config, experts):
    """Parameters by part, with this many experts in each layer."""
    h, layers = config.hidden_size, config.num_hidden_layers
    head = h // config.num_attention_heads
    return {
        "experts": layers * experts * 3 * h * config.intermediate_size,
        "attention": layers * 2 * h * head * (config.num_attention_heads + config.num_key_value_heads),
        "routers": layers * h * config.num_local_experts,
        "norms": (2 * layers + 1) * h,
        "embedding and head": 2 * h * config.vocab_size,
    }


with torch.device("meta"):
    mixtral = AutoModelForCausalLM.from_config(MIXTRAL_8X7B)
columns = {"stored": 8, "used by one token": 2, "with a single expert": 1}
sizes = pd.DataFrame({column: parameters(MIXTRAL_8X7B, experts) for column, experts in columns.items()})
sizes["8 x with a single expert"] = 8 * sizes["with a single expert"]
stored, active = int(sizes["stored"].sum()), int(sizes["used by one token"].sum())
assert stored == sum(p.numel() for p in mixtral.parameters())
sizes.loc["total"] = sizes.sum()
(sizes / 1e9).round(2)

# %% [markdown]
# In billions. "7B" is about a model with a single expert, and eight of those would repeat attention and embeddings eight times, which Mixtral does
# not. So it is *stored* that decides how much memory you need (every expert must be there: the next token may want any of them), and
# *used* how much arithmetic a token costs: two operations, a multiplication and an addition, for every weight in a matrix. Embeddings are looked up and
# cost nothing. PyTorch counts the operations of a small model to check this:

# %%
from torch.utils.flop_counter import FlopCounterMode


def flops(config, experts=2):
    """Operations per token in matrices; the attention scores, which grow with the context, come on top."""
    used = parameters(config, experts)
    return 2 * (sum(used.values()) - used["norms"] - config.hidden_size * config.vocab_size)


shape = dict(vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
heads = dict(num_attention_heads=4, num_key_value_heads=2)
small = MixtralConfig(**shape, **heads, experts_implementation="eager")
with torch.no_grad(), FlopCounterMode(display=False) as counter:
    AutoModelForCausalLM.from_config(small)(torch.arange(10)[None], use_cache=False)
counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm] / 10
assert counted == flops(small)
print(f"the small model: {counted:,.0f} operations a token, counted and by the formula")
sparse, dense = flops(MIXTRAL_8X7B) / 1e9, flops(MIXTRAL_8X7B, 8) / 1e9
print(f"Mixtral-8x7B: {sparse:.1f} GFLOPs a token; if all eight experts ran, {dense:.1f}")

# %% [markdown]
# ## When experts are full
#
# Now a trained model: this scale's base. It reads facts in both languages, and `routing.trace_many` keeps what every router chose.

# %%
from aurora_lib import evaluation, routing
from aurora_lib.model import load_model, load_tokenizer

base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
texts = [fact[side]["answer"] for fact in evaluation.load_probes()[::4] for side in ("zh", "en")]
trace = routing.trace_many(base, tokenizer, texts)
print(f"{len(texts)} texts, {len(trace.tokens)} tokens, {len(trace.layers)} layers,", end=" ")
print(f"{trace.experts.shape[-1]} of {trace.logits.shape[-1]} experts a token")

# %% [markdown]
# Who gets how much? The *load* (负载) of an expert is its share of the token slots; a perfectly balanced layer would show the same number in every cell.

# %%
load = routing.expert_load(trace)
routing.pictures.plot_load(load)
idle = [(trace.layers[layer], expert) for layer, expert in (load == 0).nonzero().tolist()]
print(f"experts that serve no slot at all: {len(idle)}, such as (layer, expert) {idle[:5]};", end=" ")
print(f"the busiest serves {load.max().item():.0%} of its layer's")

# %% [markdown]
# Mixtral's experts take every token sent to them. Systems that spread experts over many GPUs often cannot: each expert has a buffer of fixed size, its *capacity* (容量),
# and what does not fit is *dropped*: that expert adds nothing to the token. A capacity factor of 1.0 is just enough room if all
# experts are chosen equally often. **Before you run the cell:** guess the share dropped at 1.0.

# %%
import math


def dropped(chosen, experts, factor):
    """Share of token slots that find their expert full, first come, first served: chosen [tokens, top_k]."""
    capacity = math.ceil(factor * chosen.numel() / experts)
    too_many = (torch.bincount(chosen.flatten(), minlength=experts) - capacity).clamp(min=0)
    return too_many.sum().item() / chosen.numel()


factors = (1.0, 1.25, 1.5, 2.0, 3.0)
experts = trace.logits.shape[-1]
drops = {f"factor {f}": [dropped(chosen, experts, f) for chosen in trace.experts] for f in factors}
pd.DataFrame(drops, index=[f"layer {layer}" for layer in trace.layers]).map("{:.1%}".format)

# %% [markdown]
# Room costs memory and idle arithmetic; too little of it costs tokens. The layers differ because their *loads* do.
#
# ### The load-balancing loss
#
# Left alone, a router tends to send everything to a few experts (Shazeer et al. 2017, section 4). Pre-training adds a penalty, an *auxiliary loss* (辅助损失):
#
# > experts × Σ over e of (share of tokens that choose e) × (mean probability of e)
#
# It equals `top_k` (2 for Mixtral, 8 for OLMoE) when all experts work alike, and usually grows with imbalance. The share is counted and has no gradient; the mean probability has one,
# for *every* expert. That is how the forgotten ones are reached.

# %%
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def balance_loss(logits, top_k=2):
    """logits [tokens, experts]"""
    probabilities = logits.softmax(-1)
    chosen = torch.zeros_like(logits).scatter_(1, probabilities.topk(top_k).indices, 1.0)
    return logits.shape[1] * (chosen.mean(0) * probabilities.mean(0)).sum()


experts, top_k = trace.logits.shape[-1], trace.experts.shape[-1]
pooled = balance_loss(trace.logits.flatten(0, 1), top_k)
torch.testing.assert_close(pooled, load_balancing_loss_func(tuple(trace.logits), experts, top_k))
by_layer = [balance_loss(logits, top_k).item() for logits in trace.logits]
print(f"all layers together, as the library does it: {pooled.item():.2f}")
print(f"layer by layer: {[round(v, 2) for v in by_layer]}")

# %% [markdown]
# The library pools the tokens of all layers before it multiplies, and its one number looks better than the worst layers are. Is that safe? Two layers, made up: in the first nobody uses experts 4 to 7, in the second
# nobody uses 0 to 3.

# %%
first = torch.randn(1000, 8) + torch.tensor([9.0] * 4 + [0.0] * 4)
second = torch.randn(1000, 8) + torch.tensor([0.0] * 4 + [9.0] * 4)
print(f"each layer alone: {balance_loss(first).item():.2f} and {balance_loss(second).item():.2f}")
together = load_balancing_loss_func((first, second), 8, 2)
print(f"pooled, by the library: {together.item():.2f}, and 2 is perfect balance")

# %% [markdown]
# Half of the experts of each layer do nothing, and the pooled loss finds nothing wrong: one layer's neglected expert is another layer's favourite.
#
# Does it happen in training? Two small Mixtrals read the same text from the same start. One had the pooled loss, the other the loss of each layer on its own
# (`tools/record/balance.py`, recorded). **Before you run the cell:** in which of them does some expert get hardly any work?

# %%
import json

import matplotlib.pyplot as plt

from aurora_lib.course import results

recorded = json.loads((results.RECORDED / "tiny" / "balance.json").read_text(encoding="utf-8"))
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharey=True)
for ax, name in zip(axes, ("pooled over layers", "each layer alone"), strict=True):
    shares = recorded[name]["load"]
    for layer, load_of in enumerate(shares):
        ax.plot(sorted(load_of), marker="o", label=f"layer {layer}")
    ax.axhline(1 / len(shares[0]), color="grey", linestyle="--")
    ax.set(title=f"{name}; text loss {recorded[name]['text']:.2f}", xlabel="experts, least busy first")
axes[0].set(ylabel="share of the slots")
axes[1].legend(fontsize="small");

# %% [markdown]
# Pooled, a few experts of most layers do nearly all the work, and some get none. With a loss for each layer, all of them work. Balance has a price: after these
# few steps the text loss is a little higher. What it buys is capacity: an expert without tokens is memory that learns nothing. So watch it layer by layer. (The
# tiny model of this course was trained with the loss of each layer alone.)
#
# Two relatives, a line each. The *router z-loss* (ST-MoE) keeps logits small, so that their softmax stays exact in low precision. *Jitter* multiplies what
# the router reads by noise in training, so that close decisions fall both ways now and then (here: in the block from above). Mixtral's config turns it off.

# %%
z_loss = trace.logits.logsumexp(-1).square().mean(-1)
print(f"z-loss by layer, before its small factor: {[round(v, 1) for v in z_loss.tolist()]}")
x = torch.randn(1000, 32)
jittered = x * torch.empty_like(x).uniform_(1 - 0.1, 1 + 0.1)
calm, shaken = (route(each, library.gate.weight, top_k=2)[1].sort().values for each in (x, jittered))
print(f"jitter of 0.1 changes the experts of {(calm != shaken).any(-1).float().mean():.0%} of tokens")
print(f"jitter in Mixtral's config: {MIXTRAL_8X7B.router_jitter_noise}")

# %% [markdown]
# ## What is fast about it, and what is not
#
# The same result, computed in two more ways. *Grouped*: sort the slots by expert, so that each expert's tokens lie side by side, and give
# all groups to one kernel (a program that the processor or the GPU runs as one piece; Jupyter's kernel is something else). *Batched*: pad every expert's tokens to the longest group, and multiply all experts at once.

# %%
def grouped(x, weights, chosen, gate_up, down):
    """Sort the slots by expert; one grouped multiplication for all experts."""
    order = chosen.flatten().argsort(stable=True)
    token = order // chosen.shape[1]
    ends = torch.bincount(chosen.flatten(), minlength=len(gate_up)).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    return torch.zeros_like(x).index_add_(0, token, weights.flatten()[order, None] * y)


def batched(x, weights, chosen, gate_up, down):
    """Pad every expert's tokens to the longest group; one batched multiplication, padding included."""
    order = chosen.flatten().argsort(stable=True)
    token, expert = order // chosen.shape[1], chosen.flatten()[order]
    counts = torch.bincount(expert, minlength=len(gate_up))
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert]
    rows = x.new_zeros(len(gate_up), int(counts.max()), x.shape[1])
    rows[expert, place] = x[token]
    gate, up = (rows @ gate_up.mT).chunk(2, dim=-1)
    y = ((F.silu(gate) * up) @ down.mT)[expert, place]
    return torch.zeros_like(x).index_add_(0, token, weights.flatten()[order, None] * y)

# %% [markdown]
# All three on the same input: a block of eight experts on the CPU, from one token (a model *writing*, 解码) to a thousand (a model *reading* its prompt). A *roofline*
# says what no program can beat: the weights of every expert in use must be read once, and every operation must be done. Both speeds are measured here first,
# at their best of fifty.

# %%
import time

hidden, inner, experts, width = 512, 1024, 8, 4  # width: bytes of a float32


other_layers = torch.ones(2**24)


def seconds(work, *arguments, repeats=7):
    """The best of a few, each with cold caches: in a model, the weights of other layers come in between."""
    times = []
    for _ in range(repeats):
        other_layers.sum()
        begin = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - begin)
    return min(times)


router, *stacks = [
    0.05 * torch.randn(experts, *shape) for shape in ((hidden,), (2 * inner, hidden), (hidden, inner))
]
many, matrix = torch.randn(1024, hidden), torch.randn(hidden, 2 * inner)
speed = 2 * many.numel() * matrix.shape[1] / seconds(torch.matmul, many, matrix, repeats=50)
bandwidth = stacks[0].numel() * width / seconds(torch.sum, stacks[0], repeats=50)
print(f"this machine: {speed / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
print(f"in the time of reading a byte it does {speed / bandwidth:.1f} operations")

# %%
rows = []
for tokens in (1, 4, 16, 64, 256, 1024):
    x = torch.randn(tokens, hidden)
    weights, chosen = route(x, router, 2)
    used = len(chosen.unique())
    row = {"tokens": tokens, "experts in use": used, "operations a byte": tokens * 2 * 2 / (used * width)}
    for run in (loop, grouped, batched):
        given = (x, weights, chosen, *stacks)
        torch.testing.assert_close(run(*given), loop(*given), rtol=1e-3, atol=1e-4)
        row[run.__name__] = 1e3 * seconds(run, *given)
    row["reading"] = 1e3 * used * 3 * hidden * inner * width / bandwidth
    row["arithmetic"] = 1e3 * tokens * 2 * 2 * 3 * hidden * inner / speed
    rows.append(row)
timed = pd.DataFrame(rows).set_index("tokens")
timed.round(2)

# %% [markdown]
# Milliseconds, from `loop` on; the last two are the roofline. Where `operations a byte` is below what the machine does in the time of reading a byte, reading
# decides; above it, arithmetic does.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name in ("loop", "grouped", "batched"):
    axes.plot(timed.index, timed[name], "o-", label=name)
axes.plot(timed.index, timed["reading"], "k--", label="reading the weights")
axes.plot(timed.index, timed["arithmetic"], "k:", label="arithmetic")
axes.set(xscale="log", yscale="log", xlabel="tokens in the batch", ylabel="milliseconds")
axes.set_title("One block of eight experts, this machine")
axes.set_xticks(timed.index, timed.index)
axes.minorticks_off()
axes.legend(bbox_to_anchor=(1, 1));

# %% [markdown]
# On the left the dashed line is the higher one: few tokens share the cost of reading the weights, and the processor waits for memory. On the right the
# dotted one is: there sparsity saves what it promises. In between, nearly all experts are in use already: all eight are read, and each token still computes
# with two. Between the two lines (dashed and dotted) and the programs lies what we did not take apart: sorting, copying, starting kernels. `batched` reads all eight experts even for one token, and later multiplies padding; `loop` and
# `grouped` do the same work here, but on a GPU the loop starts many small kernels and waits for each count, where grouping starts one. For Mixtral on an
# H100, from its data sheet:

# %%
h100 = 989e12 / 3.35e12  # operations a second in bf16, bytes a second
for tokens in (1, 16, 256, 4096):
    used = 8 * (1 - (1 - 2 / 8) ** tokens)  # expected, if routing were balanced
    intensity = tokens * 2 * 2 / (used * 2)  # 2 experts x 2 operations, against weights of 2 bytes
    side, bound = ("below", "memory") if intensity < h100 else ("above", "arithmetic")
    print(f"{tokens:>5} tokens: {used:.1f} experts read, {intensity:>5.0f} operations a byte,", end=" ")
    print(f"{side} {h100:.0f}: bound by {bound}")
print(f"crossing at about {h100 * 8 * 2 / 4:,.0f} tokens")

# %% [markdown]
# So a single chat leaves most of a GPU's arithmetic idle. Weights stored in fewer bytes can make it faster, if the program reads them in that short form (notebook 03).
#
# ## Watching a real router
#
# Each token below carries the number of its first expert, the one with the larger weight, in layer 0 (in Jupyter also its colour; GitHub shows no colours).
# `<s>` marks the start of a text in Mixtral's format, and ▁ stands for a space. A character that is no piece of its own is shown as its bytes.

# %%
from IPython.display import HTML

sentence = routing.trace(base, tokenizer, "法国的首都是巴黎。 The capital of France is Paris. 龘")
HTML(routing.pictures.tokens_to_html(sentence, layer=0))

# %% [markdown]
# One sentence is too little to draw a conclusion. So far we counted all texts together. Now we count Chinese (zh) and English (en) texts separately.
#
# ### Is there a Chinese expert?
#
# In the figure, look for an expert with a tall bar for one language and a short one for the other. The black lines are 95 % confidence intervals; texts, not tokens,
# count as independent. The dotted line is a balanced load.

# %%
from aurora_lib.data import language
from aurora_lib.routing import baselines, statistics

languages = [language(text) for text in texts]
last = len(trace.layers) - 1
routing.pictures.plot_groups(trace, languages, layers=sorted({0, last // 2, last}));

# %% [markdown]
# Where intervals do not overlap, the two languages seem to be routed differently. But a router with *random* weights does that too. Different tokens go to
# different experts, and Chinese texts have different tokens. So we put all experts of a layer into one number, the *load gap*: what share of the Chinese slots
# would have to go to other experts, for the Chinese load to equal the English one? (Its name in statistics is total variation distance.)
#
# A *baseline* (基线) is a number to compare with. We use two. *Shuffled texts*: the routing stays, and the labels zh and en are shuffled between the texts.
# *Random routers*: the same model 19 times, one after the other, each time with other random router weights, reads the same texts. Each baseline has a *bound* for every layer. One more shuffle,
# or one more random router, would be above it in at least one layer about one time in 20.

# %%
twins = (baselines.random_router(base, seed) for seed in range(19))
random_routers = [routing.trace_many(twin, tokenizer, texts) for twin in twins]
gap = statistics.load_gap(trace, languages, random_routers)
gap.table().round(3)

# %% [markdown]
# Each row is a layer: first our router, then mean and bound of each baseline. In the lines below, *draws* are the shuffles or the random routers. Which layers
# are above the bounds?

# %%
print(gap)

# %% [markdown]
# Compare with the *bounds*, not with the means. In a layer above the bound of *shuffled texts*, the two languages are routed differently. If the layer is above
# the bound of *random routers* too, the difference is larger than random routers explain: this router has probably learnt to treat the languages differently.
# If not, different tokens may be the whole reason. Then we cannot say that the router learnt it, and we cannot say the opposite either: nineteen random
# routers give only a rough bound.
#
# In a model with random routers, each token goes to other experts. So from the second layer on, its routers read other inputs than ours. Only in the first layer
# (layer 0) do both read the same: trust the comparison there most. Random routers also share the load less evenly, which can make their difference larger.
#
# If random routers show an "expert for Chinese" as well, it is no sign of training. (The Mixtral report looked for experts by topic in the large model. It saw
# no clear ones, but it saw patterns of syntax.)
#
# ## What tuning moved
#
# Our tuning (QLoRA, notebook 03) does not train the router: it is *frozen* (冻结). It trains an *adapter* (适配器), small extra matrices in the attention layers.
# So the router's weights stay, but its input changes. We take the adapter from notebook 04, yours or a ready-made one (at `full` the authors' own; at `mid` there is none until 04 has run, and until then all shares below are 0), and read the same texts
# again. What share of the slots has another expert?
#
# Almost any change of weights moves some slots, so we need a baseline here too. *Random changes*: 19 adapters of random numbers. In each matrix the change is
# built in the same way as the trained one (notebook 03) and has the same size (Frobenius norm).

# %%
from peft import get_peft_model

from aurora_lib.model import AdapterError, find_adapter, load_adapter
from aurora_lib.training import lora_config

try:
    tuned = load_adapter(base, find_adapter(scale))
except AdapterError as missing:
    print(missing, "Until then a new one, which changes nothing, stands in for it.")
    tuned = get_peft_model(base, lora_config()).eval()
after = routing.trace_many(tuned, tokenizer, texts)
changed = []
for seed in range(19):
    with baselines.random_adapter(tuned, seed):
        changed.append(routing.trace_many(tuned, tokenizer, texts))
share, low, high = statistics.moved(trace, after)
by_chance = torch.stack([statistics.moved(trace, other)[0] for other in changed])

# %%
figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
limit, errors = statistics.bound(by_chance), torch.stack([share - low, high - share])
layers = torch.tensor(trace.layers)
ax.plot(layers, by_chance.T, ".", color="0.7", label=["random changes"] + ["_"] * (len(by_chance) - 1))
ax.hlines(limit, layers - 0.25, layers + 0.25, color="0.3", label="bound of random changes")
ax.errorbar(layers, share.numpy(), errors.numpy(), fmt="o", capsize=4, label="tuning, 95 % interval")
ax.set(xlabel="layer", ylabel="slots with another expert [share]", ylim=(0, None))
ax.set_xticks(layers[:: -(-len(layers) // 16)])
ax.legend(bbox_to_anchor=(1, 1), loc="upper left");

# %% [markdown]
# Each large point is a layer. Its bar is the 95 % interval: how much the value would vary with other texts. Each small grey point is one random change, and the
# grey line is their bound. A large point below the line does not stand out from random changes. A large point above it does. If its interval still reaches below
# the line, be careful: with other texts the point could lie below.
#
# A slot has moved if its expert no longer works on the token. An exchange of first and second expert does not count. A token has `top_k` slots (two in Mixtral), so the share of
# tokens with a changed expert can be up to `top_k` times as large. An expert with a small weight changes easily.
#
# ## The explorer
#
# Type Chinese or English and press Enter. Tab goes on to the button, the layer and the model. `random` is the base with random routers; most of its tokens
# have another first expert, as is to be expected. Here only the *first* expert is compared; above, all chosen ones were. On a page without a running Python (GitHub, for example),
# use the static version below; it shows layer 1.

# %%
from IPython.display import display

untuned = routing.WithoutAdapter(tuned)  # the base, without a second copy of the weights
models = {"base": untuned, "tuned": tuned, "random": baselines.random_router(untuned)}
display(routing.explorer.widget(models, tokenizer))
HTML(routing.explorer.to_html(models, tokenizer, layer=1))

# %% [markdown]
# ## Exercises
#
# **01.1** Write the router: logits `[tokens, experts]` to `(weights, experts)`, both `[tokens, 2]`.

# %%
from aurora_lib import exercises


def top2(logits):
    return ...


exercises.check("01.1", top2)

# %% [markdown]
# <details><summary>Hint</summary>softmax, <code>topk</code>, divide by the sum of what was kept.</details>
#
# **01.2** How many billion parameters of Mixtral-8x7B does one token use? The function `parameters` above gives it away; do it with pencil and paper from the sizes in
# `MIXTRAL_8X7B`, and see whether you forget a part.

# %%
billions = ...
exercises.check("01.2", billions)

# %% [markdown]
# <details><summary>Hint</summary>Per layer: attention (q and o 4096 x 4096, k and v 4096 x 1024), the router, and two experts of
# 3 x 4096 x 14336. Then embedding and head, 32,000 x 4096 each.</details>
#
# **01.3** Write the load-balancing loss for logits `[tokens, experts]`, from the formula and without looking.

# %%
def balance(logits, top_k):
    return ...


exercises.check("01.3", balance)

# %% [markdown]
# <details><summary>Hint</summary>One factor counts choices, the other averages probabilities. Divide the counts by the number of
# tokens.</details>
#
# ## Paper, records and you

# %%
from aurora_lib.course import results


def mean(values):
    return round(torch.as_tensor(values).mean().item(), 3)


results.record(
    "01",
    {
        "Mixtral-8x7B stored parameters": stored,
        "Mixtral-8x7B parameters used per token": active,
        "lowest expert load [share]": round(load.min().item(), 3),
        "highest expert load [share]": round(load.max().item(), 3),
        "slots dropped at capacity factor 1.0, mean of layers [share]": mean(drops["factor 1.0"]),
        "load that differs between zh and en, mean of layers [share]": mean(gap.value),
        "load that differs between zh and en, random routers [share]": mean(gap.baselines["random routers"]),
        "slots moved by tuning, mean of layers [share]": mean(share),
        "slots moved by random changes, mean of layers [share]": mean(by_chance),
    },
)
results.compare("01")

# %% [markdown]
# **In short.** A router is one matrix, a softmax and a top-2. From the language-model loss it learns only through the weights of the experts it chose; the balance
# loss reaches the others too. Two experts of eight run for each token: you store all, and compute with about a quarter. With few tokens at a time, as in a single
# chat, reading the weights decides; with many, as in a long prompt, arithmetic does. A balance loss pooled over layers can hide an unbalanced layer. A difference
# between two languages says something about a router's training only if it is above the bound of random routers. What tuning moved counts only if it is above
# the bound of random changes.
#
# **Next:** [02 Chinese data](02_chinese_data.ipynb). **Read:** Shazeer et al. 2017 (1701.06538), the Mixtral report (2401.04088).
