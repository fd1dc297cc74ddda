# %% [markdown]
# # 04 · Fine-tune: SFTTrainer, a 4-bit base and the paper's adapter
#
# Paper: sections 3 and 4.1. **After this notebook you can** run the paper's recipe, say what every value in it does and what happens
# if you change it, stop it and go on, and show with numbers how far the language of the answers changed, and what it cost.
#
# **Time.** At `tiny` all three epochs are trained, in about a minute. **What the text says of results, it says of `tiny`.** At `mid` and `full` three epochs take days.
# So training there is limited by *time*: 60 minutes at `mid`, 30 at `full`. `AURORA_MINUTES`, set before Jupyter starts (on Colab: `%env` before the first cell), is another number of minutes.
# `AURORA_MINUTES=0` trains the paper's three epochs. The rest of this page takes about 20 minutes at `full` (predicted), most of it loading.

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
# cleaning step refused. A few conversations are held out as a *validation set* (验证集): training never reads them. Conversations with the same first question go to the same side.
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
# `peft` makes the adapter: beside a frozen matrix W lie two thin ones, A and B, and the layer's output becomes W x + (alpha / r) B A x. These are the paper's values; where the paper is silent, those of its published command, else the defaults of
# its tool at the time (`paper.TRAINING` names the source of each). In the comments, *paper* marks a value that the paper states, *original* one of
# its command or of its tools.

# %%
from peft import LoraConfig

from aurora_lib import training
from aurora_lib.course import paper

lora = LoraConfig(
    task_type="CAUSAL_LM",
    target_modules=["q_proj", "v_proj"],  # queries and values of every layer; experts and router stay
    r=8,  # rank: how thin A and B are
    lora_alpha=16,  # the strength of B A x, by alpha / r
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
# The model is not loaded yet. From its shapes and a sample of the rows: steps, memory, disk, hours and what they cost. Where a speed was recorded on an H100, the hours come from it; else they are a
# lower limit. What does not fit is refused here, with the table of notebook 03.

# %%
from aurora_lib.model import read_config

config = read_config(scale.base_model, scale.revision)
price = 2.5  # an hour; put in what your GPU costs
plan = training.preflight(config, conversations, scale, args, price_per_hour=price, lora=lora)
plan

# %% [markdown]
# **Which recipe was it?** The authors published one command: batches of 2 conversations, and 4 batches to a step. The log beside their released adapter shows another run. Its conversations a second, divided by its steps a second, give the conversations in a step. What that means at three epochs:

# %%
import pandas as pd

from aurora_lib.course import results

on_gpu, rows = results.recorded("mixtral_8x7b", "h100"), paper.CONVERSATIONS["total"].value
logged = round(paper.RUN["conversations a second"].value / paper.RUN["steps a second"].value)
command = int(paper.TRAINING["batch per device"].value * paper.TRAINING["gradient accumulation"].value)
measured = "training, the stack of 2023: batch {}, nvidia-smi [GiB]"
pd.DataFrame(
    {
        "conversations a step": [command, logged],
        "steps": [round(3 * rows / each) for each in (command, logged)],
        "learning rate": 2 * [f"{paper.TRAINING['learning rate'].value:g}"],
        "memory (nvidia-smi), their stack [GiB]": [on_gpu[measured.format(batch)] for batch in (2, 16)],
    },
    index=["published command: 2 x 4", "run of the released adapter, taken as 16 x 2"],
).style.format({"steps": "{:,}", "memory (nvidia-smi), their stack [GiB]": "{:.1f}"})

# %% [markdown]
# A quarter of the steps at the same learning rate: the adapter is moved a quarter as often, each time by a gradient that more conversations agree on. Which gives the better model, nobody has measured. The memory depends on the batch that is on the GPU at once (2 or 16), and only the larger one needs
# about as much as the paper states, 43 to 45 GiB. (Measured on one H100, with random weights.) We follow the published command. To follow the other run: `sft_config(scale, per_device_train_batch_size=16, gradient_accumulation_steps=2)`.
#
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
# point. (A mixed answer does not count as answered in Chinese.)
#
# ## The trainer
#
# `SFTTrainer` does most of the work: it writes the conversations in the model's format, makes the mask, puts the adapter on the base. Three corrections make it fit a 4-bit Mixtral. They are numbered in the cell.
#
# 1. TRL would add notebook 01's load-balancing loss to ours. The paper's stack did not. `router_aux_loss_coef=0.0`, above, turns it off.
# 2. A gradient of zero teaches nothing, and the loss does not show it. An alarm stops the run (exercise 04.2 has such a fault).
# 3. TRL casts the adapter of a quantized model to 16 bits. Those have about three decimal digits, so adding 5e-5 to a weight often changes nothing (exercise 04.3). So it goes back to 32.

# %%
from transformers import set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from trl import SFTTrainer

from aurora_lib.data import language
from aurora_lib.training import callbacks

held_out = {
    source: validation.filter(lambda row, source=source: row["source"] == source).select_columns(["messages"])
    for source in sorted(set(validation["source"]))
}
set_seed(args.seed)  # the adapter's first weights are random
trainer = SFTTrainer(
    model=base,
    args=args,  # 1
    train_dataset=conversations.select_columns(["messages"]),
    eval_dataset=held_out,
    processing_class=tokenizer,
    peft_config=lora,
    callbacks=[callbacks.ZeroGradientAlarm(), callbacks.Meter(), callbacks.Bar()],  # 2
)
for parameter in trainer.model.parameters():
    if parameter.requires_grad:
        parameter.data = parameter.data.float()  # 3
trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # a table that grows with every entry of the log
trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
english = sum(language(row["messages"][-1]["content"]) == "en" for row in conversations)
print(f"{trained:,} trainable parameters, {len(conversations):,} conversations, {english} of them English")

# %% [markdown]
# (A few of the conversations are English on purpose. Further down you see why.) The library's `build_trainer` does the same, and says more clearly what is wrong with bad input. The same weights, the same tokens, the same labels:

# %%
if scale.name == "tiny":  # a second model in memory: elsewhere it is too large
    second = load_model(scale.base_model, **scale.loading)
    library = training.build_trainer(second, tokenizer, conversations, args, lora, validation)
    ours, theirs = (dict(each.model.named_parameters()) for each in (trainer, library))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == p.dtype and torch.equal(ours[name], p) for name, p in theirs.items())
    assert trainer.train_dataset[:] == library.train_dataset[:]
    assert all(trainer.eval_dataset[name][:] == rows[:] for name, rows in library.eval_dataset.items())
    names = [[type(one) for one in each.callback_handler.callbacks] for each in (trainer, library)]
    assert names[0] == names[1]
    print(f"equal: {len(ours)} tensors, {len(library.train_dataset)} rows, {len(names[0])} callbacks")
    library = second = None

