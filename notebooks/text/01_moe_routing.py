# %% [markdown]
# # 01 · Inside the router
#
# Paper: section 3, first paragraph. **After this notebook you can** write a sparse Mixture-of-Experts block and prove it right, say what it costs,
# explain why experts starve and what keeps them alive, and compare a router with chance before you believe in it.
#
# ![A token's vector goes to the router, which scores eight experts; the best two run, and their weighted outputs are added.](images/router.svg)
#
# Unless a sentence names another scale, results are those of `tiny`.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("01")

# %% [markdown]
# ## Build it
#
# Every layer of a transformer has a *feed-forward block* (前馈块). Mistral 7B's is *gated*. Two matrices, stacked in `gate_up`, make the vector wider. The first half,
# through SiLU (a smooth ReLU), multiplies the second. `down` brings it back. Every token passes through the same block: it is *dense*.
#
# A *mixture of experts* (混合专家, MoE) has eight such blocks, the *experts* (专家). One more matrix, the *router* (路由器), gives each token a score per
# expert, its *router logits*. The best two run: a token fills two *slots* (槽位). Softmax makes weights of the scores; the two that are kept are divided by their sum.
#
# Three tokens, four experts. **Before you run the cell:** which experts does the last token get, and with about what weights?

# %%
import pandas as pd
import torch
import torch.nn.functional as F


def feed_forward(x, gate_up, down):
    """x [tokens, hidden]; gate_up [2 * intermediate, hidden]; down [hidden, intermediate]."""
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.1], [1.0, 1.1, 0.9, 1.2]])
probabilities = logits.softmax(dim=-1)
top, chosen = probabilities.topk(2, dim=-1)
weights = top / top.sum(dim=-1, keepdim=True)
rows = zip(probabilities, chosen, weights, strict=True)
pd.DataFrame(
    [[[round(number, 2) for number in part.tolist()] for part in row] for row in rows],
    columns=["probabilities", "experts", "weights"],
    index=["token 0", "token 1", "token 2"],
)

# %% [markdown]
# Token 1 is sure of expert 2. The last one hardly prefers any, and still exactly two run. So every token costs the same.
#
# **01.1 (build)** Write the whole block: route, *gather* the tokens of each expert, run it, and *scatter* the weighted results back. The checker
# compares outputs and gradients with the block of `transformers`.

# %%
from aurora_lib import exercises


def moe_block(x, router, gate_up, down, top_k=2):
    """x [tokens, hidden]; router [experts, hidden]; gate_up [experts, 2 * intermediate, hidden];
    down [experts, hidden, intermediate] -> [tokens, hidden]."""
    return ...


exercises.check("01.1", moe_block)

# %% [markdown]
# <details><summary>Hint</summary>Loop over the experts. <code>torch.where(chosen == expert)</code> gives the tokens that chose it, and whether as first or
# second. <code>index_add_</code> adds rows at places.</details>
#
# One solution, which the rest of the page uses. **Scroll on only after your try:**

# %%
def route(logits, top_k=2):
    """logits [tokens, experts] -> weights and experts, both [tokens, top_k]."""
    top, chosen = logits.softmax(dim=-1).topk(top_k, dim=-1)
    return top / top.sum(dim=-1, keepdim=True), chosen


def run_experts(x, weights, chosen, gate_up, down):
    output = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        token, place = torch.where(chosen == expert)  # gather
        y = feed_forward(x[token], gate_up[expert], down[expert])
        output.index_add_(0, token, weights[token, place, None] * y)  # scatter
    return output


def moe(x, router, gate_up, down, top_k=2):
    return run_experts(x, *route(x @ router.T, top_k), gate_up, down)

# %% [markdown]
# Is it the real thing? The library's own block gets the same random weights and input. Equal outputs are half of the proof. Training needs equal
# *gradients* too. And what does a token teach the router? A *choice* has no gradient: an expert is among the best two or it is not. Only the weights pass one
# on. **Before you run the cell:** the first expert's weight depends on how many of the four logits?

# %%
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

