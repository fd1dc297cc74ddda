# %% [markdown]
# # 04 · Fine-tune: SFTTrainer, a 4-bit base and the paper's adapter
#
# Paper: sections 3 and 4.1. **After this notebook you can** run the paper's recipe, say what every value in it does, and show
# with numbers that the language of the answers changed and the knowledge did not.

# %%
import aurora_lib

scale = aurora_lib.start("04")

# %% [markdown]
# ## Conversations in, and what the loss sees
#
# Each conversation (对话) is written in Mixtral's own format. The loss is taken on the *assistant's* tokens only, end token
# included; the rest is context. Below, what is learned is green.

# %%
import html

from IPython.display import HTML

from aurora_lib import cleaning, tokenizer

conversations = cleaning.conversations(scale)
words = tokenizer.load(scale.base_model, revision=scale.revision)
example = max(conversations.select(range(min(50, len(conversations)))), key=lambda row: len(row["messages"]))
encoded = words.apply_chat_template(example["messages"], return_dict=True, return_assistant_tokens_mask=True)
pieces = zip(words.convert_ids_to_tokens(encoded["input_ids"]), encoded["assistant_masks"], strict=True)
HTML(
    "<div style='line-height:2'>"
    + "".join(
        f"<span style='background:{'#bfe8bf' if learned else '#eee'};color:#111;padding:2px;margin:1px'>{html.escape(piece)}</span>"
        for piece, learned in list(pieces)[:120]
    )
    + "</div>"
)

# %% [markdown]
# ## The recipe, every value in the open

# %%
import pandas as pd

from aurora_lib import paper, training

lora, args = training.lora_config(scale), training.sft_config(scale)
why = {
    "learning rate": (args.learning_rate, "tiny: a small model needs a larger step"),
    "epochs": (args.num_train_epochs, "three passes over the data"),
    "batch per device": (args.per_device_train_batch_size, "what fits beside the weights"),
    "gradient accumulation": (args.gradient_accumulation_steps, "2 x 4 conversations share a step"),
    "save every": (args.save_steps, "a checkpoint to resume from"),
    "LoRA rank": (lora.r, "width of the detour"),
    "LoRA alpha": (lora.lora_alpha, "scales the detour by alpha / r"),
    "LoRA dropout": (lora.lora_dropout, "against learning rows by heart"),
    "cutoff": (args.max_length, "longer conversations are cut"),
}
pd.DataFrame(
    [
        {"setting": k, "paper": f"{paper.TRAINING[k].value:g}", "here": f"{here:g}", "what for": reason}
        for k, (here, reason) in why.items()
    ]
)

# %% [markdown]
# Not in the table: the adapter sits on `q_proj` and `v_proj`. The original trained in fp16; a GPU here uses bf16, which has the
# range of fp32 and needs no loss scaling. TRL's load-balancing loss is switched off, since the paper's stack had none. And after
# the trainer is built, the adapter goes back to 32 bits: TRL casts it to bf16, where a step of 5e-5 often rounds to nothing
# (exercise 04.3).
#
# ## Before you start: does it fit?

# %%
from aurora_lib import memory, nf4

