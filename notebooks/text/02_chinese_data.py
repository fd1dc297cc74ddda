# %% [markdown]
# # 02 · Chinese data: from three files to clean conversations
#
# Paper: section 2, Table 1 and Figure 2. **After this notebook you can** read the three released files, clean them by named
# steps, find near duplicates, and account for every single row.
#
# At `tiny` the files are samples of our own in the released layouts, dirt included. `AURORA_DATA=/a/file.jsonl` (or a folder) reads yours; at `full` the
# three released files are read, at `mid` one row in fifty of them. No GPU is needed: `AURORA_SCALE=full AURORA_DEVICE=cpu` cleans them on any machine, in some ten minutes on two cores (predicted). (`tools/bench/cleaning.py` times the same code on as many synthetic rows as the paper has.)

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("02")

# %% [markdown]
# ## Three files, two layouts
#
# From each file, the longest of its first 20 rows; at most 200 characters of a row are shown. The Alpaca sets hold an `instruction`, sometimes an
# `input` it refers to, and the `output`. ShareGPT holds turns (`conversation`) and a free-text tag (`category`). (The paper describes the first set
# as translated sentence pairs; the released file has this layout.)

# %%
from itertools import islice

from aurora_lib import course
from aurora_lib.data import sources

data = scale.data or "hub"
for name, (file, *_) in sources.files(data).items():
    first = [" ".join(row.text.split()) for row in islice(course.rows.read_rows(file), 20)]
    print(f"{name}: {file.name}\n  {max(first, key=len)}\n")

# %% [markdown]
# `sources.read` turns each row into *messages*: a list of `{"role": ..., "content": ...}`, where the role is system, user or assistant. It also
# knows the column names and speakers of other data sets; `aurora_lib/data/layouts.toml` lists them. Files may be Parquet, or JSON or JSON Lines,
# which may also be packed by gzip. A row that is no conversation is not dropped in silence: it is *set aside*, with its line and what is wrong with
# it. A file without any conversation, such as a saved web page, is refused. The table shows the first three of each file. `line` counts lines of
# the file, and a row may take several lines.

# %%
from pathlib import Path

import pandas as pd

pd.options.display.max_colwidth = 60

reading = sources.read(data, every=scale.every)
read, aside = reading.conversations, reading.aside
print(f"{len(read) + len(aside):,} rows = {len(read):,} conversations + {len(aside):,} set aside")
table = pd.DataFrame(aside, columns=["file", "line", "reason", "row"])
table["file"] = [Path(file).name for file in table["file"]]
table["row"] = [" ".join(str(row).split())[:60] for row in table["row"]]
table.groupby("file").head(3).reset_index(drop=True)

# %% [markdown]
# ## Ten kinds of dirt
#
# A cleaning step is a small function. An *edit* gives the text back mended; a *drop* gives a reason, or `None` to let the row pass. Here are
# ten rows of the kinds that real files hold. **Before you run the cell:** which will be mended, and which dropped?

# %%
from aurora_lib.data import drops, edits


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


weather = "今天天气很好。我们一家人去了公园，孩子们在草地上放风筝，老人坐在长椅上聊天，"
dirty = [
    talk("5 &lt; 6 对吗？", "对。"),
    talk("北京\u200b在哪里？", "在北方。"),
    talk("你好".encode().decode("latin-1"), "你好！"),
    talk("写一句问候。\n<noinput>", "早上好！"),
    talk("列出两种水果", r"苹果\n香蕉"),
    talk("推荐一本书", "### Response: 《红楼梦》。</s>\n### Instruction: 再推荐一本"),
    talk("画一只鞋", "<无输出>"),
    talk("你看到我的狗了吗？", "抱歉，作为一个人工智能助手，我无法看到物体。"),
    talk("法国的首都是哪里？", "The capital of France is Paris."),
    talk("写一篇日记。", weather + "我们带了水果、面包和一壶茶，中午就在湖边的大树下吃饭，"),
]
rows = []
for messages in dirty:
    mended, changes = edits.edit(messages)
    found = next(((step.__name__, reason) for step in drops.DROPS if (reason := step(mended))), (None, None))
    steps = ", ".join({change["step"] for change in changes}) or f"dropped by {found[0]}"
    before = [m["content"].replace("\n", "⏎").replace("\u200b", "[U+200B]") for m in messages]
    after = found[1] or " | ".join(message["content"].replace("\n", "⏎") for message in mended)
    rows.append([" | ".join(text if len(text) < 34 else "…" + text[-30:] for text in before), steps, after])