sizes = dict(hidden_size=32, intermediate_size=64, num_local_experts=8)
library = MixtralSparseMoeBlock(MixtralConfig(**sizes, experts_implementation="eager"))
for parameter in library.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
parts = [library.gate.weight, library.experts.gate_up_proj, library.experts.down_proj]
torch.manual_seed(0)
x, goal = torch.randn(1, 10, 32, requires_grad=True), torch.randn(10, 32)
outputs = {"transformers": library(x)[0], "ours": moe(x[0], *parts)}
gradients = {name: torch.autograd.grad((y * goal).sum(), [x, *parts]) for name, y in outputs.items()}
both = zip(*([outputs[name], *gradients[name]] for name in outputs), strict=True)
names = ("output", "gradient of the input", "... the router", "... the experts, up", "... the experts, down")
for name, (theirs, ours) in zip(names, both, strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    print(f"{name:<26} largest difference {(ours - theirs).abs().max().item():.1e}")

scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]], requires_grad=True)
first_weight = route(scores)[0][0, 0]
first_weight.backward()
print("its gradient for the four logits:", [round(g, 3) + 0.0 for g in scores.grad[0].tolist()])

# %% [markdown]
# The two that were not chosen get nothing. (Without the division by the sum their logits would get a little; the experts themselves, nothing.) An expert that is
# never chosen never learns.
#
# ## What it costs
#
# The paper says "8 experts, each with 7 billion parameters". Is that 56 billion?
#
# **01.2 (predict)** How many billion parameters does *one token* use? On paper, before the next cell computes it: hidden 4096, intermediate 14336,
# 32 layers, vocabulary 32,000; q and o are 4096 x 4096, k and v 4096 x 1024.

# %%
billions = ...
exercises.check("01.2", billions)

# %% [markdown]
# <details><summary>Hint</summary>Per layer: attention, the router, and two experts of 3 x 4096 x 14336. Then embedding and head, 32,000 x 4096
# each.</details>

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


with torch.device("meta"):  # tensors with a shape and no memory
    mixtral = AutoModelForCausalLM.from_config(MIXTRAL_8X7B)
columns = {"stored": 8, "used by one token": 2, "with a single expert": 1}
table = pd.DataFrame({name: parameters(MIXTRAL_8X7B, experts) for name, experts in columns.items()})
stored, active = int(table["stored"].sum()), int(table["used by one token"].sum())
assert stored == sum(p.numel() for p in mixtral.parameters())
table.loc["total"] = table.sum()
(table / 1e9).round(2)

# %% [markdown]
# In billions. "7B" is about the last column, and attention and embeddings exist once, not eight times.
#
# ![Two fields to scale: memory holds eight experts, attention, embedding and head; one token uses two of the experts, and all the rest.](images/stored.svg)
#
# *Stored* decides how much memory you need: the next token may want any expert. *Used* decides how much arithmetic a token costs.
#
# So does a sparse block save *time*? Three blocks on this CPU: ours with eight experts, a dense one as large as all eight, and a dense one as large as the
# two that run. One token is a model *writing*; a thousand is a model *reading* its prompt. **Before you run the cells:** at which end is the sparse block as fast as
# the small dense one, and where does it come nearest to the large one?

# %%
import time

hidden, inner, experts = 512, 1024, 8
other_layers = torch.ones(2**24)


def milliseconds(work, repeats=7):
    """The best of a few, each with cold caches: in a model, other layers come in between."""
    times = []
    for _ in range(repeats):
        other_layers.sum()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def weights_of(*shapes):
    return [0.05 * torch.randn(shape) for shape in shapes]

# %%
import matplotlib.pyplot as plt

sparse = weights_of((experts, hidden), (experts, 2 * inner, hidden), (experts, hidden, inner))
large, small = (weights_of((2 * n * inner, hidden), (hidden, n * inner)) for n in (experts, 2))
rows = {}
for tokens in (1, 4, 16, 64, 256, 1024):
    x = torch.randn(tokens, hidden)
    rows[tokens] = {
        "experts in use": len(route(x @ sparse[0].T)[1].unique()),
        "dense, as large as all eight": milliseconds(lambda x=x: feed_forward(x, *large)),
        "sparse, two of eight": milliseconds(lambda x=x: moe(x, *sparse)),
        "dense, as large as two": milliseconds(lambda x=x: feed_forward(x, *small)),
    }