# %% [markdown]
# ## Train, and watch
#
# Before the first step, early on, every 20 steps and at the end, the run pauses for a moment. A few held-out questions are asked, in both languages, and the loss on the validation set is taken. The answer to the first question is printed.
#
# **Before you run the cell:** the base answers in English, or in a mixture. After how many of the steps will the answer be Chinese? And what moves first: the loss, the language, or the facts?
#
# Within `resumable` the run can be stopped (the ■ button): it finishes the step in flight, writes a checkpoint, and says so. Run the cell again, and it goes on. After a power cut it goes on from the last whole checkpoint.
# With all epochs, a run that was stopped ends with exactly the weights of one that was not.
#
# <details><summary>A run that is limited by time (<code>mid</code>, <code>full</code>)</summary>How many steps fit is not known before. So the speed is measured after the third step, and again after every step: steps left = time left / seconds a step. The learning rate goes down the rest of its
# cosine in just these steps, and is zero when the time is over. The time spent asking does not count. Why not simply stop? Then the rate would still be near its peak, and the last steps would be the noisiest. Such a run, stopped and resumed, keeps to its minutes, but not to the very same weights: the speed decides the steps.</details>

# %%
for own in (callbacks.LivePlot, callbacks.Watch):
    trainer.remove_callback(own)  # where the cell is run again
trainer.add_callback(callbacks.LivePlot(plan.memory))
trainer.add_callback(callbacks.Watch(trainer, tokenizer))
with training.resumable(trainer, scale.minutes) as checkpoint:
    trainer.train(resume_from_checkpoint=checkpoint)

# %% [markdown]
# The upper pictures spread the first ten steps, where most happens. Validation loss and language move together, at once: after two steps some answers are Chinese, after five all are. Most facts come with the language: tuning does not teach them, it brings them out in Chinese. On the way English falls, and a few steps later it is
# back. After that, one or two answers of these few questions come and go. (The loss of the conversations being learned jumps: the few in traditional characters, which the tiny model had never read, cost much.)
#
# Below: the learning rate falls along its half cosine. The gradient norm is never zero, or nothing was learned. Tokens/s dip where a checkpoint is written or this picture is drawn. (The dashed line counts tensors only: Python itself takes the rest.)
#
# Did the model learn its conversations by heart, or something that holds for others too? The losses on the validation set, by source, before the first step and after the last. (In a fresh adapter B is 0, so the loss at step 0 is the base's.)

