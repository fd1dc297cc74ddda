# %% [markdown]
# # 04 · Fine-tune: SFTTrainer, a 4-bit base and the paper's adapter
#
# Paper: sections 3 and 4.1. **After this notebook you can** run the paper's recipe, say what every value in it does and what happens
# if you change it, stop it and go on, and show with numbers how far the language of the answers changed, and what it cost.

# %%
import aurora_lib

scale = aurora_lib.start("04")

# %% [markdown]
# ## What the loss sees
#
# Each conversation (对话) is written in Mixtral's own format. The loss is taken on the *assistant's* tokens only, end token
# included; the rest is context. Below, in a conversation of two rounds, what is learned is bold (and green in Jupyter).

# %%
import html
import json

from IPython.display import HTML

from aurora_lib import tokenizer
from aurora_lib.conversations import clean_conversations

conversations = clean_conversations(scale)
words = tokenizer.load(scale.base_model, revision=scale.revision)
example = next((row for row in conversations if len(row["messages"]) == 4), conversations[0])
encoded = words.apply_chat_template(example["messages"], return_dict=True, return_assistant_tokens_mask=True)
pieces = zip(words.convert_ids_to_tokens(encoded["input_ids"]), encoded["assistant_masks"], strict=True)
shown = [
    f"<b style='background:#bfe8bf;color:#111'>{html.escape(piece)}</b>" if learned else html.escape(piece)
    for piece, learned in list(pieces)[:120]
]
HTML(" ".join(shown))

# %% [markdown]
# Count the end tokens `</s>` that are bold: one for each answer. A model that never learns them never stops talking.
#
# ## The recipe, every value in the open
#
# `peft` makes the adapter. These are the paper's values; where the paper is silent, those of its published command, else the defaults of
# its tool at the time (`paper.TRAINING` names the source of each).

# %%
from peft import LoraConfig

from aurora_lib import paper, training

lora = LoraConfig(
    task_type="CAUSAL_LM",
    target_modules=[
        "q_proj",
        "v_proj",
    ],  # the detours: queries and values of every layer; experts and router stay as they are
    r=8,  # rank, the width of a detour
    lora_alpha=16,  # its loudness: a detour's output is multiplied by alpha / r
    lora_dropout=0.1,  # against learning rows by heart
)

# %% [markdown]
# `trl` runs the training. What differs between the scales comes from `scale`; the rest is the same for both.

# %%
from trl import SFTConfig

args = SFTConfig(
    output_dir=str(scale.runs / "checkpoints"),
    learning_rate=scale.learning_rate,  # paper: 5e-5; tiny takes larger steps, for it has few
    lr_scheduler_type="cosine",  # falls to zero along half a cosine
    num_train_epochs=scale.epochs,  # paper: 3 passes over the data
    per_device_train_batch_size=scale.batch,  # original: 2 conversations at a time, what fits beside the weights ...
    gradient_accumulation_steps=scale.accumulation,  # ... and 4 such batches to a step: 8 conversations
    max_length=scale.length,  # cutoff, 1024 tokens in the original; notebook 02 has split what is longer
    assistant_only_loss=True,  # the picture above
    router_aux_loss_coef=0.0,  # TRL would add the load-balancing loss of notebook 01; the paper's stack did not
    bf16=scale.device
    == "cuda",  # the original: fp16. bf16 has the range of fp32, so small gradients do not vanish
    use_cpu=scale.device == "cpu",
    activation_checkpointing=scale.device
    == "cuda",  # recompute a layer instead of keeping what it needs: notebook 03
    dataloader_pin_memory=scale.device == "cuda",
    save_steps=scale.save_steps,  # paper: 1000. What an interruption can cost
    save_total_limit=2,  # the newest may be half-written, the one before it is whole
    logging_steps=10,
    include_num_input_tokens_seen="non_padding",  # for tokens a second
    ddp_find_unused_parameters=False,  # several GPUs: see configs/README.md
    seed=training.SEED,
    report_to="none",
)
assert args.to_dict() == training.sft_config(scale).to_dict() and lora == training.lora_config(scale)

# %% [markdown]
# ## Before you start: what will it take?
#
# Nothing is loaded yet. From the shapes of the model and a sample of the rows: steps, memory, disk, and, once an H100 has been recorded, hours and what they
# cost. What does not fit is refused here, with the table of notebook 03.

# %%
from transformers import AutoConfig

config = AutoConfig.from_pretrained(scale.base_model, revision=scale.revision)
plan = training.preflight(
    config, conversations, scale, args, price_per_hour=2.5
)  # put in what your GPU costs
plan

