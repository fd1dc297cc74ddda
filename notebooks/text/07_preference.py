# %% [markdown]
# # 07 · Preference tuning: DPO as a second stage
#
# Optional. The paper has no such stage; its repository recommends a DPO variant of the model. **After this notebook you can** make
# preference pairs, run Direct Preference Optimization (DPO, 直接偏好优化, arXiv 2305.18290) on top of your adapter with the right
# reference model, and tell a better reward from a better model. Unless a sentence names another scale, its results are those of `tiny`.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("07")

# %% [markdown]
# ## Pairs: one question, a better and a worse answer
#
# Tuning in notebook 04 showed right answers only. A preference pair (偏好对) also says what is *wrong*, so the worse answers should be those
# the model is prone to give. Ours are made of the facts that notebook 04 trained on at `tiny`, and show three ways in which such a model can err: it slides into
# another fact that begins alike, falls back on English, or forgets English. They suit the tiny model; for a large one,
# `AURORA_PREFERENCES=/a/file.jsonl` reads pairs of your own (columns `prompt`, `chosen`, `rejected`). A row that is no pair is left out, with its reason.

# %%
import pandas as pd

from aurora_lib.training import preference

pd.options.display.max_colwidth = None
pairs = preference.load_pairs()
held_out = preference.held_out_pairs()
print(f"{len(pairs.kept)} pairs, {len(pairs.dropped)} rows left out")
print(f"{len(held_out)} pairs about held-out facts to measure on")
table = pd.DataFrame({name: [row[name][-1]["content"] for row in pairs.kept] for name in preference.COLUMNS})
table.insert(0, "kind", pairs.kept["kind"])
table.groupby("kind").head(2).sort_values("kind").set_index("kind")

# %% [markdown]
# ## Does it fit, and where do we start?
#
# Each pair is two sequences. A reference model is needed too, but no second copy of the weights: base and
# tuned model differ by an adapter, and so do policy and reference. (It costs time, one more pass forward a batch; over several epochs
# `precompute_ref_log_probs=True` makes that pass once.)

# %%
from aurora_lib import evaluation
from aurora_lib.model import find_adapter, load_adapter, load_model, load_tokenizer, memory, save_adapter

adapter = find_adapter(scale)  # before minutes of loading
base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
budget = memory.predict(base.config, batch=2 * scale.batch, length=scale.length, dtype=scale.loading["dtype"])
budget.require(scale.device)
copy = 4 * budget.adapter_parameters / 2**20
print(f"predicted: {budget.total * 1024:,.0f} MiB beside Python itself; the reference adds {copy:.2f} MiB")
model = load_adapter(base, adapter)
before = evaluation.probe(model, tokenizer, max_new_tokens=scale.max_new_tokens)
print(before)

# %% [markdown]
# At `tiny` little room is left above, which is worth knowing *before* a second stage: a few answers more or less lie within the intervals.
#
# ## The loss, by hand
#
# DPO needs no reward model. How much more the trained model (*policy*) likes an answer than a frozen *reference* does, is the reward:
# $r = \beta\,(\log p_\text{policy} - \log p_\text{ref})$. The loss is $-\log\sigma(r_\text{chosen} - r_\text{rejected})$; the difference
# is called the *margin*. The larger $\beta$ is, the more it costs to move away from the reference.

# %%
import torch
import torch.nn.functional as F


def dpo(policy, reference, beta):
    """Loss and margin of each pair, from log-probabilities [pairs, 2] of chosen and rejected."""
    rewards = beta * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    return -F.logsigmoid(margins), margins


args = preference.dpo_config(scale)
trainer = preference.build_trainer(model, tokenizer, pairs.kept, held_out, args)
measured = trainer.get_eval_dataloader()  # the held-out pairs, in batches
model.set_adapter("ref")  # TRL's frozen copy of the tuned adapter: the next lines are about it
tuned = preference.logps(model, measured)
with model.disable_adapter():
    untuned = preference.logps(model, measured)
