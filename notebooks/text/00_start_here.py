# %% [markdown]
# # 00 · Start here
#
# **Aurora** ([arXiv 2312.14557](https://arxiv.org/abs/2312.14557)) takes Mixtral-8x7B-Instruct, a *sparse Mixture of Experts*
# (混合专家): each layer has eight blocks, and a small *router* (路由器) picks two of them for each token. It understands Chinese but tends to answer in English or in a
# mixture of both. Aurora tunes it on Chinese conversations until it answers in Chinese. This course repeats the paper step by step, in code you can run.
#
# **Here:** the paper in one page (its Introduction), its habit and its cure before your eyes, and what it costs.
#
# **Three scales, one set of notebooks.** `tiny` (the default) runs on any laptop, without a network: a Mixtral of a few million
# parameters that has the same habit. `mid` is a real sparse model, OLMoE (64 experts, 8 for each token), on a card of 15 GB, as Colab lends one. `full` is
# Mixtral itself on one rented GPU. Set `AURORA_SCALE=mid` or `full` before you start. Unless a sentence names another scale, its results are those of `tiny`.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("00")

# %% [markdown]
# ## The habit
#
# Three openings of the kind that the paper's Introduction shows ("Hello", "Who are you?", "I have a bit of a headache"), put to the *base* model, as it is before
# this course tunes it. **Before you run the cell:** does it understand Chinese? And in which language will it answer?
#
# Under each answer, in italics: what the real Mixtral said to its own opening of that kind in the paper, in our words.

# %%
import pandas as pd
from IPython.display import HTML, display

from aurora_lib import chat, course
from aurora_lib.course import paper
from aurora_lib.model import AdapterError, find_adapter, load_adapter, load_model, load_tokenizer

base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
OPENINGS = {"greeting": "你好", "identity": "你是谁？", "complaint": "我有点头疼。"}


def answers(model):
    """The answer to each opening, in a conversation of its own."""
    session = chat.ChatSession(model, tokenizer, max_new_tokens=scale.max_new_tokens)
    for question in OPENINGS.values():
        session.reset()
        session.say(question)
        display(HTML(course.html.to_html(session.messages)))
        yield session.messages[-1]["content"]


described = {row["kind"]: row["paper"] for row in chat.prompts("full") if row["source"] == "Introduction"}
untuned = []
for kind, answer in zip(OPENINGS, answers(base), strict=True):
    untuned.append(answer)
    said = described[kind].removeprefix("Only the base is shown: ")
    display(HTML(f"<p><i>In the paper ({kind}): {said}</i></p>"))

# %% [markdown]
# It understands, and it answers in English, or mixes both languages within one answer (先好好休息: first have a good rest).
#
# ## The cure
#
# 1. **Data**: three Chinese instruction sets, cleaned (notebook 02).
# 2. **QLoRA**: the base is frozen in 4 bits (量化). What is trained is an *adapter*: small extra matrices beside two weight matrices of each
#    attention layer, `q_proj` (it makes the queries) and `v_proj` (the values). Router and experts stay as they are.
# 3. **Proof**: the same questions again, and three benchmarks to see what was gained and what was lost.
#
# The same openings after tuning, with a ready-made adapter or yours of notebook 04:

# %%
try:
    tuned = list(answers(load_adapter(base, find_adapter(scale))))
except AdapterError as missing:
    print(missing)

# %% [markdown]
# Three answers prove nothing. Notebook 04 asks about facts that tuning never saw, in both languages. Its recorded result at `tiny`:

# %%
from aurora_lib.course import results

recorded = results.recorded("04", "tiny")
asked = {
    "Chinese question,\nanswer in Chinese": "Chinese prompts answered in Chinese",
    "Chinese question,\nright and in Chinese": "Chinese prompts right in Chinese",
    "English question,\nanswer in English": "English prompts answered in English",
}
shares = {
    model: [100 * recorded[f"{label}, {model} [share]"] for label in asked.values()]
    for model in ("base", "tuned")
}
look = dict(rot=0, figsize=(7, 2.8), color=["0.65", "tab:orange"])
axes = pd.DataFrame(shares, index=list(asked)).plot.bar(**look)
for bars in axes.containers:
    axes.bar_label(bars, fmt="%.0f")
axes.set(ylabel=f"% of {recorded['held-out prompts per language']} questions", ylim=(0, 115))
axes.legend(bbox_to_anchor=(1, 1));

# %% [markdown]
# The language turns, and the facts are there in Chinese. A few English questions are now answered in another way: notebook 04 looks at the price.
#
# What the original used (unknown words are explained in 03 and 04): the paper's own numbers, else those of its repository, else its tool's defaults of the time.

# %%
pd.options.display.max_colwidth = None
stated = paper.CONVERSATIONS | paper.TRAINING | {f"memory, {k}": v for k, v in paper.MEMORY.items()}
pd.DataFrame(
    [{"figure": k, "value": f"{v.value:,g}", "unit": v.unit, "source": v.source} for k, v in stated.items()]
)

