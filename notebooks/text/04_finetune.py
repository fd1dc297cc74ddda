# %% [markdown]
# # 04 · Fine-tune: SFTTrainer, a 4-bit base and the paper's adapter
#
# Paper: sections 3 and 4.1. **After this notebook you can** run the paper's recipe, say what every value in it does and what happens
# if you change it, stop it and go on, and show with numbers how far the language of the answers changed, and what it cost.
#
# **Time.** At `tiny` all three epochs are trained, in about a minute. At `full` they would take days; so this notebook trains for 30 minutes there (60 at `mid`), and the learning rate
# falls to zero in that time. `AURORA_MINUTES`, set before Jupyter starts (on Colab: `%env` before the first cell), is another number of minutes, and `AURORA_MINUTES=0` is the paper's three epochs. The rest of this page takes about 20 minutes
# at `full` (predicted), most of it loading. **What the text says of results, it says of `tiny`.**

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("04")

# %% [markdown]
# ## What the loss sees
#
# ![A two-turn conversation as token boxes: format and questions are grey, label -100; each answer and the &lt;/s&gt; after it are lit, and arrows show that every position predicts the next token.](images/loss_mask.svg)
#
# Each conversation (对话) is written in the base model's own format. The loss is taken on the *assistant's* tokens only, end token
# included; the rest is context. First comes what notebook 02 made of the rows: *set aside* are rows that are no conversation, *dropped* those that a
# cleaning step refused. A few conversations are held out as a *validation set* (验证集): training never reads them. Those with the same first question stay on one side; later questions can occur on both.
# Below, in a conversation of two rounds, what is learned is bold (and green in Jupyter).

# %%
import html
import json
import os

from IPython.display import HTML

from aurora_lib.data import clean_conversations, hold_out
from aurora_lib.model import batching, load_tokenizer

conversations, validation = hold_out(clean_conversations(scale))
print(f"{len(conversations):,} to train on, {len(validation)} held out for validation")
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
example = next((row for row in conversations if len(row["messages"]) == 4), conversations[0])
masks = dict(return_dict=True, return_assistant_tokens_mask=True)
encoded = tokenizer.apply_chat_template(example["messages"], **masks)
pieces = zip(batching.pieces(tokenizer, encoded["input_ids"]), encoded["assistant_masks"], strict=True)
shown = [
    f"<b style='background:#bfe8bf;color:#111'>{html.escape(piece)}</b>" if learned else html.escape(piece)
    for piece, learned in list(pieces)[:120]
]
HTML(" ".join(shown))

# %% [markdown]
# Count the end tokens that are bold (`</s>` in Mixtral's format; OLMoE's is oddly called `|||IP_ADDRESS|||`, and begins the conversation too): one for each answer. A model that never learns them never stops talking.
#
# ## The recipe, every value in the open
#
# `peft` makes the adapter. These are the paper's values; where the paper is silent, those of its published command, else the defaults of
# its tool at the time (`paper.TRAINING` names the source of each). In the comments, *paper* marks a value that the paper states, *original* one of
# its command or of its tools.

# %%
from peft import LoraConfig

from aurora_lib import training
from aurora_lib.course import paper

lora = LoraConfig(
    task_type="CAUSAL_LM",
    target_modules=["q_proj", "v_proj"],  # queries and values of every layer; experts and router stay
    r=8,  # rank, the width of a detour
    lora_alpha=16,  # its strength: a detour's output is multiplied by alpha / r
    lora_dropout=0.1,  # against learning rows by heart
)

# %% [markdown]
# `trl` runs the training. What differs between the scales comes from `scale`; the rest is the same for all.

# %%
import torch
from trl import SFTConfig

gpu = scale.device == "cuda"
args = SFTConfig(
    output_dir=str(scale.runs / "checkpoints"),
    learning_rate=scale.learning_rate,  # paper: 5e-5; mid 2e-4, QLoRA's; tiny 1e-2, for it has few steps
    lr_scheduler_type="cosine",  # falls to zero along half a cosine
    num_train_epochs=scale.epochs,  # paper: 3 passes over the data
    per_device_train_batch_size=scale.batch,  # original: 2 conversations at a time ...
    gradient_accumulation_steps=scale.accumulation,  # ... and 4 such batches to a step
    max_length=scale.length,  # original: 1024 tokens; notebook 02 has split what is longer
    packing=scale.minutes > 0,  # a run with little time does not spend it on padding: see below
    assistant_only_loss=True,  # the picture above
    router_aux_loss_coef=0.0,  # TRL would add notebook 01's load-balancing loss; the paper's stack did not
    bf16=scale.dtype == torch.bfloat16,  # it has the range of fp32, so small gradients do not vanish
    fp16=scale.dtype == torch.float16,  # original; also what a T4 has
    use_cpu=not gpu,
    activation_checkpointing=gpu,  # recompute a layer instead of keeping what it needs: notebook 03
    dataloader_pin_memory=gpu,
    dataset_num_proc=None if scale.name == "tiny" else os.cpu_count(),  # tokenizes on all cores
    save_steps=scale.save_steps,  # paper: 1000, more than a run of minutes has. What a power cut costs
    save_total_limit=2,  # the newest may be half-written, the one before it is whole
    logging_steps=1 if scale.minutes else 10,
    include_num_input_tokens_seen="non_padding",  # for tokens a second
    seed=training.SEED,
    report_to="none",
)

