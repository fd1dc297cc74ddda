# %% [markdown]
# # 02 · Chinese data: from three files to clean conversations
#
# Paper: section 2, Table 1 and Figure 2. **After this notebook you can** read the three released formats, clean them by named
# steps, find near duplicates, and account for every single row.
#
# At `tiny` the files are samples of our own in the released layouts, dirt included. `AURORA_DATA=/a/folder` reads yours; at `full` the
# three released files are read. Two cores clean all 176,678 rows in about the time you need to read this page (`tools/bench_cleaning.py`).

# %%
import aurora_lib

scale = aurora_lib.start("02")

# %% [markdown]
# ## Three files, three layouts
#
# A raw row of each. The Alpaca sets hold an `instruction`, sometimes an `input` it refers to, and the `output`; ShareGPT holds turns. (The
# paper describes the first set as translated sentence pairs; the released file has this layout.)

# %%
import json

from aurora_lib import json_rows, sources

data = scale.data or "hub"
for name in sources.SOURCES:
    file = sources.files(name, data)[0]
    row = next(value for _, _, value in json_rows.read(file) if isinstance(value, dict))
    print(f"{name}: {file.name}\n  {json.dumps(row, ensure_ascii=False)[:200]}\n")

# %% [markdown]
# `sources.load` streams a file row by row, recognises each row's layout and turns it into one shape, *messages*. A row that is no
# conversation is not dropped in silence: `sources.rejected` names its line and what is wrong with it.

# %%
from pathlib import Path

import pandas as pd
from datasets import concatenate_datasets

read = concatenate_datasets([sources.load(name, data) for name in sources.SOURCES])
rejected = [
    row for name in sources.SOURCES for file in sources.files(name, data) for row in sources.rejected(file)
]
print(
    f"{len(read) + len(rejected):,} rows in the files = {len(read):,} conversations + {len(rejected):,} set aside"
)
table = pd.DataFrame(rejected, columns=["file", "line", "reason", "row"])
table["file"] = [Path(file).name for file in table["file"]]
table["row"] = [" ".join(str(row).split())[:60] for row in table["row"]]
table.groupby("file").head(3).reset_index(drop=True)

# %% [markdown]
# ## Ten kinds of dirt
#
# A cleaning step is a small function. An *edit* gives the text back mended; a *drop* gives a reason, or `None` to let the row pass. Here are
# ten rows of the kinds that real files hold. **Before you run the cell:** which will be mended, and which dropped?

# %%
from aurora_lib import drops, edits


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


weather = "今天天气很好。我们一家人去了公园，孩子们在草地上放风筝，老人坐在长椅上聊天，"
dirty = [
    talk("5 &lt; 6 对吗？", "对。"),
    talk("北京\u200b在哪里？", "在中国\ufeff北方。"),
    talk("你好".encode().decode("latin-1"), "你好！"),
    talk("写一句问候。\n<noinput>", "早上好！"),
    talk("列出两种水果", r"苹果\n香蕉"),
    talk("推荐一本书", "《红楼梦》。\n### Instruction: 再推荐一本"),
    talk("画一只鞋", "<无输出>"),
    talk("你看到我的狗了吗？", "抱歉，作为一个人工智能助手，我无法看到物体。"),
    talk("法国的首都是哪里？", "The capital of France is Paris."),
    talk("写一篇日记。", weather + "我们带了水果、面包和一壶茶，中午就在湖边的大树下吃饭，"),
]
rows = []
for messages in dirty:
    mended, changes = edits.edit(messages)
    found = next(((step.__name__, reason) for step in drops.DROPS if (reason := step(mended))), (None, None))
    steps = ", ".join(change["step"] for change in changes) or f"dropped by {found[0]}"
    after = found[1] or " | ".join(message["content"] for message in mended)
    rows.append([" | ".join(repr(m["content"])[1:-1][-32:] for m in messages), steps, after])
pd.DataFrame(rows, columns=["before (question | answer)", "step", "after, or the reason"])

# %% [markdown]
# What is *not* dropped matters as much. Short answers are mostly right, an apology may have been asked for, and 英语 in the question makes an
# English answer the right one:

