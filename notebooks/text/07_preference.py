# %% [markdown]
# # 07 · Preference tuning: repair what a tuning lost
#
# Optional. The paper has no such stage; its repository recommends a DPO variant of the model. **After this notebook you can** make
# preference pairs of a model's own mistakes, run Direct Preference Optimization (DPO, 直接偏好优化, arXiv 2305.18290) with the right
# reference, and tell whether plain tuning would do as well. Unless a sentence names another scale, its results are those of `tiny`.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("07")

# %% [markdown]
# ## The damaged adapter
#
# At `tiny` we start from a bundled adapter, tuned as in notebook 04 but without the English rows. **Predict:** how does it answer English
# questions? (`mid` and `full` start from notebook 04's adapter.)

# %%
from aurora_lib import evaluation
from aurora_lib.model import find_adapter, load_adapter, load_model, load_tokenizer, memory, save_adapter
from aurora_lib.training import preference

tiny = scale.name == "tiny"
adapter = preference.DAMAGED if tiny and not scale.adapter else find_adapter(scale)
base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
budget = memory.predict(base.config, batch=2 * scale.batch, length=scale.length, dtype=scale.loading["dtype"])
budget.require(scale.device)
model = load_adapter(base, adapter)
before = evaluation.probe(model, tokenizer, max_new_tokens=scale.max_new_tokens)
print(before)

# %% [markdown]
# Chinese is about as good as in notebook 04. About one English question in five is answered in Chinese or wrongly.
#
# ## Pairs: the model's own mistakes
#
# A preference pair (偏好对) is a question with a better and a worse answer. The worse one should be what the model tends to say. So we
# ask it the training facts, and keep each wrong answer as `rejected`, the right one as `chosen`.
#
# At `mid` and `full` the pairs are the Chinese half of [DPO-En-Zh-20k](https://huggingface.co/datasets/llamafactory/DPO-En-Zh-20k)
# (Apache 2.0), which we could not try from here. `AURORA_PREFERENCES=/a/file.jsonl` reads your own at any scale (columns `prompt`, `chosen`,
# `rejected`).

# %%
import os

import pandas as pd

pd.options.display.max_colwidth = None
if tiny and not os.environ.get("AURORA_PREFERENCES"):
    facts = evaluation.load_probes(held_out=False)
    said = evaluation.probe(model, tokenizer, facts, max_new_tokens=scale.max_new_tokens)
    pairs, held_out = preference.mistakes(said), preference.mistakes(before)
    print(f"{len(said.rows)} questions about training facts give {len(pairs)} pairs")