pd.DataFrame(rows, columns=["before (question | answer; ⏎ is a line break)", "step", "after, or the reason"])

# %% [markdown]
# What is *not* dropped matters as much. Short answers are mostly right, an apology may have been asked for, and 英语 in the question makes an
# English answer the right one:

# %%
good = [
    talk("三乘九等于多少？", "27"),
    talk("写一封道歉信", "对不起，我不能参加会议。"),
    talk("“谢谢”的英语怎么说？", "You can say thank you."),
]
for messages in good:
    reasons = [step(messages) for step in drops.DROPS]
    print(messages[1]["content"], "is kept" if not any(reasons) else reasons)

# %% [markdown]
# All steps, in order. The *optional* one changes good text too, so it is taken only where you ask for it:
# `clean(read, options=("to_simplified",))`. ("... unless they are the subject" means: a conversation that speaks of HTML *entities*, or of
# *escaping*, keeps its `&lt;`.)

# %%
from IPython.display import display

from aurora_lib.data import cleaning

optional = {step.__name__ for step in edits.OPTIONAL}
rows = [[name + " (optional)" * (name in optional), does] for name, does in cleaning.steps().items()]
with pd.option_context("display.max_colwidth", None):
    display(pd.DataFrame(rows, columns=["step", "what it does"]))

# %% [markdown]
# `clean` takes every step but the optional one (`contamination` only with `benchmarks=`, see below) and keeps all there is to know: what was kept, what was dropped and why, every single change. Finished parts
# are stored in `folder`: a long run that was interrupted goes on where it stopped.
#
# First comes the *account*, one line for each source: rows in the file = set aside + dropped + kept, with at most three of the reasons for setting
# aside. Then the same by step. There `read` counts conversations, so rows set aside are not in it. `edited` counts conversations that a step
# changed; they are not lost, but a later step may still drop them. Steps that found nothing are not listed.

# %%
from aurora_lib.data import clean

result = clean(read, folder=scale.runs / "cleaning")
assert len(result.kept) + len(result.dropped) == len(read)
account = cleaning.account(reading, result)
print(account)
result.report

# %% [markdown]
# The same as a picture: what each step removed, by source, and how many conversations were left then. (The rows set aside are not in it.)

# %%
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

removed = result.report.query("action == 'dropped'").droplevel("action").drop(columns="total")
left = len(read) - removed.sum(axis=1).cumsum()
removed.index = [f"{step} ({n:,} left)" for step, n in left.items()]
removed = removed if len(removed) else pd.DataFrame({"any source": {"nothing": 0}})
title = f"{len(read):,} conversations, {len(result.kept):,} kept"
axes = removed.plot.barh(stacked=True, figsize=(7, 0.4 * len(removed) + 1), title=title)
axes.set(xlabel="conversations removed", ylabel="")
axes.xaxis.set_major_locator(MaxNLocator(integer=True))
axes.legend(bbox_to_anchor=(1, 1), loc="upper left")
axes.invert_yaxis()

# %% [markdown]
# Read some of what was dropped. A step that drops good rows shows itself here, and nowhere else. (All of them: `result.dropped.to_pandas()`;
# what was changed: `result.edits.to_pandas()`.)

# %%
texts = {row["id"]: row["messages"] for row in read}
rows = []
for step in dict.fromkeys(sorted(result.dropped["step"], key=list(cleaning.steps()).index)):
    for row in [row for row in result.dropped if row["step"] == step][:2]:
        twin = texts.get(row["reason"].rpartition(" ")[2], [{"content": ""}])[0]["content"]
        question, last = row["messages"][0]["content"], row["messages"][-1]["content"]
        rows.append([step, question[:30], last[:34], f"stays: {twin}" if twin else row["reason"]])