# %%
history = trainer.state.log_history
norms = [entry["grad_norm"] for entry in history if "grad_norm" in entry]
norms = [norm for norm in norms if norm < float("inf")]  # steps that fp16 left out
assert min(norms) > 0
seconds = max(entry.get("seconds", 0) for entry in history)  # of all sessions
print(f"{trainer.state.global_step} steps, {seconds:.0f} s, smallest gradient norm {min(norms):.2g}")
known = {row["messages"][-1]["content"] for row in conversations}
again = sum(row["messages"][-1]["content"] in known for row in validation)
print(f"{again} of {len(validation)} end in an answer that stands word for word in a training row")
losses = pd.DataFrame(
    {
        source: {"conversations": len(rows), "loss before": of[0], "loss after": of[-1]}
        for source, rows in held_out.items()
        if (of := [entry[name] for entry in history if (name := f"eval_{source}_loss") in entry])
    }
).T
losses.style.format("{:.3f}").format("{:.0f}", subset="conversations")

# %% [markdown]
# At `tiny` it falls for all three sources, on conversations that training never read. But many of their answers were in a training row, so this loss does not tell learning from memory. The next section asks about facts that no row mentions.
#
# ## After
#
# Three things to look at: the language of the answers to Chinese questions, whether they are right, and what became of English. (At `mid` and `full`: did "answered in Chinese" rise by more than its interval, and did English fall? If nothing moved, train longer.)

# %%
tuned = trainer.model.eval()
after = evaluation.probe(tuned, tokenizer, max_new_tokens=scale.max_new_tokens)
evaluation.plot({"base": before.scores, "tuned": after.scores}, chance=None, title="Held-out facts")
print(after)
# %%
pd.options.display.max_colwidth = None
shown = [row for row in after.rows if row["asked"] == "zh"][::24]
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
pd.DataFrame(wrong, columns=["question", "answer", "expected"]).head(12)

# %% [markdown]
# ## Keep the adapter
#
# A stock PEFT folder with a model card: any tool that knows PEFT can load it, see [take it elsewhere](take_it_elsewhere.md). The 4-bit base is not
# saved again, and the checkpoints go once the adapter is there whole.

# %%
from aurora_lib.model import save_adapter