# %% [markdown]
# ## Before
#
# Questions about facts that tuning will *never* see, in Chinese and in English. (Pre-training has seen them: tuning is to bring them
# out in Chinese, not to teach them.) "Right" wants the right fact in the language of the question; in brackets the 95 % interval.

# %%
from aurora_lib import evaluation, nf4

base = nf4.load(scale.base_model, **scale.loading)
before = evaluation.probe(base, words, max_new_tokens=scale.max_new_tokens)
print(before)

# %% [markdown]
# The base understands (see "right in either language") and answers Chinese in English: the paper's starting point.
#
# ## Train
#
# `build_trainer` is an ordinary `SFTTrainer(model, args, train_dataset, processing_class, peft_config)` with three things of ours: after TRL has cast the adapter of a quantized
# model to bf16, it goes back to 32 bits, since a step of 5e-5 often rounds to nothing in 16 (exercise 04.3); an alarm stops a run whose gradient is zero; a meter
# logs tokens a second and memory. A few of the conversations are English on purpose, and further down you see why.

# %%
from aurora_lib.language import language

trainer = training.build_trainer(base, words, conversations, scale, args, lora)
trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
english = sum(language(row["messages"][-1]["content"]) == "en" for row in conversations)
print(f"{trained:,} trainable parameters, {len(conversations):,} conversations, {english} of them English")
loss_before = trainer.evaluate()["eval_loss"]

# %% [markdown]
# `training.run` is `trainer.train`, from the last whole checkpoint of this very run if there is one. Try it: interrupt the kernel (the ■ button) while it trains. It
# finishes the step in flight, writes a checkpoint, and says so; run the notebook again and it goes on. After a power cut it goes on too, from the last checkpoint. Both end with the
# very weights of a run that nobody disturbed.

# %%
from aurora_lib import callbacks

trainer.add_callback(callbacks.LivePlot(plan.memory))
run = training.run(trainer)

# %% [markdown]
# The memory is the whole process's, Python and its libraries included; the dashed line counts tensors only. On a GPU, where the allocator
# counts for itself, the two are comparable. The learning rate falls along its half cosine. And the gradient norm: never zero, or nothing was learned.

# %%
norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
assert min(norms) > 0
loss_after = trainer.evaluate()["eval_loss"]
print(f"{run.metrics['train_runtime']:.0f} s, smallest gradient norm {min(norms):.2g}")
print(f"loss on 64 of the training conversations {loss_before:.3f} -> {loss_after:.3f}")

# %% [markdown]
# ## After
#
# Three things to look at: the language of the answers to Chinese questions, whether they are right, and what became of English.

# %%
tuned = trainer.model.eval()
after = evaluation.probe(tuned, words, max_new_tokens=scale.max_new_tokens)
evaluation.plot({"base": before.scores, "tuned": after.scores}, chance=None, title="Held-out facts")
# %%
import pandas as pd

pd.options.display.max_colwidth = None
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
# Read the wrong answers too. They are fluent Chinese, and often begin with the right character and slide into another fact: a high
# share of Chinese alone would hide that. Notebook 05 asks the same model in another way, and there the right sentence wins: what suffers
# is free answering, not recognition.

# %%
wrong = [row for row in after.rows if row["asked"] == "zh" and not row["correct"]]
pd.DataFrame(wrong, columns=["question", "answer", "expected"]).head(5)

# %% [markdown]
# ## Keep the adapter
#
# A stock PEFT folder with a model card: any tool that knows PEFT can load it, see [take it elsewhere](take_it_elsewhere.md). The 4-bit base is not
# saved again, and the checkpoints go once the adapter is there whole.

# %%
from aurora_lib import adapters