# %%
# `python -m aurora_lib.training` uses the same values
assert args.to_dict() == training.sft_config(scale).to_dict() and lora == training.lora_config()

# %% [markdown]
# ## Before you start: what will it take?
#
# The model is not loaded yet. From the shapes of the model and a sample of the rows: steps, memory, disk, hours and what they cost. Until an H100 has been
# recorded, the hours are the least that they can be. What does not fit is refused here, with the table of notebook 03.

# %%
from aurora_lib.model import read_config

config = read_config(scale.base_model, scale.revision)
price = 2.5  # an hour; put in what your GPU costs
plan = training.preflight(config, conversations, scale, args, price_per_hour=price, lora=lora)
plan

# %% [markdown]
# ## Before
#
# Questions about facts that no row of the tuning holds, in Chinese and in English. (So it is at `tiny`, whose pre-training has seen them: tuning is to bring them
# out in Chinese, not to teach them. Released rows may mention some.) "Right in Chinese" asks for the right fact, said in Chinese; "in either language" accepts both. In brackets the 95 % interval.

# %%
from aurora_lib import evaluation
from aurora_lib.model import load_model

base = load_model(scale.base_model, **scale.loading)
before = evaluation.probe(base, tokenizer, max_new_tokens=scale.max_new_tokens)
print(before)

# %% [markdown]
# At `tiny` the base understands (see "right in either language"). It answers Chinese in English, or in a mixture of both, and hardly ever in Chinese alone: the paper's starting
# point. (A mixed answer does not count as answered in Chinese.) At `mid` and `full` ask after the training: did "answered in Chinese" rise by more than its interval, and did English fall? If nothing moved, train longer.
#
# ## Train
#
# `build_trainer` is an ordinary `SFTTrainer(model, args, train_dataset, processing_class, peft_config)` with three things of ours: after TRL has cast the adapter of a quantized
# model to bf16, it goes back to 32 bits, since a step of 5e-5 often rounds to nothing in 16 (exercise 04.3); an alarm stops a run whose gradient is zero; a meter
# logs tokens a second and memory. At `tiny` a few of the conversations are English on purpose, and further down you see why.

# %%
from aurora_lib.data import language

trainer = training.build_trainer(base, tokenizer, conversations, args, lora, validation)
trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
english = sum(language(row["messages"][-1]["content"]) == "en" for row in conversations)
print(f"{trained:,} trainable parameters, {len(conversations):,} conversations, {english} of them English")

# %% [markdown]
# `training.run` is `trainer.train`, from the last whole checkpoint of this very run if there is one. Try it: interrupt the kernel (the ■ button) while it trains. It
# finishes the step in flight, writes a checkpoint, and says so. Run the cell again, and it goes on; or run the next cells, and they look at what there is. After a power cut the notebook goes on from
# the last checkpoint. With all epochs, both end with the very weights of a run that nobody disturbed.
#
# At `mid` and `full` the run is limited by *time* (`scale.minutes`; at `tiny` that is 0: all epochs). How many steps fit is not known before the run. So after the third step the speed is measured, and then again after every step: steps left = time left / seconds
# a step. The learning rate goes down the rest of its cosine in just these steps, and is zero when the time is over. Why not simply stop after half an hour? Then the learning rate would still be near its peak, and the last steps would be the noisiest. If you
# interrupt such a run and go on, the minutes already used are subtracted, and you may set another number of minutes first (not 0: all epochs are another run). It does not end with the very weights of an undisturbed one, since the speed decides the steps.

# %%
trainer.remove_callback(training.LivePlot)  # where the cell is run again
trainer.add_callback(training.LivePlot(plan.memory))
training.run(trainer, scale.minutes);