model.set_adapter("default")
start = preference.logps(model, measured)

# %% [markdown]
# ### The trap: which reference?
#
# `DPOTrainer` takes the model *without adapter* as reference when it is given a base and a new `peft_config`. After a first stage, that is the
# wrong one: it is the model that answers Chinese in English or in a mixture. Given a model that *has* an adapter, TRL keeps a frozen
# copy of it, named `ref`. The check costs one line: before the first step, policy and reference are the same model, so every margin
# is 0 and the loss is log 2.

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
# With the base as reference the margins are not 0 before the first step: what notebook 04 achieved is credited to DPO, and those pairs
# hardly change the weights any more. And TRL rounds the adapter to bf16 on the way in, the copy not: policy and reference would differ from the start.
# `preference.build_trainer` puts the exact weights back, in 32 bits.
#
# ## Train
#
# An ordinary `DPOTrainer(model, args, train_dataset, eval_dataset, processing_class)`. Load-balancing loss off, an alarm for
# a zero gradient, checkpoints to resume from: as in notebook 04. Only the answer counts, its end token included.

# %%
from aurora_lib import training

row = trainer.train_dataset[0]
print(
    tokenizer.decode(row["prompt_ids"]),
    "|",
    tokenizer.decode(row["chosen_ids"]),
    "|",
    tokenizer.decode(row["rejected_ids"]),
)
shown = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "beta",
    "loss_type",
    "loss_weights",
    "router_aux_loss_coef",
)
print({name: getattr(args, name) for name in shown})
run = training.run(trainer)
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
# Look at the left picture first: the rejected line falls, and the chosen one falls with it, though less. The loss only wants the two lines *apart*: it is content if both fall and the rejected one falls faster.
# So even the right answer becomes less likely (*likelihood displacement*). That is why the chosen answers' own loss, the first stage's, is
# often added (`loss_type=["sigmoid", "sft"]`).
#
# ## Measure: the reward, on pairs it has not seen
#
# *Reward accuracy* (奖励准确率) is the share of pairs with a margin above 0. First, our loss against TRL's.

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
judged = pd.DataFrame({"kind": held_out["kind"], "margin": margins, "margin > 0": (margins > 0).float()})
judged["chosen likelier than rejected, before"] = (tuned[:, 0] > tuned[:, 1]).float()
judged["after"] = (after_logps[:, 0] > after_logps[:, 1]).float()
judged.groupby("kind").mean().round(3)

# %% [markdown]
# Read the kinds one by one, as an average hides them. Which *language* to answer in is one rule, and carries over to questions never trained
# on. Which *fact* is right is not a rule, and need not carry over.
#
# The last two columns are another question: is the right answer likelier than the wrong one, reference or not? Compare them: the margins grew, and these shares did not. Where the right one was likelier before, there was
# nothing to repair, and a growing margin repairs nothing. Better pairs come from the model itself: sample several answers to each training
# question, and keep as rejected what it really said wrong.
#
# ## Measure: the answers
#
# What counts is the table of notebook 04, on facts that no stage has trained on.

# %%
after = evaluation.probe(model.eval(), tokenizer, max_new_tokens=scale.max_new_tokens)
evaluation.plot(
    {"tuned": before.scores, "preference-tuned": after.scores}, chance=None, title="Held-out facts"
)
# %%
pair = {}
for asked in ("zh", "en"):
    pair[asked] = evaluation.scores.paired(before.hits(asked, "correct"), after.hits(asked, "correct"))
    print(f"asked in {asked}: {pair[asked]}")
    print("  luck alone could explain this difference" if pair[asked].p > 0.05 else "  more than luck")

# %%
changed = [(a, b) for a, b in zip(before.rows, after.rows, strict=True) if a["correct"] != b["correct"]]
pd.DataFrame(
    [
        {
            "question": a["question"],
            "tuned": a["answer"],
            "preference-tuned": b["answer"],
            "right now": b["correct"],
        }
        for a, b in changed
    ]
)