timed = pd.DataFrame.from_dict(rows, orient="index")
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
timed.iloc[:, 1:].plot(ax=axes, marker="o", logx=True, logy=True, color=["0.4", "tab:orange", "tab:blue"])
axes.set(xlabel="tokens at once", ylabel="milliseconds (log scale)", title="One block, this machine")
axes.set_xticks(timed.index, [f"{n}\n({used} in use)" for n, used in timed["experts in use"].items()])
axes.minorticks_off()
h100 = 989e12 / 3.35e12  # operations in bf16 and bytes a second, from its data sheet
# a weight is 2 bytes to read, and 2 operations for each of the 2 tokens in 8 that want it
crossing = round(h100 * 2 / (2 * 2 / 8), -2)
print(f"at the speeds of an H100, in 16 bits: below about {crossing:,.0f} tokens, reading decides")

# %% [markdown]
# Few tokens: the processor waits for weights to be *read*. One token reads two experts, and the sparse block is fast. A few tokens already want nearly all
# eight, and most of its lead is gone. Many tokens: *arithmetic* decides, and each token computes with two: there sparse meets small dense.
#
# The printed line says where this turns on an H100. Writing one answer lies far left. Weights in fewer bytes can help it (notebook 03).
#
# ## Watch experts starve
#
# The more an expert is used, the better it gets, and the more it is used. Left alone, a few take everything (Shazeer et al. 2017, section 4). Pre-training
# therefore adds a *load-balancing loss* (负载均衡损失; this form: Switch, section 2.2):
#
# > experts × Σ over e of (share of tokens that choose e) × (mean probability of e)
#
# It equals `top_k` when all experts work alike. The share is counted and has no gradient. The mean probability has one, for *every* expert: it pushes the
# crowded ones down, and so lifts the forgotten. A model has many layers. `transformers` *pools* the tokens of all layers, and then multiplies.

# %%
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def balance_loss(logits, top_k=2):
    """logits [tokens, experts]"""
    probabilities = logits.softmax(-1)
    chosen = torch.zeros_like(logits).scatter_(1, probabilities.topk(top_k).indices, 1.0)
    return logits.shape[1] * (chosen.mean(0) * probabilities.mean(0)).sum()


layers = torch.randn(4, 500, 8)
pooled = load_balancing_loss_func(tuple(layers), 8, 2)
torch.testing.assert_close(balance_loss(layers.flatten(0, 1)), pooled)
LOSSES = {
    "no balance loss": lambda layers: 0.0,
    "pooled over layers": lambda layers: balance_loss(torch.cat(layers)),
    "each layer alone": lambda layers: torch.stack([balance_loss(logits) for logits in layers]).mean(),
}

# %% [markdown]
# Now train three small MoEs, made of *our* block, on the text of the course's sample conversations, byte by byte. Same start, same text; only the balance
# loss differs. An expert *starves* if it ends with less than a fifth of its fair share. **Before you run the last of these three cells:** which of the models keeps all
# of its experts?

# %%
from tqdm.auto import tqdm
from transformers import MixtralForCausalLM

from aurora_lib import course
from aurora_lib.data import sources


class Sparse(torch.nn.Module):
    """Our block as a layer. It keeps what its router did last."""

    def __init__(self, hidden=64, inner=64, experts=8):
        super().__init__()
        shapes = (experts, hidden), (experts, 2 * inner, hidden), (experts, hidden, inner)
        self.parts = torch.nn.ParameterList([0.02 * torch.randn(shape) for shape in shapes])
        self.bias = torch.zeros(experts)  # stays zero until "Balance without a loss"

    def forward(self, x):
        router, gate_up, down = self.parts
        self.logits = x.flatten(0, 1) @ router.T
        probabilities = self.logits.softmax(-1)
        self.chosen = (probabilities + self.bias).topk(2).indices
        top = probabilities.gather(1, self.chosen)
        weights = top / top.sum(-1, keepdim=True)
        return run_experts(x.flatten(0, 1), weights, self.chosen, gate_up, down).view_as(x)