else:
    kept, dropped = preference.load_pairs()

    def fits(row):
        talks = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
        ids = tokenizer.apply_chat_template(talks, return_dict=True)["input_ids"]
        return max(map(len, ids)) <= scale.length

    short = kept.filter(fits)
    parts = short.train_test_split(min(64, -(-len(short) // 10)), seed=0)
    pairs, held_out = parts["train"], parts["test"]
    print(f"left out: {len(dropped)} rows that are no pair {dropped[:3]}")
    print(f"left out: {len(kept) - len(short)} pairs longer than the cutoff; {len(pairs)} to train on")
print(f"{len(held_out)} pairs more, held out to measure on")
print(pd.Series(pairs["kind"]).value_counts().to_string())
table = pd.DataFrame({name: [row[name][-1]["content"] for row in pairs] for name in preference.COLUMNS})
table.insert(0, "kind", pairs["kind"])
table.groupby("kind").head(2).sort_values("kind").set_index("kind")

# %% [markdown]
# Most pairs say *not Chinese, but English*. No pair says the opposite.
#
# ## The loss, by hand
#
# DPO needs no reward model. How much more the trained model (*policy*) likes an answer than a frozen *reference* does, is the reward:
# $r = \beta\,(\log p_\text{policy} - \log p_\text{ref})$. The loss is $-\log\sigma(r_\text{chosen} - r_\text{rejected})$; the difference
# is called the *margin*. (log p of an answer is the sum over its tokens; $\beta$ says how strongly a change counts; $\sigma$ squeezes any number into 0 to 1.)

# %%
import torch
import torch.nn.functional as F

from aurora_lib.course import results


def dpo(policy, reference, beta):
    """Loss and margin of each pair, from log-probabilities [pairs, 2] of chosen and rejected."""
    rewards = beta * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    return -F.logsigmoid(margins), margins


rates = results.recorded("preference", "tiny", "chosen")["tuned without English"]
how = dict(num_train_epochs=3) if tiny else {}
args = preference.dpo_config(scale, **how | ({"learning_rate": rates["DPO"]} if tiny else {}))
trainer = preference.build_trainer(model, tokenizer, pairs, held_out, args)
measured = trainer.get_eval_dataloader()  # the held-out pairs, in batches
model.set_adapter("ref")  # TRL's frozen copy of the adapter we start from: the next lines are about it
tuned = preference.logps(model, measured)
with model.disable_adapter():
    untuned = preference.logps(model, measured)
model.set_adapter("default")
start = preference.logps(model, measured)

# %% [markdown]
# ### The trap: which reference?
#
# Given a base and a new `peft_config`, `DPOTrainer` takes the model *without adapter* as reference. Where the model was tuned before, that is the wrong one.
# Given a model that *has* an adapter, TRL keeps a frozen copy of it, `ref`. The check: before the first step, policy and reference are the same model, so
# every margin is 0 and the loss is log 2.

# %%
rows = {}
for name, reference in (("the tuned model (right)", tuned), ("the base (wrong)", untuned)):
    losses, margins = dpo(start, reference, args.beta)
    rows[name] = {
        "loss": losses.mean(),
        "margin": margins.mean(),
        "pairs with margin > 0 [share]": (margins > 0).float().mean(),
    }
assert torch.allclose(start, tuned, atol=0.05)
pd.DataFrame.from_dict(rows, orient="index").astype(float).round(3).rename_axis("reference")

# %% [markdown]
# With the base as reference, what the first stage changed counts as reward, here a negative one. And TRL rounds the adapter to bf16, but not its frozen copy:
# margins would not begin at 0. `preference.build_trainer` puts the exact weights back, in 32 bits.
#
# **07.1 Predict.** Training lowers log p of a chosen answer by 3, and of its rejected one by 25. Beta is 0.1. What is the pair's loss?

# %%
from aurora_lib import exercises

loss_now = ...

exercises.check("07.1", loss_now)

# %% [markdown]
# <details><summary>Hint</summary>The margin is 0.1 times (-3 + 25). Then -log of its sigmoid.</details>
#
# ## Train
#
# An ordinary `DPOTrainer`, with the precautions of notebook 04.

# %%
from aurora_lib import training

per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
print(f"learning rate {args.learning_rate:g}, beta {args.beta}, {args.loss_type}, {per_step} pairs a step")
run = training.run(trainer, scale.minutes)
print(f"{run.metrics['train_runtime']:.0f} s, {trainer.state.global_step} steps")

# %%
import matplotlib.pyplot as plt

log = pd.DataFrame(trainer.state.log_history).dropna(subset=["loss", "grad_norm"])
assert (log.grad_norm > 0).all()
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
log.plot(x="step", y=["rewards/chosen", "rewards/rejected"], ax=axes[0], title="rewards")
log.plot(x="step", y="rewards/margins", ax=axes[1], legend=False, title="margin: chosen - rejected")
log.plot(x="step", y="grad_norm", ax=axes[2], legend=False, title="gradient norm", ylim=(0, None))
for ax in axes[:2]:
    ax.axhline(0, color="grey", linewidth=0.8)

# %% [markdown]
# The rejected line falls, the chosen one rises. It need not: the loss is content if both fall and the rejected one falls faster.
# Then even the right answer becomes less likely (*likelihood displacement*). So the first stage's loss is often added (`loss_type=["sigmoid", "sft"]`).
#
# ## Measure: the reward, on pairs it has not seen
#
# *Reward accuracy* (奖励准确率) is the share of pairs with a margin above 0. First, our loss against TRL's. At `tiny` the pairs are what this model
# said wrong about held-out facts, so we ask these questions again.

# %%
after_logps = preference.logps(model, measured)
losses, margins = dpo(after_logps, tuned, args.beta)
batch = next(iter(measured))
with torch.no_grad():
    trl = trainer.compute_loss(model, batch).item()
ours = losses[: len(batch["input_ids"]) // 2].mean().item()
print(f"loss of the first batch: by hand {ours:.5f}, TRL {trl:.5f}")
if args.loss_type == ["sigmoid"]:  # with another loss, TRL's number is another one
    assert abs(ours - trl) < 0.02
after = evaluation.probe(model.eval(), tokenizer, max_new_tokens=scale.max_new_tokens)
judged = pd.DataFrame({"kind": held_out["kind"], "margin > 0": (margins > 0).float()})
judged["chosen likelier than rejected, before"] = (tuned[:, 0] > tuned[:, 1]).float()
judged["after"] = (after_logps[:, 0] > after_logps[:, 1]).float()
right = {row["question"]: float(row["correct"]) for row in after.rows}
judged["answered rightly, after"] = [right.get(row[-1]["content"], torch.nan) for row in held_out["prompt"]]
kinds = judged.groupby("kind")
kinds.mean().round(3).assign(pairs=kinds.size())

# %% [markdown]
# Which *language* to answer in is one rule, and carries over to questions never trained on. Which *fact* is right is not a rule, and carries over
# less (but the pairs here are few). A reward accuracy is about *given* pairs, while an answer is chosen among all sentences there are.
#
# ## Measure: the answers
#
# Now all held-out facts, also those that were right before. Did Chinese pay for the repair?

# %%
print(after, end="\n\n")
for asked in ("zh", "en"):
    pair = evaluation.scores.paired(before.hits(asked, "correct"), after.hits(asked, "correct"))
    print(f"asked in {asked}: {pair}")
    print("  luck alone could explain this difference" if pair.p > 0.05 else "  more than luck")
changed = [(a, b) for a, b in zip(before.rows, after.rows, strict=True) if a["correct"] != b["correct"]]
rows = [(b["correct"], a["question"], a["answer"], b["answer"]) for a, b in changed]
table = pd.DataFrame(rows, columns=["right now", "question", "before", "after DPO"])
table.groupby("right now").head(5).set_index("right now").sort_index()

# %% [markdown]
# ## Would plain tuning have done as well?
#
# The fair rival has the same questions, steps and schedule, and in essence notebook 04's loss (*SFT*), on the chosen answers. (TRL turns dropout off for both.)

# %%
if tiny:
    other = dict(output_dir=str(scale.runs / "sft_checkpoints"), save_strategy="no")
    sft = preference.dpo_config(scale, loss_type=["sft"], learning_rate=rates["SFT"], **how, **other)
    rival = load_adapter(load_model(scale.base_model, **scale.loading), adapter)
    training.run(preference.build_trainer(rival, tokenizer, pairs, held_out, sft))
    plain = evaluation.probe(rival.eval(), tokenizer, max_new_tokens=scale.max_new_tokens)
    for asked in ("zh", "en"):
        pair = evaluation.scores.paired(after.hits(asked, "correct"), plain.hits(asked, "correct"))
        print(f"asked in {asked}, SFT against DPO: {pair}")

# %% [markdown]
# One run decides nothing. Small dots are three recorded seeds (`tools/record/preference.py`), rings are today's runs at `tiny`, grey lines the start. Each picture has a scale of its own. The third
# loss is both, added. The lower row starts from notebook 04's adapter and *its* mistakes. **Predict:** does that one gain? (Today's
# learning rates are each loss's best at the first seed: the most right answers to these same questions.)

# %%
runs = pd.DataFrame(results.recorded("preference", "tiny", "rows"))
today = {"DPO": after, "SFT": plain} if tiny else {}
panels = {"en_right": "English, right in English", "zh_right": "Chinese, right in Chinese"}
panels |= {"reward accuracy": "reward accuracy", "chosen, change of log p": "log p of chosen, change"}
figure, axes = plt.subplots(2, 4, figsize=(13, 5.6), sharex=True, layout="constrained")
for line, (name, about) in zip(axes, results.recorded("preference", "tiny", "starts").items(), strict=True):
    for ax, (what, title) in zip(line, panels.items(), strict=True):
        for i, (arm, of) in enumerate(runs[runs["start"] == name].groupby("arm", sort=False)):
            beside = 1.12 ** (i - 1)  # so that no dot hides another
            ax.plot(of["learning rate"] * beside, of[what], f"C{i}o", markersize=4, label=arm)
            if arm in today and ax in axes[0, :2]:
                share = today[arm].score(what[:2], "correct").accuracy
                ax.plot(rates[arm] * beside, share, f"C{i}o", markersize=11, fillstyle="none")
        if what != "reward accuracy":
            ax.axhline(about.get(what, 0), color="grey", linewidth=0.8)  # the start
        ax.set(xscale="log", xlabel="learning rate", title=f"{title}\nstart: {name}")
axes[0, 0].legend(fontsize="small");

# %% [markdown]
# Upper row, the damaged adapter (*tuned without English*):
#
# - **The repair is real.** DPO at its best learning rate brings English back, and Chinese stays within a question or two.
# - **Plain tuning at its best learning rate does at least as well,** and Chinese stays at every rate. (Its best is the largest tried; $\beta$ was 0.1 throughout.)
# - **DPO with a larger learning rate loses Chinese,** and at the largest English too. Probably because most pairs say "not Chinese, but English" (see *Try*). The added SFT term loses less Chinese, and still loses.
# - **The reward does not see it.** Its accuracy is about as high where Chinese is lost: hardly one of the held-out pairs is about the language of a Chinese answer.
# - **Displacement** (chosen answers less likely than before) comes with the largest learning rate, for DPO alone.
#
# Lower row, notebook 04's adapter (*the recipe*): fewer mistakes, so fewer pairs and steps. At 1e-3 all three losses gain a few English answers, and Chinese moves by a question at most. The largest rate loses some Chinese, and there the chosen answers become less likely under every loss.
#
# When does a preference stage pay? It repairs a rule that is broken. But where the right answers are known, showing them is safer. Pairs are
# for questions where people can only say which answer is better. That we have not measured.
#
# **Try:** add pairs that say the opposite: Chinese questions, the English answer rejected. Does a larger learning rate keep Chinese then?
#
# ## Keep it
#
# In `runs/<scale>/preference_adapter`. `AURORA_ADAPTER`, set to its absolute path before Jupyter starts, makes notebooks 05 and 06 use it.

# %%
trainer.model.delete_adapter("ref")
save_adapter(trainer, scale, scale.runs / "preference_adapter");

# %% [markdown]
# ## Exercises
#
# (Exercise 05.2 asks for the log-probability of an answer.)
#
# **07.2 Build.** The reward accuracy, from log-probabilities `[pairs, 2]` of policy and reference.


# %%
def accuracy(policy, reference):
    return ...


exercises.check("07.2", accuracy)

# %% [markdown]
# <details><summary>Hint</summary>Subtract first, then compare the two columns. A positive beta changes no comparison.</details>
#
# **07.3 Hunt.** `policy`, `base` and `start` (the adapter that this stage began with) are log-probabilities `[pairs, 2]` of chosen and rejected. This loss has two
# bugs. Write it again without them.
#
# ```python
# def loss(policy, base, start, beta):
#     rewards = policy - base
#     margins = rewards[:, 1] - rewards[:, 0]
#     return -F.logsigmoid(beta * margins).mean()
# ```


# %%
def loss(policy, base, start, beta):
    return ...


exercises.check("07.3", loss)

# %% [markdown]
# <details><summary>Hint</summary>What has to be 0 before the first step? And which answer should win?</details>
#
# ## Paper, records and you

# %%
values = {
    "pairs": len(pairs),
    "held-out pairs": len(held_out),
    "preference training time [s]": round(run.metrics["train_runtime"], 1),
    "beta": args.beta,
    "held-out reward accuracy [share]": round(float((margins > 0).float().mean()), 3),
}
values |= {
    f"held-out loss, {when} [loss]": round(float(each.mean()), 4)
    for when, each in (("before", dpo(start, tuned, args.beta)[0]), ("after", losses))
}
made = {"before": before, "after DPO": after} | ({"after SFT": plain} if tiny else {})
for name in (name for name in before.scores if "either" not in name):
    values |= {f"{name}, {when} [share]": round(of.scores[name].accuracy, 3) for when, of in made.items()}
results.record("07", values)
results.compare("07")

# %% [markdown]
# **In short.** Let the model itself give the rejected answers. The reference is the model you start from: margin 0 and loss log 2 before the first
# step. A growing reward is what you trained, not what you wanted: ask held-out questions, in both languages. Let plain tuning compete.
#
# **Read:** DPO (2305.18290). **Back to:** [05 Evaluate](05_evaluate.ipynb), with `AURORA_ADAPTER` set.