pd.DataFrame(rows, columns=["step", "question", "last turn", "reason, or the row that stays"])

# %% [markdown]
# ## Near duplicates
#
# Two rows that say the same in almost the same words teach it twice. To compare texts, cut them into *shingles*, here every five
# characters in a row. The *Jaccard similarity* J is the number of shingles that both texts have, divided by the number that at least one of them has.


# %%
def shingles(text):
    return {text[i : i + 5] for i in range(len(text) - 4)}


a = "长城是中国古代的防御工程，东起山海关，西到嘉峪关。"
b = "长城是中国古代的防御工程，东起山海关，西至嘉峪关。"
common, all_ = shingles(a) & shingles(b), shingles(a) | shingles(b)
print(f"J = {len(common)} / {len(all_)} = {len(common) / len(all_):.2f}")
print("only in one of them:", sorted(all_ - common))

# %% [markdown]
# One character changed, and in each of the two texts five shingles are no longer shared.
#
# Comparing all pairs of 176,678 rows would take 15.6 billion comparisons. **MinHash** makes each text a short list of numbers: hash all its shingles,
# keep the smallest hash, and repeat with 128 different hash functions. Take all different shingles of both texts: each is equally likely to get the
# smallest hash. So with probability J that shingle is a *common* one, and then both texts keep the same number: **the share of equal numbers estimates
# J.** Then cut the 128 numbers into 32 *bands* of 4. Only texts with at least one equal band are compared. That happens with probability
# $1-(1-J^4)^{32}$, the S-curve.
#
# The next cell makes a copy of each longer text and replaces a random share of its characters. In the plots, left: a dot is one pair, and on the black
# line the estimate is exact. Right: the curves are the formula for four ways to cut the numbers (thick: ours). A black dot is measured on all pairs
# within a tenth of J, so it need not lie on the curve.

# %%
import numpy as np

from aurora_lib.data import duplicates  # its shingles are hashed, of text without punctuation

rng = np.random.default_rng(0)


def changed(text, share):
    """A copy with this share of its characters replaced."""
    characters = list(text)
    for place in rng.permutation(len(text))[: round(share * len(text))]:
        characters[place] = chr(rng.integers(0x4E00, 0x9FA5))
    return "".join(characters)


plain = [duplicates.plain(row["messages"]) for row in result.kept.select(range(min(2_000, len(result.kept))))]
long_enough = [text for text in plain if len(text) >= 25][:400] or plain[:400]
pairs = [(text, changed(text, rng.uniform(0, 0.33))) for text in long_enough]
true = np.array([duplicates.jaccard(*pair) for pair in pairs])
signed = duplicates.signatures([duplicates.shingles(text) for pair in pairs for text in pair])
estimate = (signed[::2] == signed[1::2]).mean(axis=1)
bands = duplicates.bands(signed)
compared = (bands[::2] == bands[1::2]).any(axis=1)
error = np.abs(estimate - true).mean()
print(f"{len(pairs)} pairs: mean error of the estimate {error:.3f}; {compared.sum()} share a band")

# %%
figure, (left_axes, right_axes) = plt.subplots(1, 2, figsize=(10, 3.6))
j = np.linspace(0, 1, 200)
left_axes.plot(true, estimate, ".", alpha=0.4)
left_axes.plot(j, j, "k", lw=0.8, label="exact")
left_axes.legend()
left_axes.set(xlabel="true Jaccard similarity", ylabel="share of equal MinHash values")
left_axes.set_title("128 numbers stand for a text")
for count, rows_each in ((8, 16), (16, 8), (32, 4), (64, 2)):
    chosen = (count, rows_each) == (duplicates.BANDS, duplicates.ROWS)
    name = f"{count} bands of {rows_each}"
    right_axes.plot(j, 1 - (1 - j**rows_each) ** count, lw=3 if chosen else 1, label=name)
tenth = np.minimum((true * 10).astype(int), 9)
for k in np.unique(tenth):
    share, n = compared[tenth == k].mean(), (tenth == k).sum()
    name = "measured (larger: more pairs)" if k == tenth.min() else None
    right_axes.plot(true[tenth == k].mean(), share, "ko", ms=2 + n**0.5, alpha=0.6, label=name)