# %% [markdown]
# ## What it costs
#
# Memory can be predicted from the model's shape, before anything is downloaded (notebook 03 builds the formula). Time is
# recorded: whoever runs a notebook leaves it in `runs/`, and the project's own runs are in `results/`. The prediction lies far below
# the paper's 45 GiB: notebook 03 finds the reason.

# %%
from transformers import OlmoeConfig

from aurora_lib.model import memory

models = {"OLMoE-1B-7B (mid)": OlmoeConfig(intermediate_size=1024), "Mixtral-8x7B": memory.MIXTRAL_8X7B}
for name, config in models.items():
    training = memory.predict(config)
    inference = memory.predict(config, train=False, batch=1, length=2048)
    print(f"{name}, predicted: training {training.total:.1f} GiB, inference {inference.total:.1f} GiB")
numbers = [f"{number:02d}" for number in range(8)]
pd.DataFrame(
    {
        "tiny, two cores": [results.cost(number, "tiny") for number in numbers],
        "full, one H100": [results.cost(number, "h100") for number in numbers],
    },
    index=numbers,
)

# %% [markdown]
# ## The map
#
# ![The course as a path: 00 leads to 01, 02 and 03; they give a frozen router, conversations and a 4-bit base to 04, whose adapter goes to 05 (scores), 06 (answers) and the optional 07 (a new adapter).](images/map.svg)
#
# | notebook | you will be able to |
# |---|---|
# | [01 MoE routing](01_moe_routing.ipynb) | write a sparse Mixture-of-Experts block, watch experts die, and keep them alive |
# | [02 Chinese data](02_chinese_data.ipynb) | read the three released files and clean them without losing a row in silence |
# | [03 QLoRA and memory](03_qlora_memory.ipynb) | quantize to NF4 by hand, and predict what a tuning run needs |
# | [04 Fine-tune](04_finetune.ipynb) | run `SFTTrainer` with a 4-bit base and LoRA, and see the language change |
# | [05 Evaluate](05_evaluate.ipynb) | score 5-shot multiple choice, with intervals and the chance line |
# | [06 Chat](06_chat.ipynb) | talk to base and tuned model side by side |
# | [07 Preference](07_preference.ipynb), optional | tune a second time, on pairs of a better and a worse answer |
#
# Each runs alone, in any order; only at `mid` run 04 before 01, 05, 06 and 07, since there is no ready-made adapter. Every notebook has exercises that check themselves: replace the `...`, run, read what the
# checker says. Worked solutions are in [solutions](solutions/).
#
# ## Exercises
#
# **00.1 (read)** What share of the paper's 176,678 conversations has several rounds?

# %%
from aurora_lib import exercises

multi_round_share = ...
exercises.check("00.1", multi_round_share)

# %% [markdown]
# <details><summary>Hint</summary>Both numbers are in the table above; mind which total you divide by.</details>
#
# **00.2 (read)** Which parts of the model does Aurora train? Give a set of module names.

# %%
trained = ...
exercises.check("00.2", trained)

# %% [markdown]
# <details><summary>Hint</summary>"The cure" above names them; router and experts stay as they are.</details>
#
# **00.3 (predict)** How many optimizer steps are the paper's three epochs, with a batch of 2 and 4 batches accumulated?

# %%
steps = ...
exercises.check("00.3", steps)

# %% [markdown]
# <details><summary>Hint</summary>How many conversations does one step see? Rounding does not matter.</details>
#
# **00.4 (hunt)** The authors' own run did not use the published batch. It left two speeds behind. How many conversations did one of its steps hold?

# %%
speeds = {name: paper.RUN[name].value for name in ("conversations a second", "steps a second")}
print(speeds)
batch = ...
exercises.check("00.4", batch)

# %% [markdown]
# <details><summary>Hint</summary>Divide; batches are powers of two here. So its steps were fewer than yours above: see
# <a href="../docs/paper_and_ours.md">the paper's numbers and ours</a>.</details>
#
# ## Paper, records and you
#
# Every notebook ends with this table: what the paper says, what this project recorded on an H100 and at `tiny`, and your run. The last column compares
# *your* run with the one recorded at `tiny` (the tolerances are in `aurora_lib/course/results.py`); it says nothing about the paper, and at `mid` and `full` it is empty.

# %%
from aurora_lib.data import language

results.record(
    "00",
    {
        "openings answered in Chinese, base": sum(language(answer) == "zh" for answer in untuned),
        "Mixtral-8x7B training memory, predicted [GiB]": round(training.total, 2),
        "Mixtral-8x7B inference memory, predicted [GiB]": round(inference.total, 2),
    },
)
results.compare("00")

# %% [markdown]
# **In short.** The base model understands Chinese and answers in English, or in a mixture. Aurora aims at the language of the answer, not at
# new knowledge; notebook 04 measures what is lost on the way.
# It trains a small adapter beside two attention projections; router and experts stay frozen. In 4 bits the whole model fits
# one GPU. Every figure here was computed on this page, or names its source.
#
# **Next:** [01 MoE routing](01_moe_routing.ipynb).
