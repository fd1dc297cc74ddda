# %% [markdown]
# # 01 · Inside the router
#
# Paper: section 3, first paragraph. **After this notebook you can** write a sparse Mixture-of-Experts block in fifteen lines,
# say how many of Mixtral's parameters a token really uses, and look at a router's (路由) choices without reading more into them
# than a random router shows.

# %%
import aurora_lib

scale = aurora_lib.start("01")

# %% [markdown]
# ## Draft: three tokens, four experts
#
# A router is one matrix. It gives each token a score (*router logit*) per expert; the two best experts work, weighted by
# their probabilities, renormalised so that the weights sum to one.

# %%
import pandas as pd
import torch
import torch.nn.functional as F

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
# Token 1 is sure of expert 2. Token 2 hardly prefers anyone, and still exactly two experts run: that is what makes the layer
# *sparse*, and its cost constant.
#
# ## Final: the whole block
#
# Gather the tokens of each expert, run it, scatter the weighted results back. An expert is a *gated feed-forward block*: two matrices up, one of
# them through SiLU as a gate on the other, and one matrix down.

# %%
def moe_block(x, router, gate_up, down, top_k=2):
    """x [tokens, hidden]; router [experts, hidden]; gate_up [experts, 2*intermediate, hidden]; down [experts, hidden, i]."""
    top, chosen = (x @ router.T).softmax(dim=-1).topk(top_k, dim=-1)
    weights = top / top.sum(dim=-1, keepdim=True)
    output = torch.zeros_like(x)
    for expert in range(len(router)):
        token, slot = torch.where(chosen == expert)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, dim=-1)
        y = (F.silu(gate) * up) @ down[expert].T
        output.index_add_(0, token, weights[token, slot, None] * y)
    return output

# %% [markdown]
# Is it the real thing? The same random weights go into the library's own block, and both get the same input.

# %%
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

torch.manual_seed(0)
small = MixtralConfig(
    hidden_size=32, intermediate_size=64, num_local_experts=8, experts_implementation="eager"
)
library = MixtralSparseMoeBlock(small)
for parameter in library.parameters():
    torch.nn.init.normal_(parameter, std=0.2)

x = torch.randn(1, 10, 32)
mine = moe_block(x[0], library.gate.weight, library.experts.gate_up_proj, library.experts.down_proj)
difference = (mine - library(x)[0]).abs().max().item()
assert difference < 1e-5
print(f"largest difference from transformers' own block: {difference:.1e}")

# %% [markdown]
# ## 8 x 7B is not 56B
#
# The paper says "8 experts, each with 7 billion parameters". Only the feed-forward parts are multiplied by eight; attention and
# embeddings exist once. Built on the *meta* device, where tensors have a shape but no memory, the model can be counted:

# %%
from transformers import AutoModelForCausalLM

from aurora_lib.memory import MIXTRAL_8X7B

with torch.device("meta"):
    mixtral = AutoModelForCausalLM.from_config(MIXTRAL_8X7B)
stored = sum(p.numel() for p in mixtral.parameters())
experts = sum(p.numel() for name, p in mixtral.named_parameters() if ".experts." in name)
active = stored - experts + experts * MIXTRAL_8X7B.num_experts_per_tok / MIXTRAL_8X7B.num_local_experts
print(f"stored {stored / 1e9:.1f} B, of which experts {experts / 1e9:.1f} B ({experts / stored:.0%})")
print(f"used by one token {active / 1e9:.1f} B ({active / stored:.0%})")

# %% [markdown]
# ## Watching a real router
#
# `routing.trace` hooks the routers while a model reads, and gives back the experts and their weights for every token. Each
# token below carries the number of its first expert in the first layer (in Jupyter also its colour; GitHub shows no colours).

# %%
from IPython.display import HTML

from aurora_lib import evaluation, nf4, routing, tokenizer

base = nf4.load(scale.base_model, **scale.loading)
words = tokenizer.load(scale.base_model, revision=scale.revision)
HTML(
    routing.to_html(routing.trace(base, words, "法国的首都是巴黎。 The capital of France is Paris."), layer=0)
)

# %% [markdown]
# One sentence proves nothing. Twenty facts in each language, and the *load* of every expert: a perfectly balanced layer would
# show the same number in every cell. Look for experts that hardly work, and in which layers.

# %%
facts = evaluation.load_probes()[::15][:20]
trace = routing.join(
    [routing.trace(base, words, fact[side]["answer"]) for fact in facts for side in ("zh", "en")]
)
load = routing.load(trace)
routing.plot_load(load);