conversations = sources.read(course.DATA / "rows").conversations
written = "\n".join(turn["content"] for row in conversations for turn in row["messages"])
text = torch.tensor(list(written.encode()))
text = text[: len(text) // 64 * 64].view(-1, 64)  # [pieces, 64 bytes]

# %%
def train(balance, steps=150, adjust=None, seed=0):
    """A small MoE: its load after each step, [steps, layers, experts], and its last text loss."""
    torch.manual_seed(seed)
    size = dict(vocab_size=256, hidden_size=64, num_hidden_layers=4, num_attention_heads=4)
    model = MixtralForCausalLM(MixtralConfig(**size, num_key_value_heads=4, intermediate_size=64))
    for layer in model.model.layers:
        layer.mlp = Sparse()
    blocks = [layer.mlp for layer in model.model.layers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loads, losses = [], []
    for step in tqdm(range(steps), unit="step"):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20)
        batch = text[torch.randint(len(text), (16,))]
        loss = model(input_ids=batch, labels=batch).loss
        losses.append(loss.item())
        (loss + 0.02 * balance([block.logits for block in blocks])).backward()
        optimizer.step()
        optimizer.zero_grad()
        counts = torch.stack([block.chosen.flatten().bincount(minlength=8) for block in blocks])
        loads.append(counts / counts.sum(1, keepdim=True))
        for block, load in zip(blocks, loads[-1], strict=True):
            block.bias += 0.0 if adjust is None else adjust(load)
    return torch.stack(loads), sum(losses[-20:]) / 20

# %%
from aurora_lib import routing

begin = time.perf_counter()
runs = {name: train(balance) for name, balance in LOSSES.items()}
print(f"{len(runs)} models trained in {time.perf_counter() - begin:.0f} s")
starving = 0.2 / 8
starved = {name: int((load[-20:].mean(0) < starving).sum()) for name, (load, _) in runs.items()}
for name, (_, loss) in runs.items():
    print(f"{name:<20} starving experts: {starved[name]:>2} of 32, text loss {loss:.2f}")
shape = dict(sharex=True, sharey=True, figsize=(9, 5.7), dpi=80, layout="constrained")
(figure, axes), curves = plt.subplots(4, len(runs), **shape), []
for (name, (load, _)), column in zip(runs.items(), axes.T, strict=True):
    smooth, end = 100 * load.unfold(0, 8, 1).mean(-1), load[-20:].mean(0)
    for layer, panel in enumerate(column):
        for expert, share in sorted(enumerate(end[layer]), key=lambda pair: -pair[1]):  # red on top
            color = "#c62828" if share < starving else "#6f8fb3"
            curves.append((panel.plot([], [], color=color)[0], smooth[:, layer, expert]))
        panel.axhline(100 / 8, color="black", linestyle=":", linewidth=1)
        panel.set(xlim=(0, len(load)), ylim=(-2, 60), ylabel=f"layer {layer}\n% of slots", xlabel="step")
        panel.label_outer()
    column[0].set_title(name)


def draw(part):
    for curve, share in curves:
        curve.set_data(range(int(part * len(share))), share[: int(part * len(share))])


routing.pictures.film(figure, draw)

# %% [markdown]
# Each line is an expert; red ones starve, and the dotted line is a fair share. (The film plays once.)
#
# The pooled loss saves hardly anybody (other seeds: `results/tiny/starving.json`). Why? **01.3 (predict)** Two layers, made up. In the first, all tokens use experts 0 to 3, evenly, and nobody
# 4 to 7. In the second it is the other way round. Each layer alone has a loss of 4 (even load: 2). What does the pooled loss say?

# %%
pooled_loss = ...
exercises.check("01.3", pooled_loss)

# %% [markdown]
# <details><summary>Hint</summary>Pool first: over both layers, which share of the tokens chooses expert 0, and what is its mean probability?</details>
#
# The library's answer. Below it, recorded: the load of this course's first model, trained with the pooled loss.

# %%
import json

from aurora_lib.course import results

first = torch.randn(1000, 8) + torch.tensor([9.0] * 4 + [0.0] * 4)
second = torch.randn(1000, 8) + torch.tensor([0.0] * 4 + [9.0] * 4)
together = load_balancing_loss_func((first, second), 8, 2)
print(f"each layer alone {balance_loss(first).item():.2f} and {balance_loss(second).item():.2f};", end=" ")
print(f"pooled, by the library, {together.item():.2f}")
record = json.loads((results.RECORDED / "tiny" / "first_model.json").read_text(encoding="utf-8"))
axes = routing.pictures.plot_load(torch.tensor(record["load"]))
axes.set_title("The course's first model: expert load (% of token slots)");

# %% [markdown]
# In the made-up layers half of the experts do nothing, and the pooled loss finds nothing wrong: one layer's neglected expert is another layer's favourite. In our
# first model expert 4 of layer 1 died, and expert 4 of layer 2 took the most. The text loss hides it: our three runs differ less than seeds do. A dead expert is memory that never
# learns. So watch the load layer by layer.
#
# ### Balance without a loss (optional)
#
# A strong balance loss can pull against the loss of the text. DeepSeek-V3 (2412.19437) does almost without: it adds a *bias* to the scores when it *chooses*, and not
# when it weighs. After each step the bias of an overworked expert goes down a little, and that of an idle one up:

# %%
def adjust(load):
    return 0.005 * (load.mean() - load).sign()


biased, text_loss = train(LOSSES["no balance loss"], adjust=adjust)
print(f"starving experts: {int((biased[-20:].mean(0) < starving).sum())} of 32, text loss {text_loss:.2f}")

# %% [markdown]
# ### When an expert is full
#
# **01.4 (hunt)** In GShard and Switch each expert has a buffer of fixed size, its *capacity* (容量). What does not fit is *dropped*. A capacity factor of 1.0 is just
# enough room if the load is even. This function should give the share of slots that are dropped; every token fills `top_k` slots. It has two bugs.

# %%
import math


def dropped(chosen, experts, factor):
    """chosen [tokens, top_k] -> a share between 0 and 1."""
    return ...  # take this line out to begin the hunt
    capacity = math.ceil(factor * len(chosen) / experts)
    too_many = torch.bincount(chosen.flatten(), minlength=experts) - capacity
    return too_many.sum().item() / chosen.numel()


exercises.check("01.4", dropped)

# %% [markdown]
# <details><summary>Hint</summary>Two tokens that both choose experts 0 and 1, of four experts: how many slots are there, and can an expert with room to
# spare make up for a full one?</details>
#
# ## Read a router honestly
#
# Now a trained model: this scale's base. It reads facts in both languages. The *load* of an expert is its share of the slots.
#
# **Is there a Chinese expert?** In the second figure, look for a tall bar for one language beside a short one for the other. The black lines are 95 % intervals, counted by
# texts: tokens of one text are alike.

# %%
from aurora_lib import evaluation
from aurora_lib.data import language
from aurora_lib.model import load_model, load_tokenizer

base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
texts = [fact[side]["answer"] for fact in evaluation.load_probes()[::8] for side in ("zh", "en")]
trace = routing.trace_many(base, tokenizer, texts)
load = routing.expert_load(trace)
routing.pictures.plot_load(load)
print(f"{len(texts)} texts, {len(trace.tokens):,} tokens; experts without any work: {int((load == 0).sum())}")
languages = [language(text) for text in texts]
last = len(trace.layers) - 1
routing.pictures.plot_groups(trace, languages, layers=sorted({0, last}));

# %% [markdown]
# Has the router *learnt* these bars? Chinese texts have other tokens than English ones, so a router of *random* weights separates them too. One
# number per layer, the *load gap*: the share of the Chinese slots that would have to move to make both loads equal. Two *baselines* (基线):
#
# - *Another router*: random weights read exactly what our router reads. Does *this router* do more than a random one?
# - *Another network*: all routers of the model are random, so later layers read other inputs too.
#
# Nineteen draws each. By chance alone, at least one layer passes its *bound* in about one of 20 draws.

# %%
from aurora_lib.routing import baselines, statistics

chinese = torch.tensor([languages[text] == "zh" for text in trace.texts])
twins = [baselines.random_router(base, seed) for seed in range(19)]
others = {
    "another router": [routing.trace_many(base, tokenizer, texts, by=twin) for twin in twins],
    "another network": [routing.trace_many(twin, tokenizer, texts) for twin in twins],
}
gap = statistics.load_gap(trace, chinese)
draws = {
    name: torch.stack([statistics.load_gap(one, chinese) for one in traces])
    for name, traces in others.items()
}
table = pd.DataFrame({"this router": gap}, index=pd.Index(trace.layers, name="layer"))
for name, drawn in draws.items():
    table[f"{name}, mean"], table[f"{name}, bound"] = drawn.mean(0), statistics.bound(drawn)
bounds = table.filter(like="bound").max(axis=1)
table.round(3).assign(learnt=(table["this router"] > bounds).map({True: "yes", False: "cannot say"}))

# %% [markdown]
# Layer 0 has clear bars, and random routers have them as well: different tokens may be the whole reason. Layer 3 is above *both* bounds: its router separates the
# languages' tokens more than random weights do. Yet no expert is Chinese only. (The Mixtral report saw no obvious
# experts by topic, but patterns of syntax.)
#
# **01.5 (try)** Which tokens does a router tell apart? Choose a kind of token: digits, punctuation, single characters, bytes ... The cell
# compares their load with that of all other tokens, and with both baselines. Name your kind *before* you run, and count your tries: of 20, one passes by chance.

# %%
from itertools import compress


def kind(token):
    """True for the tokens of your kind; ▁ stands for a space, <0xE9> for a byte."""
    return ...


exercises.check("01.5", kind)
found = [kind(token) for token in trace.tokens]
member = torch.tensor([answer is not ... and bool(answer) for answer in found])
if 0 < member.sum() < len(member):
    print(f"{member.sum()} of {len(member)} tokens, for example {list(compress(trace.tokens, member))[:6]}")
    gaps = [torch.stack([statistics.load_gap(one, member) for one in traces]) for traces in others.values()]
    higher = torch.stack([statistics.bound(drawn) for drawn in gaps]).amax(0)
    for layer, here, there in zip(trace.layers, statistics.load_gap(trace, member), higher, strict=True):
        verdict = "told apart" if here > there else "cannot say"
        print(f"layer {layer}: load gap {here:.2f}, the higher bound {there:.2f}: {verdict}")
elif ... not in found:
    print(f"{member.sum()} of {len(member)} tokens are of your kind. Choose another one.")

# %% [markdown]
# <details><summary>Hint</summary><code>token.strip("▁").isdigit()</code> is one. Few different tokens go to few experts in
# any router: then the bounds are high, too.</details>
#
# ## What tuning moved
#
# Our tuning does not train the router: it is *frozen* (冻结). It trains an *adapter* (适配器) in the attention (notebook 03), so the router reads other inputs. How many
# slots get another expert? Any change of weights moves some. The noise floor: 19 *random* adapters of the same form and size. (The adapter is yours from notebook 04 or
# a ready-made one. At `mid` there is none before 04 has run: then all is 0.)

# %%
from peft import get_peft_model

from aurora_lib.model import AdapterError, find_adapter, load_adapter
from aurora_lib.training import lora_config

try:
    tuned = load_adapter(base, find_adapter(scale))
except AdapterError as missing:
    print(missing, "Until then a new one, which changes nothing, stands in for it.")
    tuned = get_peft_model(base, lora_config()).eval()
share, low, high = statistics.moved(trace, routing.trace_many(tuned, tokenizer, texts))
by_chance = []
for seed in range(19):
    with baselines.random_adapter(tuned, seed):
        by_chance.append(statistics.moved(trace, routing.trace_many(tuned, tokenizer, texts))[0])
by_chance = torch.stack(by_chance)
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
places, errors = torch.tensor(trace.layers), torch.stack([share - low, high - share])
limit, names = statistics.bound(by_chance), ["random changes"] + ["_"] * 18
axes.plot(places, by_chance.T, ".", color="0.7", label=names)
axes.hlines(limit, places - 0.25, places + 0.25, color="0.3", label="bound of random changes")
axes.errorbar(places, share.numpy(), errors.numpy(), fmt="o", capsize=4, label="tuning, 95 % interval")
axes.set(xlabel="layer", ylabel="slots with another expert [share]", ylim=(0, None))
axes.set_xticks(places[:: -(-len(places) // 16)])
axes.legend(bbox_to_anchor=(1, 1), loc="upper left");

# %% [markdown]
# Whole interval above the dark line: tuning moved more than a random change of its size. Else: cannot say; nineteen other draws would move the line.
#
# ## The explorer
#
# Type Chinese or English and press Enter. Every cell shows both experts of a token and their weights; *difference* marks where tuning changed an expert. Arrow
# keys walk the grid. In the book (`make book`) this needs no kernel: there the model runs in the browser. Its forward pass is [plain JavaScript](../book/live/mixtral.js), and `moe` there is your `moe`. (Its experts have 16 bits, those below 4: some numbers differ.)
#
# <!-- live: explorer -->

# %%
class Untuned(torch.nn.Module):
    """The base, without a second copy of the weights: the adapter is off while it reads."""

    def __init__(self):
        super().__init__()
        self.tuned, self.config = tuned, tuned.config

    def forward(self, *args, **kwargs):
        with self.tuned.disable_adapter():
            return self.tuned(*args, **kwargs)


examples = ["法国的首都是巴黎。 龘", "The capital of France is Paris.", "12 + 30 = 42"]
routing.explorer.Explorer({"base": Untuned(), "tuned": tuned}, tokenizer, examples)

# %% [markdown]
# ## What came after 2023
#
# ![Mixtral uses two of 8 experts, OLMoE eight of 64 smaller ones, DeepSeek-V3 eight of 256 and one shared expert that is always on.](images/after_2023.svg)
#
# - **Top-k:** Switch (2021, 2101.03961, the paper's footnote 1) uses *one* expert a token. It must not divide by the sum: the weight would always be 1, without a
#   gradient. Many models of today use eight.
# - **Smaller and more:** *fine-grained* experts (DeepSeekMoE, OLMoE) give more combinations at the same cost. OLMoE does not divide by the sum, so all its logits get a gradient.
# - **Shared:** an expert that every token uses is meant to hold what all need.
# - **Balance:** often by a bias, as above (DeepSeek-V3's scores are sigmoids; ours are softmax).
# - **Fused:** libraries store the experts of a layer as one tensor *per matrix*. A grouped kernel runs them all at once. That is why tools for `nn.Linear` miss them (the trap
#   of notebook 03).
# - **Locality:** in Mixtral's later layers, neighbouring tokens share an expert more often than chance (Mixtral report, section 5). Systems that keep few experts in GPU
#   memory use it.
#
# ## Paper, records and you

# %%
def mean(values):
    return round(torch.as_tensor(values).mean().item(), 3)


results.record(
    "01",
    {
        "Mixtral-8x7B stored parameters": stored,
        "Mixtral-8x7B parameters used per token": active,
        **{f"experts that starve, {name} [share]": round(n / 32, 3) for name, n in starved.items()},
        "lowest expert load [share]": round(load.min().item(), 3),
        "highest expert load [share]": round(load.max().item(), 3),
        "load that differs between zh and en, mean of layers [share]": mean(gap),
        **{f"the same, {name} [share]": mean(drawn) for name, drawn in draws.items()},
        "slots moved by tuning, mean of layers [share]": mean(share),
        "slots moved by random changes, mean of layers [share]": mean(by_chance),
    },
)
results.compare("01")

# %% [markdown]
# **In short.** A router is one matrix, a softmax and a top-2. You store all experts, and compute with two. Here sparsity saves most with very many tokens, much with one,
# and least with a few. Unchosen experts get no gradient and fall behind, until some starve; a balance loss of each layer keeps them, a pooled one may not, and a bias does
# it without a loss. A difference between languages counts only above both baselines, and what tuning moved only above random changes.
#
# **Next:** [02 Chinese data](02_chinese_data.ipynb). **Read:** Shazeer et al. 2017 (1701.06538), the Mixtral report (2401.04088).