right_axes.set(xlabel="true Jaccard similarity", ylabel="share of pairs compared", title="The S-curve")
right_axes.legend(bbox_to_anchor=(1, 1))
figure.tight_layout()

# %% [markdown]
# Pairs that share a band are *candidates*, and then compared in full: near duplicates have at least 0.7 of their shingles or 0.9 of their characters in
# common, *unless* the two ask different things and have different answers:

# %%
apples = "小明有{}个苹果，又买了{}个苹果，现在他一共有多少个苹果？"
one = talk(apples.format(15, 6), "他一共有21个苹果。")
print("other numbers, other answer:", duplicates.same(one, talk(apples.format(18, 7), "他一共有25个苹果。")))
print(
    "same question, other words: ", duplicates.same(one, talk(apples.format(15, 6), "他现在一共有21个苹果！"))
)

# %% [markdown]
# How many does the whole thing find? Plant copies in whose last answer one character in fifty is replaced, at least one, and count how many pairs are
# found. In a very short row one character is a large share, and may be what the row is about; so short and longer rows are counted apart.

# %%
from datasets import concatenate_datasets

copies = []
for row in result.kept.select(range(0, len(result.kept), 3)):
    messages = [dict(message) for message in row["messages"]]
    last = messages[-1]["content"]
    messages[-1]["content"] = changed(last, max(0.02, 1 / len(last)))
    copies.append(row | {"id": row["id"] + " copy", "messages": messages})
again = clean(concatenate_datasets([result.kept, sources.table(copies)]))
gone = set(again.dropped["id"])
short = [len(duplicates.plain(copy["messages"])) < 25 for copy in copies]
found = pd.DataFrame(
    {
        "characters": ["under 25" if is_short else "25 and more" for is_short in short],
        "found": [bool(gone & {copy["id"], copy["id"].removesuffix(" copy")}) for copy in copies],
    }
)
found.groupby("characters").found.agg(planted="size", found="sum", share="mean").round(3)

# %% [markdown]
# ## Benchmark questions among the rows
#
# A model that has read the exam scores too well. `contamination` looks for 20 consecutive Chinese characters of any C-Eval, CMMLU or MMLU question (50 letters
# of other scripts, where 20 are a stock phrase), and for shorter questions as a whole.

# %%
from aurora_lib.evaluation import benchmarks, contamination

root = scale.benchmarks or "hub"
questions = [
    question.text
    for task, about in benchmarks.TASKS.items()
    for subject in benchmarks.load_subjects(task, root)
    for question in benchmarks.load_questions(task, subject, about["split"], root)[0]
]
asked = contamination.Questions(questions)
found_in = [(row, asked.found_in(row["messages"])) for row in result.kept]
overlaps = [(question, row["id"]) for row, question in found_in if question]
exam = contamination.Questions(["下列关于光合作用的说法中，正确的一项是哪一个？请从四个选项里选出来。"])
print("planted:", exam.found_in(talk("题目：下列关于光合作用的说法中正确的一项是哪一个？甲乙丙丁", "乙")))
counted = f"{len(overlaps):,} of {len(result.kept):,} conversations"
print(f"{counted} hold one of {len(asked.texts):,} benchmark questions")
rows = [[question, texts[row][0]["content"]] for question, row in overlaps[:3]]
pd.DataFrame(rows, columns=["benchmark question", "a row's question"])

# %% [markdown]
# Look at what was found before you drop anything: at `tiny` a few questions were put among the rows on purpose, word for word. Dropping them is one
# argument: `clean(read, benchmarks=asked)`. We keep them. Notebooks 04 and 05 also ask about facts that tuning never saw.
#
# ## Table 1
#
# The paper counts single- and multi-round conversations. Ours, from this run, beside the paper's. (At `tiny` only the shape compares: the first two sets
# have one round each. At `mid` ours is one row in fifty.)

# %%
from aurora_lib.course import paper