# %% [markdown]
# The loss is drawn on a logarithmic scale, the learning rate falls along its half cosine, and the dips in tokens/s are pauses: a checkpoint is written, or this picture is drawn. And the gradient norm:
# never zero, or nothing was learned.
#
# The picture shows the loss on conversations that are being learned. Did the model learn them by heart, or something that holds for others too? The validation set tells.
# The loss before tuning needs no second model: with the adapter closed, this one *is* the base. (At `full` the cell reads some 300 conversations twice: a minute or two.)

# %%
import pandas as pd

with trainer.model.disable_adapter():
    before_tuning = trainer.evaluate()
after_tuning = trainer.evaluate()
norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
norms = [norm for norm in norms if norm < float("inf")]  # steps that fp16 left out
assert min(norms) > 0
seconds = max(entry.get("seconds", 0) for entry in trainer.state.log_history)  # of all sessions
print(f"{trainer.state.global_step} steps, {seconds:.0f} s, smallest gradient norm {min(norms):.2g}")
losses = pd.DataFrame(
    {
        source: {
            "conversations": len(rows),
            "loss before": before_tuning[f"eval_{source}_loss"],
            "loss after": after_tuning[f"eval_{source}_loss"],
        }
        for source, rows in trainer.eval_dataset.items()
    }
).T
losses.style.format("{:.3f}").format("{:.0f}", subset="conversations")

# %% [markdown]
# At `tiny` it falls for all three sources, on conversations that training never read. (Nearly half of their answers stand word for word in a training row. So this loss alone does not tell learning from memory. The next section asks about facts that no row mentions.)
#
# ## After
#
# Three things to look at: the language of the answers to Chinese questions, whether they are right, and what became of English.

# %%
tuned = trainer.model.eval()
after = evaluation.probe(tuned, tokenizer, max_new_tokens=scale.max_new_tokens)
evaluation.plot({"base": before.scores, "tuned": after.scores}, chance=None, title="Held-out facts")
print(after)
# %%
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
# Read the wrong answers too. At `tiny` there are few, and all are fluent Chinese: about the right person or thing but beside the question, or about something else altogether. A share of Chinese alone would hide them.

# %%
wrong = [row for row in after.rows if row["asked"] == "zh" and not row["correct"]]
pd.DataFrame(wrong, columns=["question", "answer", "expected"]).head(5)

# %% [markdown]
# ## Keep the adapter
#
# A stock PEFT folder with a model card: any tool that knows PEFT can load it, see [take it elsewhere](take_it_elsewhere.md). The 4-bit base is not
# saved again, and the checkpoints go once the adapter is there whole.

# %%
from aurora_lib.model import save_adapter