folder = save_adapter(trainer, scale)
pd.DataFrame({"bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())}})

# %% [markdown]
# ## What if you change ...
#
# Guess first: which of these changes hurts, and which language?
#
# - rank 2 or 32 (alpha follows: alpha / r stays the same); all of attention; the experts too; the router too
# - a learning rate ten times smaller, three times larger, or the paper's 5e-5 (ours is 1e-2)
# - no English rows, 2 %, or 16 % (the same English rows among fewer Chinese ones)
#
# Each dot below is one more tuning of a fresh base, recorded at `tiny` on two cores: three seeds for each change, all with as many steps. The band is where ten seeds of the recipe itself lie. One question is 0.005.

# %%
import matplotlib.pyplot as plt

record = json.loads((results.RECORDED / "tiny" / "experiments.json").read_text(encoding="utf-8"))
panels = {
    "zh_in_zh": "Chinese questions\nanswered in Chinese",
    "zh_right": "Chinese questions\nanswered right",
    "en_in_en": "English questions\nanswered in English",
    "en_right": "English questions\nanswered right",
}


def dots(rows, left=0.7):
    """A panel for each figure: every run a dot, the mean of a variant a line, the recipe's seeds a band."""
    table = pd.DataFrame(rows)
    names = list(dict.fromkeys(table.variant))[::-1]
    size = 12, 0.7 + 0.32 * len(names)
    _, axes = plt.subplots(1, 4, figsize=size, sharey=True, layout="constrained")
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        band = table[key][table.variant == names[-1]]
        ax.axvspan(band.min() - 0.002, band.max() + 0.002, color="C0", alpha=0.25)
        values, heights = table[key].clip(lower=left), [names.index(name) for name in table.variant]
        ax.scatter(values, heights, s=14, color=["C3" if value < left else "C0" for value in table[key]])
        mean = values.groupby(table.variant).mean()[names]
        ax.scatter(mean, range(len(names)), marker="|", s=140, color="black")
        ax.set(title=title, xlim=(left - 0.02, 1.01), yticks=range(len(names)), yticklabels=names)
        ax.grid(axis="y", alpha=0.3)


dots(record["what if"]["rows"]);

# %% [markdown]
# Read it by one rule: a change did something where *all three* of its dots lie outside the band, on the same side. (In one panel, a change that does nothing passes this less than once in a hundred times. With a band of three seeds it would pass once in ten, and we would have believed several rows more.)
#
# Four rows differ from the recipe:
#
# - **No English rows.** About a fifth of the English questions is no longer answered in English: *forgetting* (灾难性遗忘). Users of the original reported a relative of it, lost step-by-step reasoning (its issue 9). Already 2 % of English rows keep what is lost here, and more bring hardly more. So mix in a few rows of what should stay.
# - **All of attention** (`k_proj` and `o_proj` too) keeps more English than the recipe, in language and in facts.
# - **Experts too,** at the recipe's learning rate: facts are lost in both languages. The next section looks at them.
# - **The paper's learning rate** leaves the model where the base was: hardly an answer in Chinese (red: these dots lie far to the left, and are drawn at the edge). It is meant for a model ten thousand times larger and for many thousands of steps; here are a few hundred.
#
# The others did nothing that this plot can show: a rank of 2, with a quarter of the parameters; a rank of 32; a learning rate ten times smaller or three times larger; no dropout; the router, with LoRA or whole (`modules_to_save`).
#
# ### Experts as targets
#
# 97 % of Mixtral's weights are experts, so many ask for an adapter there. Stock PEFT cannot put one on experts that are packed in 4 bits: it adds B A to the weight itself, and nothing can be added to a packed weight. The course leaves the weight alone and adds B A x to the *output*. Every expert has an A and a B of its own
# ([expert_lora.py](../aurora_lib/model/expert_lora.py)). Ask for it by the names of 2023. What it needs at full size, predicted before anything is loaded, and what was recorded on an H100 with random weights:

# %%
from aurora_lib.model import memory, resolve_targets

wide = training.lora_config(target_modules=["q_proj", "v_proj", "w1", "w2", "w3"], lora_dropout=0.0)
recipes = {
    "the recipe": ("training", training.lora_config()),
    "experts too": ("training, LoRA on experts", wide),
}
needs = {}
for name, (part, each) in recipes.items():
    _, parameters, on_experts = resolve_targets(memory.MIXTRAL_8X7B, each)
    budget = memory.predict(memory.MIXTRAL_8X7B, adapter=parameters, on_experts=on_experts)
    batch = f"{part}: batch 2, accumulation 4"
    needs[name] = {
        "trainable parameters": f"{parameters:,}",
        "adapter file [MiB]": round(4 * parameters / 2**20),
        "training 2 x 4, predicted [GiB]": round(budget.total, 1),
        "training 2 x 4, H100 [GiB]": round(on_gpu[f"{batch}, allocated [GiB]"], 1),
        "training 2 x 4, H100 [tokens/s]": f"{on_gpu[f'{batch} [tokens/s]']:,.0f}",
        "batch of 8, H100 [tokens/s]": f"{on_gpu[f'{part}: batch 8 [tokens/s]']:,.0f}",
    }
pd.DataFrame(needs)

# %% [markdown]
# And what it does, in the plot above: at the recipe's learning rate the language is kept, and facts are lost. With a tenth of the rate nothing is lost. (Probably because so large an adapter moves the model further with each step. PEFT has no dropout there: so compare with *no dropout*, too.)
# At full size it needs the memory that was predicted, and trains more slowly, less so in larger batches. Whether it pays there is not measured.
#
# The folder that is saved has PEFT's own layout: stock PEFT loads it on the model in 16 bits. The other way round, `load_adapter` takes adapters of 2023 that tuned w1, w2 and w3. (Those are smaller: w1 and w3 are one matrix now, and share a detour of twice the rank.)
#
# ## Padding, packing, optimizers
#
# Conversations of different lengths in one batch are filled up with *padding* (填充), which costs time and teaches nothing. *Grouping* puts like lengths together.
# *Packing* (打包) lays conversations end to end; attention is kept apart between them. Packed at the same batch, a step holds many more conversations, so there are far fewer steps.

# %%
dots(record["length"]["rows"])
of = pd.DataFrame(record["length"]["rows"]).groupby("variant", sort=False)
of[["steps", "padding", "cpu_seconds"]].mean().style.format({"padding": "{:.1%}"}, precision=0)

# %% [markdown]
# Packed at the batch of the recipe, some English is lost: there are far fewer steps. With one pack a step it is kept. Grouping leaves out nearly all padding and hurts nothing. At `mid` and `full`, where minutes limit the run, packing is on. To turn it on in any case: `training.sft_config(scale, packing=True)`; for grouping,
# `train_sampling_strategy="group_by_length"`.

# %% [markdown]
# For Mixtral at 2 x 4, predicted from the lengths of a few thousand real conversations, as many as the paper's. Long ones are split, where the paper cut them off: hence more steps over three epochs than above. The *floor* of three epochs counts only reading the weights and multiplying, at the
# speed one H100 reaches in practice. Beside it, the hours at the speed that was recorded on an H100 (2 x 1024 tokens a batch). The authors' own run, of 32 conversations a step, took the hours printed first, on one GPU, as their early README says.

# %%
published = paper.RUN["training time"]
print(f"the authors' run: {published.value / 3600:.1f} hours ({published.source})")
print(f"conversations after splitting, about: {record['full, predicted']['stands for']:,}")
pd.DataFrame(record["full, predicted"]["rows"])

# %% [markdown]
# Grouping and packing both leave the padding out, and save a quarter of the hours.
#
# And the *4-bit optimizer* that the paper names (section 3)? Adam keeps two numbers for every trained weight. For an adapter that is little, however many bits each takes; it matters where all weights are
# trained. To try one: `sft_config(scale, optim="adamw_torch_4bit")` (after `pip install torchao`; not measured here) or `optim="paged_adamw_8bit"`. State of the optimizer for Mixtral's adapter, as recorded, beside what training takes in all:

# %%
states = record["optimizers"]["Mixtral's adapter"]
print(f"training in all, predicted: {memory.predict(memory.MIXTRAL_8X7B).total:.2f} GiB")
pd.DataFrame(states).T.astype({"parameters": int})

# %% [markdown]
# From a terminal the same run is `python -m aurora_lib.training --scale full --minutes 30`; the minutes are of training, and cleaning, loading and tokenizing come before.
# Step by step on a rented machine: [docs/h100.md](../docs/h100.md).

# %% [markdown]
# ## Exercises
#
# **04.1 Build.** The labels of a conversation, with one turn or several. `ids` are its tokens. A question ends with the list of tokens `close` (those of `[/INST]`), an answer with the token `end`. Return a list as long as `ids`, not shifted: what the assistant says keeps its id, its end token too; everything else is -100.

# %%
from aurora_lib import exercises


def labels(ids, close, end):
    return ...


exercises.check("04.1", labels)

# %% [markdown]
# <details><summary>Hint</summary>Go through the tokens and remember whether the assistant is speaking. It begins behind the last token of <code>close</code>, and stops behind <code>end</code>.</details>
#
# **04.2 Hunt.** A run that begins with these A and B has a gradient of zero at every step, and the alarm stops it. Why? Repair it. Before the first step the model must still be the base.


# %%
def fresh(rank, width, out):
    return torch.zeros(rank, width), torch.zeros(out, rank)  # A and B


exercises.check("04.2", fresh)

# %% [markdown]
# <details><summary>Hint</summary>The adapter adds B A x. Write down the gradient of A: which matrix stands in it as a factor? And in that of B?</details>
#
# **04.3 Predict.** Does an update survive in bfloat16? True if adding it changes the weight (plain numbers come in).


# %%
def survives(weight, update):
    return ...


exercises.check("04.3", survives)

# %% [markdown]
# <details><summary>Hint</summary><code>torch.tensor(weight, dtype=torch.bfloat16)</code>: 8 significant bits.</details>
#
# **04.4 Try.** A variant that nobody has tried: `lora={"r": 1, "lora_alpha": 2}`, `learning_rate=3e-3`, ... Guess first: of 100 Chinese questions, how many will be answered right? Then give your guess and the run:
# `tried = guess, variant(lora={"r": 1, "lora_alpha": 2})`. It tunes a fresh base, in about a minute at `tiny`. (Larger models make 20 steps: some minutes, and no result to compare with the plot.)

# %%
trainer = tuned = base = None  # one model on the GPU at a time


def variant(lora=None, **settings):
    """Tune a fresh base with these changes of `LoraConfig` and `SFTConfig`; the shares of its answers."""
    few = {} if scale.name == "tiny" else {"max_steps": 20}
    changed = training.sft_config(scale, save_strategy="no", **few | settings)
    fresh = load_model(scale.base_model, **scale.loading)
    adapter = training.lora_config(**lora or {})
    trainer = training.build_trainer(fresh, tokenizer, conversations, changed, adapter)
    trainer.train()
    probed = evaluation.probe(trainer.model.eval(), tokenizer, max_new_tokens=scale.max_new_tokens)
    return {name: score.accuracy for name, score in probed.scores.items()}


# %%
tried = ...
exercises.check("04.4", tried)

# %% [markdown]
# <details><summary>Hint</summary>Which dots of the plot are nearest to your change? For experts: <code>target_modules=["q_proj", "v_proj", "w1", "w2", "w3"]</code> and <code>lora_dropout=0.0</code>. You are right within ten of 100.</details>
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