# %%
good = [talk("三乘九等于多少？", "27"), talk("写一封道歉信", "对不起，我不能参加会议。"), talk("“谢谢”的英语怎么说？", "You can say thank you.")]
[[step(messages) for step in drops.DROPS] for messages in good]

# %% [markdown]
# All steps, in order, each with what it does. The ones marked *optional* change good text too, so they are taken only where you ask
# for them; benchmark questions are looked for further down.

# %%
from aurora_lib import cleaning, duplicates

pd.options.display.max_colwidth = None
functions = [*edits.TEXT_EDITS, *edits.EDITS, *edits.OPTIONAL, *drops.DROPS]
does = {step.__name__: step.__doc__.split("\n\n")[0].replace("\n   ", "") for step in functions}
does |= {"duplicate": "Of equal conversations the first stays.", "near_duplicate": "Of nearly equal ones the one with the longer answers stays."}
optional = [step.__name__ for step in edits.OPTIONAL]
pd.DataFrame([[name + " (optional)" * (name in optional), does[name]] for name in does], columns=["step", "what it does"])

# %% [markdown]
# `clean` runs them all and keeps everything: what was kept, what was dropped and why, every single change. Finished parts are stored in
# `folder`: interrupt a long run, start it again, and it goes on where it was.

# %%
result = cleaning.clean(read, folder=scale.runs / "cleaning")
assert len(result.kept) + len(result.dropped) == len(read)
result.report

# %% [markdown]
# The same as a picture: how many conversations are left after each step, and which source each step took from.

# %%
import matplotlib.pyplot as plt

dropped = result.report.xs("dropped", level="action").drop(columns="total")
left = [len(read), *(len(read) - dropped.sum(axis=1).cumsum())]
figure, (funnel, steps) = plt.subplots(1, 2, figsize=(11, 0.4 * len(left) + 1), sharey=False)
funnel.barh(["read", *dropped.index], left)
for y, n in enumerate(left):
    funnel.text(n, y, f" {n:,}", va="center")
funnel.set(title="left after each step", xlim=(0, 1.15 * left[0]))
dropped.plot.barh(stacked=True, ax=steps, xlabel="conversations", ylabel="", title="dropped by each step")
steps.legend(bbox_to_anchor=(1, 1))
for axes in (funnel, steps):
    axes.invert_yaxis()
figure.tight_layout()

# %% [markdown]
# Read some of what was dropped. A step that drops good rows shows itself here, and nowhere else.

# %%
frame = pd.DataFrame(result.dropped.to_list())
first = frame.groupby("step", sort=False).head(2)
pd.DataFrame(
    {
        "step": first.step,
        "reason": first.reason,
        "question": [m[0]["content"][:30] for m in first.messages],
        "last turn": [m[-1]["content"][:40] for m in first.messages],
    }
).reset_index(drop=True)

# %% [markdown]
# With a kernel running you can go through all of them, and through what was kept and changed. (On a page without one, the table above
# stands for it.)

# %%
from aurora_lib import browsing

browsing.browse(result)

# %% [markdown]
# ## Near duplicates
#
# Two rows that differ in a word teach the same thing twice, and a copy of a test question is worse. To compare texts, cut them into
# *shingles*, here every five characters in a row; the *Jaccard similarity* is the share of shingles in common.

# %%
a = "长城是中国古代的防御工程，东起山海关，西到嘉峪关。"
b = "长城是中国古代的防御工程，东起山海关，西至嘉峪关。"
c = "故宫是明清两代的皇家宫殿，位于北京城的中轴线上。"
pieces = [{text[i : i + 5] for i in range(len(text) - 4)} for text in map(lambda t: duplicates.plain(talk("", t)), (a, b, c))]
for name, other in (("b", pieces[1]), ("c", pieces[2])):
    print(f"a and {name}: {len(pieces[0] & other)} of {len(pieces[0] | other)} shingles, J = {duplicates.jaccard(a, {'b': b, 'c': c}[name]):.2f}")