count = {name: figure.value for name, figure in paper.CONVERSATIONS.items()}
published = {
    "alpaca_zh": (count["alpaca_data_zh_51k, single round"], 0),
    "alpaca_gpt4_zh": (count["alpaca_gpt4_data_zh, single round"], 0),
    "sharegpt_zh": (count["sharegpt_70k, single round"], count["sharegpt_70k, multiple rounds"]),
}
published["total"] = tuple(map(sum, zip(*published.values(), strict=True)))
assert sum(published["total"]) == count["total"]
theirs = pd.DataFrame.from_dict(published, orient="index", columns=["paper: single", "paper: multiple"])
rows = result.kept.select_columns(["source", "messages"]).to_pandas()
rounds = rows.messages.map(lambda messages: sum(message["role"] == "user" for message in messages))
ours = pd.crosstab(rows.source, rounds > 1).reindex(columns=[False, True], fill_value=0)
ours = ours.rename(columns={False: "single", True: "multiple"}).rename_axis(columns=None)
ours.loc["total"] = ours.sum()
ours["total"] = ours.sum(axis=1)
order = list(dict.fromkeys([*theirs.index[:-1], *ours.index]))  # the paper's, then any others
ours.reindex(order).join(theirs).fillna(0).astype(int).map("{:,}".format)

# %% [markdown]
# ## What the rows are about
#
# The paper's Figure 2 shows 20 categories, and hardly says where they came from. ShareGPT's rows carry a free-text tag, such as "Finance, Business". We count the words up to its first comma, for the 20 most frequent. The Alpaca
# sets have no tags, so most rows are not counted. Nobody checked these tags: they are a hint, and the paper's Figure 2 cannot be rebuilt from them.

# %%
from collections import Counter

tags = [tag.strip(" ,\n") for tag in result.kept["category"]]
firsts = Counter(tag.partition(",")[0].strip(" :").lower() for tag in tags if tag)
counts = pd.Series(dict(firsts.most_common(20)), dtype=int).iloc[::-1]
if len(counts):
    axes = counts.plot.barh(figsize=(6, 0.28 * len(counts) + 0.8))
    axes.set(xlabel="conversations", title="ShareGPT's tags, up to the first comma")
print(f"{sum(firsts.values()):,} of {len(tags):,} kept conversations have a tag, of {len(firsts)} kinds")

# %% [markdown]
# ## What Chinese costs in tokens
#
# Mixtral's tokenizer has 32,000 pieces, few of them Chinese; a character without a piece of its own falls back to its three
# bytes, like the last one of 巴黎. Same facts, both languages, the *real* tokenizer:

# %%
from aurora_lib import evaluation
from aurora_lib.data import language
from aurora_lib.model import load_tokenizer

mixtral_tokenizer = load_tokenizer()
print(mixtral_tokenizer.tokenize("法国的首都是巴黎。"))
chinese = sum(language(piece) == "zh" for piece in mixtral_tokenizer.get_vocab())
facts = {side: "".join(probe[side]["answer"] for probe in evaluation.load_probes()) for side in ("zh", "en")}
pieces = {side: mixtral_tokenizer.tokenize(text) for side, text in facts.items()}
per_character = len(pieces["zh"]) / len(facts["zh"])
bytes_ = sum(piece.startswith("<0x") for piece in pieces["zh"]) / len(pieces["zh"])
share = len(pieces["zh"]) / len(pieces["en"])
print(f"{chinese:,} of {len(mixtral_tokenizer):,} pieces are Chinese;", end=" ")
print(f"{bytes_:.1%} of the tokens of our Chinese facts are single bytes")
print(f"{per_character:.2f} tokens a Chinese character (punctuation included);", end=" ")
print(f"{share:.2f} x the tokens of the same facts in English")

# %% [markdown]
# A conversation longer than the training length (the paper's stack: 1,024 tokens) loses its end. If it is cut *between turns* instead, only what does
# not fit within a single exchange is lost. But the second piece does not know the first: it may begin with a lone "继续". The plot shows the loss at
# each length, in at most 2,000 conversations.

# %%
from aurora_lib.data import split