# %% [markdown]
# Look at what was lost before you read on. Read it so: the reward is what was trained, so it grows; the answers are what was wanted, and they need not follow. A reward accuracy is a
# statement about *given* pairs, while an answer is chosen among all sentences there are. Three questions to ask of
# any such result: does the interval of the difference hold 0? Did a third thing, here English, pay for it? And would the same number of
# further steps of plain tuning have done as much? (Your task, if you like: `dpo_config(scale, loss_type=["sft"])`, and run from "Does it fit, and where do we start?" on, which loads notebook 04's adapter again.)
#
# ## Keep it
#
# Beside notebook 04's adapter, not over it. It is `runs/<scale>/preference_adapter`. `AURORA_ADAPTER`, set to its
# absolute path before Jupyter starts, makes notebooks 05 and 06 use it.

# %%
trainer.model.delete_adapter("ref")
folder = save_adapter(trainer, scale, scale.runs / "preference_adapter")
pd.DataFrame({"bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())}})

# %% [markdown]
# ## Exercises
#
# **07.1** log p(answer | question) from logits `[tokens, vocabulary]`, ids `[tokens]` and a mask that is 1 on the answer's tokens.

# %%
from aurora_lib import exercises


def answer_logp(logits, ids, mask):
    return ...


exercises.check("07.1", answer_logp)

# %% [markdown]
# <details><summary>Hint</summary>The logits at one place are about the token at the next: drop the last row of logits, and the first of ids and mask;
# then <code>log_softmax</code> and <code>gather</code>.</details>
#
# **07.2** The reward accuracy, from log-probabilities `[pairs, 2]` of policy and reference.


# %%
def accuracy(policy, reference):
    return ...


exercises.check("07.2", accuracy)

# %% [markdown]
# <details><summary>Hint</summary>Subtract first, then compare the two columns. A positive beta changes no comparison.</details>
#
# **07.3** How strongly does a pair still pull? The size of the slope of $-\log\sigma(\beta\,m)$ at the log-ratio difference $m$ (plain numbers).


# %%
def pull(m, beta):
    return ...


exercises.check("07.3", pull)

# %% [markdown]
# <details><summary>Hint</summary>The derivative of log σ(x) is σ(-x); the chain rule adds a factor.</details>
#
# ## Paper, records and you

# %%
from aurora_lib.course import results

values = {
    "pairs": len(pairs.kept),
    "held-out pairs": len(held_out),
    "preference training time [s]": round(run.metrics["train_runtime"], 1),
}
values |= {
    "beta": args.beta,
    "held-out reward accuracy [share]": round(float((margins > 0).float().mean()), 3),
}
for kind, share in judged.groupby("kind")["margin > 0"].mean().items():
    values[f"held-out reward accuracy, {kind} [share]"] = round(share, 3)
values |= {
    f"held-out loss, {when} [loss]": round(float(each.mean()), 4)
    for when, each in (("before", dpo(start, tuned, args.beta)[0]), ("after", losses))
}
for name in (name for name in before.scores if "either" not in name):
    values |= {f"{name}, tuned [share]": round(before.scores[name].accuracy, 3)}
    values |= {f"{name}, preference-tuned [share]": round(after.scores[name].accuracy, 3)}
results.record("07", values)
results.compare("07")

# %% [markdown]
# **In short.** A pair says what is wanted and what is not. The reference is the model you start from: margin 0 and loss log 2 before the first
# step, or something is wrong. Two answers can move apart while both sink. A growing reward is what you trained, not what you
# wanted: ask held-out questions, in both languages, in pairs. Where little is left to gain, a second stage mostly adds risk.
#
# **Read:** DPO (2305.18290). **Back to:** [05 Evaluate](05_evaluate.ipynb), with `AURORA_ADAPTER` set.