# %% [markdown]
# One character changed, and five shingles on either side are gone.
#
# Comparing all pairs of 176,678 rows would take 15.6 billion comparisons. **MinHash** makes each text a short list of numbers: hash all its shingles,
# keep the smallest hash, and repeat with 128 different hash functions. The smallest of all shingles of two texts is equally likely to be any of
# them, so it is a *common* one with probability J: **the share of equal numbers estimates J.** Then cut the 128 numbers into 32 *bands* of 4: only texts
# that agree in a whole band, at least one, are compared. That happens with probability $1-(1-J^4)^{32}$, the S-curve.

# %%
import numpy as np

rng = np.random.default_rng(0)
texts = [duplicates.plain(row["messages"]) for row in result.kept]
texts = [text for text in texts if len(text) >= 25]
pairs = []
for text in texts[:400]:  # copies with ever more characters replaced
    changed = list(text)
    for place in rng.integers(0, len(text), rng.integers(0, len(text) // 3)):
        changed[place] = chr(rng.integers(0x4E00, 0x9FA5))
    pairs.append((text, "".join(changed)))
true = np.array([duplicates.jaccard(*pair) for pair in pairs])
signed = duplicates.signatures([duplicates.shingles(text) for pair in pairs for text in pair])
estimate = (signed[::2] == signed[1::2]).mean(axis=1)
bands = duplicates.bands(signed)
candidate = (bands[::2] == bands[1::2]).any(axis=1)

j = np.linspace(0, 1, 200)
figure, (left_axes, right_axes) = plt.subplots(1, 2, figsize=(10, 3.4))
left_axes.plot(true, estimate, ".", alpha=0.4)
left_axes.plot(j, j, "k", lw=0.8)
left_axes.set(xlabel="true Jaccard similarity", ylabel="share of equal MinHash values", title="128 numbers stand for a text")
for count, rows_each in ((8, 16), (16, 8), (32, 4), (64, 2)):
    chosen = (count, rows_each) == (duplicates.BANDS, duplicates.ROWS)
    right_axes.plot(j, 1 - (1 - j**rows_each) ** count, lw=3 if chosen else 1, label=f"{count} bands of {rows_each}")
edges = np.linspace(0, 1, 11)
inside = np.digitize(true, edges[1:-1])
shares = [(true[inside == k].mean(), candidate[inside == k].mean()) for k in range(10) if (inside == k).any()]
right_axes.plot(*zip(*shares, strict=True), "ko", ms=4, label="measured")
right_axes.set(xlabel="true Jaccard similarity", ylabel="compared at all", title="The S-curve")
right_axes.legend()
print(f"mean error of the estimate {np.abs(estimate - true).mean():.3f}; {candidate.sum()} of {len(pairs)} pairs share a band");

# %% [markdown]
# Pairs that share a band are *candidates*: they are then compared in full, and two questions of the same form (15 apples, 18 apples) are told
# apart. How many does the whole thing find? Plant copies with one character in fifty replaced, at least one, and count. In a very short row one
# character is a large share, and may be what the row is about; so short and longer rows are counted apart.

# %%
copies = []
for row in result.kept.select(range(0, len(result.kept), 3)):
    messages = [dict(message) for message in row["messages"]]
    where = [(m, i) for m, message in enumerate(messages) for i in range(len(message["content"]))]
    for m, i in rng.permutation(where)[: max(1, round(0.02 * len(where)))]:
        text = messages[m]["content"]
        messages[m]["content"] = text[:i] + chr(rng.integers(0x4E00, 0x9FA5)) + text[i + 1 :]
    copies.append(row | {"id": row["id"] + " copy", "messages": messages})
again = cleaning.clean(concatenate_datasets([result.kept, sources.table(copies)]))
gone = set(again.dropped["id"])
found = pd.DataFrame(
    {
        "characters": ["under 25" if len(duplicates.plain(copy["messages"])) < 25 else "25 and more" for copy in copies],
        "found": [bool(gone & {copy["id"], copy["id"].removesuffix(" copy")}) for copy in copies],
    }
)
found.groupby("characters").found.agg(planted="size", found="sum", share="mean").round(3)

# %% [markdown]
# ## Benchmark questions among the rows
#
# A model that has read the exam scores too well. `contamination` looks for 20 characters in a row of any C-Eval, CMMLU or MMLU question (or for
# a shorter question as a whole), the same way at `full`.

# %%
from aurora_lib import contamination

asked = contamination.questions(scale.benchmarks)
overlaps = contamination.overlaps(result.kept, asked)
print(f"{len(overlaps):,} of {len(result.kept):,} conversations hold one of {len(asked.texts):,} benchmark questions")
pd.DataFrame(overlaps[:3], columns=["id", "question"])

# %% [markdown]
# Look at what was found before you drop anything: at `tiny`, world facts are the subject of rows and questions alike, on purpose. Dropping them is one
# argument: `cleaning.clean(read, benchmarks=asked)`. We keep them, as the paper did, and notebook 05 scores facts that tuning never saw.
#
# ## Table 1
#
# The paper counts single- and multi-round conversations. Ours, from this run, beside the paper's:

# %%
from aurora_lib import paper

published = {
    "alpaca_zh": (paper.CONVERSATIONS["alpaca_data_zh_51k, single round"].value, 0),
    "alpaca_gpt4_zh": (paper.CONVERSATIONS["alpaca_gpt4_data_zh, single round"].value, 0),
    "sharegpt_zh": tuple(paper.CONVERSATIONS[f"sharegpt_70k, {rounds}"].value for rounds in ("single round", "multiple rounds")),
}
published["total"] = tuple(map(sum, zip(*published.values(), strict=True)))
assert sum(published["total"]) == paper.CONVERSATIONS["total"].value
result.table1().join(pd.DataFrame.from_dict(published, orient="index", columns=["paper: single", "paper: multiple"]))

# %% [markdown]
# ## What the rows are about
#
# The paper's Figure 2 shows twenty categories, and says little about where they came from. Ours are ShareGPT's own tags where there are any, else
# the guess of a small classifier: a lexicon labels the conversations it is sure of, and naive Bayes learns from those.

# %%
from collections import Counter

from aurora_lib import categories

classifier = categories.fit(result.kept["messages"])
topics = Counter(classifier.topics(result.kept["messages"], result.kept["category"]))
names, counts = zip(*topics.most_common()[::-1], strict=True)
figure, axes = plt.subplots(figsize=(6, 0.28 * len(names) + 0.6))
axes.barh(names, counts)
axes.set(xlabel="conversations", title="Topics of the kept conversations")
measured = json.loads(Path(sources.DATA.parent, "results", "topics.json").read_text())
print("accuracy on {n} hand-labelled prompts: {accuracy:.0%}, 95 % interval {interval[0]:.0%} to {interval[1]:.0%}".format(**measured))

# %% [markdown]
# ## What Chinese costs in tokens
#
# Mixtral's tokenizer has 32,000 pieces, few of them Chinese; a character without a piece of its own falls back to its three
# bytes. Same facts, both languages, the *real* tokenizer:

# %%
from aurora_lib import evaluation, tokenizer

mixtral_tokenizer = tokenizer.load()
sentences = {side: [probe[side]["answer"] for probe in evaluation.load_probes()] for side in ("zh", "en")}
pieces = {side: [mixtral_tokenizer.tokenize(sentence) for sentence in sentences[side]] for side in sentences}
tokens = {side: sum(map(len, pieces[side])) for side in pieces}
per_character = tokens["zh"] / sum(map(len, sentences["zh"]))
bytes_ = sum(piece.startswith("<0x") for sentence in pieces["zh"] for piece in sentence)
print(mixtral_tokenizer.tokenize("斯德哥尔摩在瑞典。"))
print(f"Chinese: {per_character:.2f} tokens a character, {bytes_ / tokens['zh']:.1%} of the tokens are single bytes")
print(f"the same facts take {tokens['zh'] / tokens['en']:.2f} x the English tokens")

# %% [markdown]
# A conversation longer than the training length (the paper's stack: 1,024 tokens) loses its end. Cut *between turns* instead, and only what is
# too long within a single exchange is lost. How much, for lengths of your choice:

# %%
from aurora_lib import splitting

sizes = splitting.exchange_tokens(result.kept["messages"], mixtral_tokenizer)
total = sum(map(sum, sizes))
lengths = [16, 24, 32, 48, 64, 96, 128, 256, 512, 1024]
truncated, split = [], []
for length in lengths:
    pieces = splitting.split(result.kept, mixtral_tokenizer, length)
    truncated.append(sum(max(0, sum(size) - length) for size in sizes) / total)
    inside = splitting.exchange_tokens(pieces["messages"], mixtral_tokenizer)
    split.append(sum(max(0, sum(size) - length) for size in inside) / total)
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(lengths, truncated, "o-", label="conversations cut off")
axes.plot(lengths, split, "o-", label="split between turns")
axes.set(xscale="log", xlabel="training length (tokens)", ylabel="share of tokens lost", title="What a cutoff throws away")
axes.set_xticks(lengths, lengths)
axes.minorticks_off()
axes.legend();

# %% [markdown]
# Our bundled rows are short, so the curve falls early. On long ShareGPT conversations the same cell shows the same picture at a thousand tokens.
#
# ## Save
#
# Split to this scale's training length under the base model's own tokenizer. Notebook 04 trains on exactly this. Beside it goes a data card: what is in
# it, from where, under which licence, and what was done to it.

# %%
from aurora_lib import conversations, data_card

own = tokenizer.load(scale.base_model, revision=scale.revision)
saved = splitting.split(result.kept, own, scale.length)
path = conversations.save(saved, scale)
card = data_card.card(result, saved, origin=f"the files in `{Path(data).name}`", steps=does, rejected=len(rejected))
path.with_name("DATA_CARD.md").write_text(card, encoding="utf-8")
print(f"{len(saved):,} conversations in {path.name}\n")
print("\n".join(card.splitlines()[:12]))

# %% [markdown]
# ## Exercises
#
# **02.1** The share of Chinese characters (U+4E00 to U+9FFF, `"\u4e00" <= c <= "\u9fff"`) among the *letters* of a text.

# %%
from aurora_lib import exercises


def han_share(text):
    return ...


exercises.check("02.1", han_share)

# %% [markdown]
# <details><summary>Hint</summary><code>str.isalpha</code> is true for Chinese characters too.</details>
#
# **02.2** Drop exact duplicates: keep the first of each, in order.

# %%
def unique(rows):
    return ...


exercises.check("02.2", unique)

# %% [markdown]
# <details><summary>Hint</summary><code>dict</code> keys are unique, and remember their order.</details>
#
# **02.3** Keep an answer, or not? Short right answers stay, answers that say nothing go.

# %%
def keep(answer):
    return ...


exercises.check("02.3", keep)

# %% [markdown]
# <details><summary>Hint</summary>What do all answers that say something contain?</details>
#
# **02.4** The S-curve: with what probability are two texts of Jaccard similarity `j` compared, given `bands` bands of `rows` MinHash values?

# %%
def compared(j, bands, rows):
    return ...


exercises.check("02.4", compared)

# %% [markdown]
# <details><summary>Hint</summary>One band agrees with probability j to the power of its rows. What is the probability that none does?</details>
#
# ## Paper, records and you

# %%
from aurora_lib import results

results.record(
    "02",
    {
        "rows read": len(read) + len(rejected),
        "rows set aside as no conversation": len(rejected),
        "conversations dropped": len(result.dropped),
        "near duplicates dropped": int((frame.step == "near_duplicate").sum()),
        "planted near duplicates found (25 characters and more)": round(found.found[found.characters == "25 and more"].mean(), 4),
        "conversations": len(saved),
        "tokens per Chinese character": round(per_character, 3),
    },
)
results.compare("02")

# %% [markdown]
# **In five lines.** Three layouts become one: messages. Every row is kept, or dropped with its step and reason, or set aside with
# its line, and the totals match. Short is not bad; reading drops by eye is part of cleaning. MinHash finds near duplicates without comparing all
# pairs, and a candidate is still compared in full. Chinese is expensive in Mixtral's tokens: split long conversations between turns.
#
# **Next:** [03 QLoRA and memory](03_qlora_memory.ipynb).