folder = save_adapter(trainer, scale)
pd.DataFrame({"bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())}})

# %%
import re

from IPython.display import Markdown

card = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)[2]
Markdown(re.sub("(?m)^(#+ )", r"##\1", card))

# %% [markdown]
# ## What if you change ...
#
# Guess first: which of these changes hurts, and whom? Each row below is one more tuning of a fresh base, recorded at `tiny` on two cores: the language of the answers to Chinese
# questions, how many are right, and the same for English; then the loss on the validation set, the trainable parameters, and the rows, with how many of them are English. The first rows are the recipe with three seeds:
# read every other row against *their* spread. With one seed and so few questions, a few points are noise.

# %%
from aurora_lib.course import results

record = json.loads((results.RECORDED / "tiny" / "experiments.json").read_text(encoding="utf-8"))
columns = [
    "variant",
    "seed",
    "zh_in_zh",
    "zh_right",
    "en_in_en",
    "en_right",
    "loss",
    "trainable",
    "conversations",
    "english",
]
table = pd.DataFrame([*record["seeds"]["rows"], *record["what if"]["rows"][1:]])[columns]
table.style.format(dict.fromkeys(columns[2:6], "{:.0%}") | {"loss": "{:.3f}", "trainable": "{:,}"}).hide()

# %% [markdown]
# - **Rank and targets.** The thinnest detour does as well as the recipe. Wider ones, and all of attention, answer no better in Chinese.
# - **Learning rate.** The paper's 5e-5 is for a model ten thousand times larger and some sixteen thousand steps (of 32 conversations, by the speeds of the authors' run; their published command
#   makes 8); in a few hundred it changes no answer's language. A tenth of our rate is enough here. Three times the rate lies just outside the three seeds; one run alone cannot show more.
# - **Router.** LoRA on its bare parameter takes no dropout, so compare it with the row *no dropout*: nothing gained that the table could show. Nor by training it whole (`modules_to_save`).
# - **English rows.** The recipe at `tiny` has about one in ten; the row with the largest share was made by leaving out Chinese ones. Without any, the model begins to answer English in Chinese: the first sign of *forgetting* (灾难性遗忘), a relative of
#   what users of the original reported (its issue 9: step-by-step reasoning was lost). Already a few rows of what should stay keep most of it: a cheap insurance.
#
# Now your own: the cell makes the row *no English rows* anew (larger models make a few steps on a few conversations: some minutes, most of them loading, and a result that cannot be compared with the table); put in a value of yours (`lora={"r": 2}`, `settings={"learning_rate": 3e-3}`). A result is kept on disk, so asking again is free.

# %%
from aurora_lib.training import experiments

trainer = tuned = base = None  # one model on the GPU at a time
rows, short = conversations, {}
if scale.name != "tiny":  # minutes instead of days, and enough to see the loss move
    rows = conversations.shuffle(seed=0).select(range(min(2000, len(conversations))))
    short = {"max_steps": 20}
mine = experiments.run(scale, rows, validation, english_share=0.0, settings=short)
pd.Series(mine)[["zh_in_zh", "zh_right", "en_in_en", "en_right", "loss", "steps", "seconds"]]

# %% [markdown]
# ## Padding, packing, optimizers
#
# Conversations of different lengths in one batch are filled up with *padding* (填充), which costs time and teaches nothing. *Grouping* puts like lengths together.
# *Packing* (打包) lays conversations end to end; attention is kept apart between them. Packed at the same batch, a step holds many more conversations, so there are far fewer steps: look
# what that does to the tiny model, and that one pack a step mends it. At `mid` and `full`, where minutes limit the run, it is on; to turn it on in any case: `training.sft_config(scale, packing=True)`; for grouping,
# `train_sampling_strategy="group_by_length"`.

# %%
columns = ["variant", "steps", "padding", "zh_right", "en_right", "loss", "cpu_seconds"]
pd.DataFrame(record["length"]["rows"])[columns].style.format(
    {"padding": "{:.1%}", "zh_right": "{:.0%}", "en_right": "{:.0%}", "loss": "{:.3f}"}, precision=0
).hide()

# %% [markdown]
# For Mixtral, predicted from the lengths of a few thousand real conversations, as many as the paper's and split where they are too long: the *floor* of three epochs counts only reading the weights and multiplying, at the
# speed one H100 reaches in practice. The authors' own run took the hours printed first, on one GPU, as their early README says.

# %%
published = paper.RUN["training time"]
print(f"the authors' run: {published.value / 3600:.1f} hours ({published.source})")
print(f"conversations after splitting, about: {record['full, predicted']['stands for']:,}")
pd.DataFrame(record["full, predicted"]["rows"])

# %% [markdown]
# And the *4-bit optimizer* that the paper names (section 3)? Adam keeps two numbers for every trained weight. For an adapter that is little, however many bits each takes; it matters where all weights are
# trained. To try one: `sft_config(scale, optim="adamw_torch_4bit")` (after `pip install torchao`) or `optim="paged_adamw_8bit"`. State of the optimizer for Mixtral's adapter, as allocated, beside what training takes in all:

# %%
from aurora_lib.model import memory

states = record["optimizers"]["Mixtral's adapter"]
print(f"training in all, predicted: {memory.predict(memory.MIXTRAL_8X7B).total:.2f} GiB")
pd.DataFrame(states).T.astype({"parameters": int})

# %% [markdown]
# From a terminal the same run is `python -m aurora_lib.training --scale full --minutes 30`; the minutes are of training, and cleaning, loading and tokenizing come before.
# Step by step on a rented machine: [docs/h100.md](../docs/h100.md).

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
# **04.2** The cosine schedule: the learning rate at `step` of `total`, from `peak` down to zero (plain numbers).


# %%
def rate(step, total, peak):
    return ...


exercises.check("04.2", rate)

# %% [markdown]
# <details><summary>Hint</summary>Half a period of a cosine, lifted and halved so that it runs from 1 to 0.</details>
#
# **04.3** Does an update survive in bfloat16? True if adding it changes the weight (plain numbers come in).


# %%
def survives(weight, update):
    return ...


exercises.check("04.3", survives)

# %% [markdown]
# <details><summary>Hint</summary><code>torch.tensor(weight, dtype=torch.bfloat16)</code>: 8 significant bits.</details>
#
# ## Paper, records and you

# %%
values = {
    "learning rate": args.learning_rate,
    "epochs": args.num_train_epochs,
    "conversations": len(conversations),
}
values |= {"trainable parameters": trained, "training time [s]": round(seconds, 1)}
weights = losses["conversations"] / losses["conversations"].sum()
for which, column in (("base", "loss before"), ("tuned", "loss after")):
    values[f"validation loss, {which} [loss]"] = round((weights * losses[column]).sum(), 4)
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