base = nf4.load(scale.base_model, **scale.loading)
budget = memory.predict(base.config, batch=scale.batch, length=scale.length, dtype=scale.loading["dtype"])
budget.require(scale.device)
steps = -(-len(conversations) // (scale.batch * scale.accumulation)) * scale.epochs
print(f"predicted: {budget.total * 1024:,.0f} MiB beside Python itself; about {steps:,.0f} steps")

# %% [markdown]
# ## Before
#
# Questions about facts that tuning will *never* see, in Chinese and in English. "Right" wants the right fact in the language of
# the question.

# %%
from aurora_lib import evaluation

before = evaluation.probe(base, words, max_new_tokens=scale.max_new_tokens)
print(before)

# %% [markdown]
# The base understands (see "right in either language") and answers Chinese in English: the paper's starting point.
#
# ## Train
#
# `build_trainer` is an ordinary `SFTTrainer(model, args, train_dataset, processing_class, peft_config)`, plus an alarm that stops a run
# whose gradient is zero. If a former run was interrupted, this one goes on from its last complete checkpoint.

# %%
trainer = training.build_trainer(base, words, conversations, scale, args)
trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
print(f"{trained:,} trainable parameters, {len(conversations):,} conversations")
loss_before = trainer.evaluate()["eval_loss"]
with memory.profile(scale.device) as profile:
    profile.mark("train")
    run = trainer.train(resume_from_checkpoint=training.checkpoint_to_resume(args.output_dir))
loss_after = trainer.evaluate()["eval_loss"]
print(
    f"{run.metrics['train_runtime']:.0f} s; loss on the first conversations {loss_before:.3f} -> {loss_after:.3f}"
)

# %%
import matplotlib.pyplot as plt

log = pd.DataFrame(trainer.state.log_history)
figure, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained")
for ax, column in zip(axes.flat, ("loss", "learning_rate", "grad_norm"), strict=False):
    log.dropna(subset=[column]).plot(x="step", y=column, ax=ax, legend=False, title=column.replace("_", " "))
assert (log.grad_norm.dropna() > 0).all()
profile.plot(ax=axes[1, 1]);

# %% [markdown]
# ## After

# %%
tuned = trainer.model.eval()
after = evaluation.probe(tuned, words, max_new_tokens=scale.max_new_tokens)
evaluation.plot({"base": before.scores, "tuned": after.scores}, chance=None, title="Held-out facts");

# %%
shown = [row for row in after.rows if row["asked"] == "zh"][::12]
was = {row["question"]: row["answer"] for row in before.rows}
pd.DataFrame(
    {
        "question": [r["question"] for r in shown],
        "base": [was[r["question"]] for r in shown],
        "tuned": [r["answer"] for r in shown],
    }
)

# %% [markdown]
# Read the wrong answers too: a fluent Chinese sentence can carry the wrong fact, and a high share of Chinese alone would hide it.

# %%
wrong = [row for row in after.rows if row["asked"] == "zh" and not row["correct"]]
pd.DataFrame(wrong, columns=["question", "answer", "expected"]).head(5)

# %% [markdown]
# ## Keep the adapter
#
# A stock PEFT folder: any tool that knows PEFT can load it. The 4-bit base is not saved again.

# %%
folder = training.save_adapter(trainer, scale)
pd.DataFrame({"bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())}})

# %% [markdown]
# ## Exercises
#
# **04.1** Labels from ids and assistant mask: what the assistant did not say gets the label that the loss skips.

# %%
from aurora_lib import exercises


def labels(ids, mask):
    return ...


exercises.check("04.1", labels)

# %% [markdown]
# <details><summary>Hint</summary>The label the loss skips is -100; <code>torch.where</code> chooses.</details>
#
# **04.2** The cosine schedule: the learning rate at `step` of `total`, from `peak` down to zero.

# %%
def rate(step, total, peak):
    return ...


exercises.check("04.2", rate)

# %% [markdown]
# <details><summary>Hint</summary>Half a period of a cosine, lifted and halved so that it runs from 1 to 0.</details>
#
# **04.3** Does an update survive in bfloat16? True if adding it changes the weight.

# %%
def survives(weight, update):
    return ...


exercises.check("04.3", survives)

# %% [markdown]
# <details><summary>Hint</summary><code>torch.tensor(weight, dtype=torch.bfloat16)</code>: 8 bits of precision.</details>
#
# ## Paper, records and you

# %%
from aurora_lib import results

values = {
    "learning rate": args.learning_rate,
    "epochs": args.num_train_epochs,
    "conversations": len(conversations),
}
values |= {"trainable parameters": trained, "training time [s]": round(run.metrics["train_runtime"], 1)}
values |= {"loss, base [loss]": round(loss_before, 4), "loss, tuned [loss]": round(loss_after, 4)}
for name in before.scores:
    values |= {f"{name}, base [share]": round(before.scores[name].accuracy, 3)}
    values |= {f"{name}, tuned [share]": round(after.scores[name].accuracy, 3)}
values["held-out prompts per language"] = before.score("zh", "correct").n
results.record("04", values)
results.compare("04")

# %% [markdown]
# **In five lines.** The loss sees the assistant's tokens and the end token. The adapter is a fraction of the model and stays in 32
# bits. The gradient norm must not be zero. Judge by held-out facts and by the language you did not tune, never by the loss alone.
# What is saved is the adapter; the base stays as it was.
#
# **Next:** [05 Evaluate](05_evaluate.ipynb).