# %% [markdown]
# ## Do experts specialise in a language?
#
# A tempting claim. Label every token by its script: Chinese, Latin letters, or neither. *Mutual information* says how many bits of
# that label a token's expert gives away. But even shuffled labels give more than zero, and so does a router with *random* weights,
# because the same token always goes the same way. So: five random routers as the baseline.

# %%
sentences = [fact[side]["answer"] for fact in facts for side in ("zh", "en")]
labels = routing.scripts(trace.tokens)
trained = routing.mutual_information(trace, labels)
random = torch.stack(
    [
        routing.mutual_information(
            routing.join([routing.trace(twin, words, s) for s in sentences]), labels, permutations=1
        ).bits
        for twin in (routing.random_router(base, seed) for seed in range(5))
    ]
)

# %%
import matplotlib.pyplot as plt

layers = range(len(trained.bits))
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(layers, trained.bits, "o-", label="trained router")
axes.fill_between(layers, random.amin(0), random.amax(0), color="C1", alpha=0.4, label="five random routers")
axes.plot(layers, trained.upper, ":", color="grey", label="shuffled labels,\n95th percentile")
axes.set(xlabel="layer", ylabel="bits", xticks=list(layers), ylim=(0, None), title="What the expert says about the script")
axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1));

# %%
shares = torch.tensor([labels.count(kind) for kind in set(labels)]) / len(labels)
above = int((trained.bits > random.amax(0)).sum())
print(f"the label holds {routing.entropy(shares[None]).item():.2f} bits; the experts give away {trained.bits.max().item():.2f} at most")
print(f"above all five random routers in {above} of {len(layers)} layers")

# %% [markdown]
# Where random routers do as well, "this expert is the Chinese expert" is a story, not a finding. Where the trained one lies above all
# of them, it is still a small part of the label's bits, from forty short sentences and five random routers: a hint, not a law.
#
# ## The load-balancing loss
#
# Left alone, a router would send everything to a few experts. Pre-training adds a penalty:
#
# > experts × Σ over e of (share of tokens that choose e) × (mean probability of e)
#
# It equals `top_k`, here 2, when all experts work alike, and grows with imbalance. The library pools all layers first. Is that safe?

# %%
pooled = routing.balance_loss(trace.logits, top_k=2).item()
by_layer = routing.balance_loss(trace.logits, top_k=2, per_layer=True)
print(f"pooled over layers {pooled:.2f}; layer by layer {[round(v, 2) for v in by_layer.tolist()]}")

# %% [markdown]
# Pooling flatters: one layer's neglected expert is another layer's favourite. The pooled number looks balanced while the heat map
# above shows experts that hardly work; each layer alone tells.
#
# ## Exercises
#
# **01.1** Write the router: logits `[tokens, experts]` to `(weights, experts)`, both `[tokens, 2]`.

# %%
from aurora_lib import exercises


def route(logits):
    return ...


exercises.check("01.1", route)

# %% [markdown]
# <details><summary>Hint</summary>softmax, <code>topk</code>, divide by the sum of what was kept.</details>
#
# **01.2** How many billion parameters of Mixtral-8x7B does one token use? Compute it from the sizes in `MIXTRAL_8X7B`, without
# building the model.

# %%
billions = ...
exercises.check("01.2", billions)

# %% [markdown]
# <details><summary>Hint</summary>Per layer: attention (q and o 4096 x 4096, k and v 4096 x 1024), the router, and two experts of
# 3 x 4096 x 14336. Then embedding and head, 32,000 x 4096 each.</details>
#
# **01.3** Write the load-balancing loss for logits `[tokens, experts]`.

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
from aurora_lib import results

results.record(
    "01",
    {
        "Mixtral-8x7B stored parameters": stored,
        "Mixtral-8x7B parameters used per token": int(active),
        "script in experts, trained, mean of layers [bits]": round(trained.bits.mean().item(), 3),
        "script in experts, random routers, mean of layers [bits]": round(random.mean().item(), 3),
        "lowest expert load [share]": round(load.min().item(), 3),
        "highest expert load [share]": round(load.max().item(), 3),
    },
)
results.compare("01")

# %% [markdown]
# **In five lines.** A router is one matrix, a softmax and a top-2. Two experts of eight run for each token, whatever the token.
# Nearly all parameters are experts, and a token uses about a quarter of them. What a router's choices mean must be compared with
# a random router's. A balance loss pooled over layers can hide an unbalanced layer.
#
# **Next:** [02 Chinese data](02_chinese_data.ipynb). **Read:** Shazeer et al. 2017 (1701.06538), the Mixtral report (2401.04088).