folder = adapters.save_adapter(trainer, scale)
pd.DataFrame({"bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())}})

# %%
from IPython.display import Markdown

card = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)[2]
Markdown(card.replace("# ", "### "))

# %% [markdown]
# ## What if you change ...
#
# Guess first: which of these changes hurts, and whom? Each row below is one more tuning of a fresh base, recorded on two cores: the language of the answers to Chinese
# questions, how many are right, and the same for English. The first rows are the recipe with three seeds; read every other row against *their* spread.

# %%
from aurora_lib import experiments, results

record = json.loads((results.RECORDED / "tiny" / "experiments.json").read_text(encoding="utf-8"))
columns = ["variant", "seed", "zh_in_zh", "zh_right", "en_in_en", "en_right", "loss", "trainable", "english"]
table = pd.DataFrame([*record["seeds"]["rows"], *record["what if"]["rows"][1:]])[columns]
table.style.format(dict.fromkeys(columns[2:6], "{:.0%}") | {"loss": "{:.3f}", "trainable": "{:,}"}).hide()

# %% [markdown]
# - **Rank.** The thinnest detour does it: tuning moves a habit here, no knowledge.
# - **Learning rate.** The paper's 5e-5 is for a model ten thousand times larger and some sixteen thousand steps; in a few hundred it changes nothing.
# - **Router.** It can be trained too (`modules_to_save`, or LoRA on the bare parameter). That gains nothing the table could show.
# - **English rows.** The last four rows. Without any, the model answers English in Chinese: *forgetting* (灾难性遗忘). It is what users of
#   the original reported, in miniature, and a few rows of what should stay are the cheapest cure.
#
# Now your own. A result is kept on disk, so asking again is free; `experiments.sweep` runs several and makes the table.

# %%
trainer = tuned = base = None  # at full, one model on the GPU at a time
length = {} if scale.name == "tiny" else {"max_steps": 50}
mine = experiments.run(scale, conversations=conversations, english_share=0.0, settings=length)
pd.Series(mine)[["zh_in_zh", "zh_right", "en_in_en", "en_right", "loss", "steps", "seconds"]]

# %% [markdown]
# ## Padding, packing, optimizers
#
# Conversations of different lengths in one batch are filled up with *padding* (填充), which costs time and teaches nothing. *Grouping* puts like lengths together.
# *Packing* (打包) lays conversations end to end; attention is kept apart between them. Packed at the same batch, a step holds many more conversations, so there are far fewer steps: look
# what that does to the tiny model, and that one pack a step mends it.

# %%
columns = ["variant", "steps", "padding", "zh_right", "en_right", "loss", "cpu_seconds"]
pd.DataFrame(record["length"]["rows"])[columns].style.format(
    {"padding": "{:.1%}", "zh_right": "{:.0%}", "en_right": "{:.0%}", "loss": "{:.3f}"}, precision=0
).hide()

# %% [markdown]
# For Mixtral, predicted from the lengths of some thousand real conversations: the *floor* counts only reading the weights and multiplying, at the speed an H100 reaches in
# practice; the authors' own run took the hours printed below. Three epochs:

# %%
print(
    f"the authors' run: {paper.RUN['training time'].value / 3600:.1f} hours ({paper.RUN['training time'].source})"
)
pd.DataFrame(record["full, predicted"]["rows"])

# %% [markdown]
# And the paper's *4-bit optimizer*? Adam keeps two numbers for every trained weight. For an adapter that is little, whatever its bits; it matters where all weights are
# trained. State of the optimizer for Mixtral's adapter, as allocated, beside what training takes in all:

# %%
states = record["optimizers"]["Mixtral's adapter"]
print(f"training in all, predicted: {states['training in all, predicted [GiB]']} GiB")
pd.DataFrame({name: value for name, value in states.items() if isinstance(value, dict)}).T

# %% [markdown]
# From a terminal the same run is `python -m aurora_lib.training --scale full --max-minutes 30`; on several GPUs, `accelerate launch` with a file of
# [configs](../configs/README.md).

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
# <details><summary>Hint</summary>The label the loss skips is -100; <code>torch.where(mask.bool(), ..., ...)</code> chooses.</details>
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
values = {
    "learning rate": args.learning_rate,
    "epochs": args.num_train_epochs,
    "conversations": len(conversations),
}
values |= {"trainable parameters": trained, "training time [s]": round(run.metrics["train_runtime"], 1)}
values |= {"loss, base [loss]": round(loss_before, 4), "loss, tuned [loss]": round(loss_after, 4)}
for name in (name for name in before.scores if "either" not in name):
    values |= {f"{name}, base [share]": round(before.scores[name].accuracy, 3)}
    values |= {f"{name}, tuned [share]": round(after.scores[name].accuracy, 3)}
values["Chinese prompts right in either language before tuning [share]"] = round(
    before.score("zh", "understood").accuracy, 3
)
values["held-out prompts per language"] = before.score("zh", "correct").n
results.record("04", values)
results.compare("04")

# %% [markdown]
# **In short.** The loss sees the assistant's tokens and the end token. The adapter is a fraction of the model and stays in 32
# bits. The gradient norm must not be zero. Judge by held-out facts and by the language you tuned little, never by the loss alone.
# What is saved is the adapter; the base stays as it was.
#
# **Next:** [05 Evaluate](05_evaluate.ipynb).