def lost(rows, length):
    """The tokens beyond `length` of each conversation, in all; the chat template's own are counted, too."""
    ids = mixtral_tokenizer.apply_chat_template(rows["messages"][:])["input_ids"]
    return sum(max(0, len(conversation) - length) for conversation in ids)


sample = result.kept.shuffle(seed=0).select(range(min(2_000, len(result.kept))))
lengths = [16, 24, 32, 48, 64, 96, 128, 256, 512, 1024]
total = lost(sample, 0)
cut_off = [lost(sample, length) / total for length in lengths]
between = [lost(split(sample, mixtral_tokenizer, length), length) / total for length in lengths]
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(lengths, cut_off, "o-", label="cut at the length")
axes.plot(lengths, between, "o-", label="split between turns")
axes.set(xscale="log", xlabel="training length (tokens)", ylabel="share of tokens lost")
axes.set_title("What a cutoff throws away")
axes.set_xticks(lengths, lengths)
axes.minorticks_off()
axes.legend();

# %% [markdown]
# The bundled rows of `tiny` are short, so the curves fall early. Real ShareGPT conversations run to thousands of tokens: there the same cell should show the gap at the
# paper's 1,024.
#
# ## Save
#
# Split to this scale's training length under the base model's own tokenizer. Notebook 04 trains on exactly this, on the same machine or with the same `AURORA_RUNS`. The account goes with it, in the first line.

# %%
from aurora_lib.data import save_conversations

own = load_tokenizer(scale.base_model, revision=scale.revision)
saved = split(result.kept, own, scale.length)
path = save_conversations(saved, scale, account)
print(f"{len(saved):,} conversations of at most {scale.length} tokens (or one exchange) in {path.name}")

# %% [markdown]
# ## Exercises
#
# **02.1** The share of Chinese characters (U+4E00 to U+9FFF, `"\u4e00" <= c <= "\u9fff"`) among the *letters* of a text; 0.0 where there is no letter.

# %%
from aurora_lib import exercises


def han_share(text):
    return ...


exercises.check("02.1", han_share)

# %% [markdown]
# <details><summary>Hint</summary><code>str.isalpha</code> is true for Chinese characters too.</details>
#
# **02.2** Drop exact duplicates from a list of texts: keep the first of each, in order.


# %%
def unique(rows):
    return ...


exercises.check("02.2", unique)

# %% [markdown]
# <details><summary>Hint</summary>A <code>set</code> forgets the order. Which other container has every key once?</details>
#
# **02.3** Keep an answer (`True`), or not (`False`)? Short right answers ("3", "是") stay; answers that say nothing ("……", "?!") go.


# %%
def keep(answer):
    return ...


exercises.check("02.3", keep)

# %% [markdown]
# <details><summary>Hint</summary>An answer that says something contains at least one letter or digit: <code>str.isalnum</code> of each character.</details>
#
# **02.4** You choose `bands` and `rows` (values a band). At which Jaccard similarity is exactly half of the pairs compared?


# %%
def half(bands, rows):
    return ...


exercises.check("02.4", half)

# %% [markdown]
# <details><summary>Hint</summary>Set the S-curve to one half, and undo it from the outside in.</details>
#
# ## Paper, records and you

# %%
from aurora_lib.course import results

long_found = found.found[found.characters == "25 and more"].mean()
results.record(
    "02",
    {
        "rows read": len(read) + len(aside),
        "rows set aside as no conversation": len(aside),
        "conversations dropped": len(result.dropped),
        "near duplicates dropped": result.dropped["step"].count("near_duplicate"),
        "planted near duplicates found (25 characters and more)": round(long_found, 4),
        "conversations": len(saved),
        "tokens per Chinese character": round(per_character, 3),
    },
)
results.compare("02")

# %% [markdown]
# **In short.** Different layouts become one: messages. Every row is kept, or dropped with its step and reason, or set aside with
# its line, and the totals match. Short is not bad; reading drops by eye is part of cleaning. MinHash finds near duplicates without comparing all
# pairs, and a candidate is still compared in full. Chinese is expensive in Mixtral's tokens: split long conversations between turns.
#
# **Next:** [03 QLoRA and memory](03_qlora_memory.ipynb).
