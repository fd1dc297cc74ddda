# %% [markdown]
# # 02 · Chinese data: from three files to clean conversations
#
# Paper: section 2, Table 1 and Figure 2. **After this notebook you can** read the three released files, write a cleaning step and score it, find near
# duplicates, and account for every single row.
#
# ![Rows of three files: a few are set aside, some are dropped, most are kept and split into conversations for training.](images/funnel.svg)
#
# At `tiny` the rows are ours, written like the released ones under the same names, with faults put in. `AURORA_DATA=/a/file.jsonl` (or a folder) reads yours. At `full` the
# three released files are read, at `mid` one row in fifty. No GPU is needed: `AURORA_SCALE=full AURORA_DEVICE=cpu` cleans them in some ten minutes on two cores (predicted).

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
# The Alpaca sets hold an `instruction`, sometimes an `input`, and the `output`. ShareGPT holds turns (`conversation`) and a free-text tag
# (`category`). Below: the longest of each file's first 20 rows, cut short.

# %%
from itertools import islice

from aurora_lib import course
from aurora_lib.data import sources

data = scale.data or "hub"
for name, files in sources.files(data).items():
    texts = []
    for row in islice(course.rows.read_rows(files[0]), 20):
        texts.append(" ".join(row.text.split()))  # on one line
    print(f"{name}: {files[0].name}\n  {max(texts, key=len)}\n")

# %% [markdown]
# `sources.read` turns each row into *messages*: a list of `{"role": ..., "content": ...}`. (The layouts that it knows are in `aurora_lib/data/layouts.toml`.)
# A row that is no conversation is *set aside*, with its line and what is wrong with it. The table shows up to three of each file.

# %%
from pathlib import Path

import pandas as pd

pd.options.display.max_colwidth = 100

reading = sources.read(data, every=scale.every)
read, aside = reading.conversations, reading.aside
print(f"{len(read) + len(aside):,} rows = {len(read):,} conversations + {len(aside):,} set aside")
table = pd.DataFrame(aside, columns=["file", "line", "reason", "row"])
table["file"] = [Path(file).name for file in table["file"]]
table["row"] = [" ".join(str(row).split())[:60] for row in table["row"]]
table.groupby("file").head(3).reset_index(drop=True)

# %% [markdown]
# ## Three steps in the open
#
# A cleaning step is a small function of one conversation. An *edit* gives it back mended. A *drop* gives a reason, or `None` to let it pass. We write
# three of the library's steps: a draft, a look at three rows, the final form.
#
# **An edit: HTML entities.** Text from web pages holds `&lt;` where `<` is meant. Python has a function for that.
# **Before you run the cell:** which rows will it spoil?

# %%
import html


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def said(messages):
    return " | ".join(message["content"] for message in messages)


def draft(messages):
    return [message | {"content": html.unescape(message["content"])} for message in messages]


three = [
    talk("5 &lt; 6 对吗？", "对。"),
    talk("写一个搜索地址。", "https://a.cn/?q=1&copy=2"),
    talk("HTML 里怎么转义小于号？", "写 &lt; 就行。"),
]
for messages in three:
    print(said(messages), "  ->  ", said(draft(messages)))

# %%
import re
from html.entities import html5

from aurora_lib.data import drops, edits

# the draft spoils an address: an entity ends in ";"
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,31}\d{0,2});")
# it spoils an answer that is about entities: such conversations stay as they are
SUBJECT = re.compile(r"(?i)实体|转义|entit|escap")


def character(entity):
    entity = entity[0]
    if entity.startswith("&#"):
        return html.unescape(entity)
    name = entity.removeprefix("&")
    return html5.get(name, entity)  # an unknown name stays; html.unescape makes "©right;" of "&copyright;"


def html_entities(messages):
    if any(SUBJECT.search(message["content"]) for message in messages):
        return messages
    return [message | {"content": ENTITY.sub(character, message["content"])} for message in messages]


for messages in three:
    print(said(messages), "  ->  ", said(html_entities(messages)))
conversations = read["messages"][:]
for messages in conversations:
    assert html_entities(messages) == edits.html_entities(messages)

# %% [markdown]
# The `assert` checks that ours does what the library's does, on every row read.
#
# **A drop: refusals.** A model tuned on "sorry, I cannot" learns to say it. The draft looks for 抱歉 and 对不起, two words for "sorry".
# **Before you run the cell:** which bad row does it miss, and which good one does it drop?


# %%
def draft(messages):
    return "a refusal" if re.search("抱歉|对不起", messages[-1]["content"]) else None


def look(step, three):
    for wanted, messages in three:
        does, text = "drop" if step(messages) else "keep", said(messages)
        text = text if len(text) < 40 else text[:12] + " … " + text[-25:]
        print(does, "(right):" if does == wanted else "(WRONG):", text)
    dropped = sum(bool(step(messages)) for messages in conversations)
    print(f"All rows: {dropped:,} of {len(conversations):,} conversations dropped")


three = [
    ("drop", talk("海有多深？", "抱歉，我不能帮助你完成这个请求。")),
    ("drop", talk("海有多深？", "作为AI语言模型，我没有能力回答这个问题。")),
    ("keep", talk("写一封道歉信。", "对不起，我不能参加会议。")),
]
look(draft, three)

# %%
pattern = drops.pattern  # by its name in aurora_lib/data/patterns.toml, which has examples of each


def refusal(messages):
    asked, answer = messages[-2]["content"], messages[-1]["content"].strip()
    if len(answer) < 40 and pattern("not_possible").match(answer):
        return "the last answer says that it cannot be done"
    opening = pattern("refusal").match(answer)
    if opening is None:
        return None
    by_a_machine = pattern("machine_refusal").search(opening[0])
    if pattern("asks_for_text").search(asked) and not by_a_machine:
        return None  # a letter or a translation may say "sorry"
    rest = answer[opening.end() :]
    enough = 60 if pattern("turns_helpful").search(rest) else 150  # characters that help all the same
    return None if len(rest) > enough else "the last answer is a refusal"


print("Behind a refusal, help begins with one of", pattern("turns_helpful").pattern)
look(refusal, three)
for messages in conversations:
    assert refusal(messages) == drops.refusal(messages)

# %% [markdown]
# **A drop: answers cut off in the middle.** A whole sentence ends in 。！ or ？. **Before you run the cell:** is that enough?


# %%
def draft(messages):
    return None if messages[-1]["content"].rstrip().endswith(("。", "！", "？")) else "cut off"


park = "今天天气很好。我们一家人去了公园，孩子们在草地上放风筝，老人坐在长椅上聊天。"
park += "公园里开满了花，有桃花、杏花和玉兰花。湖上还有人划船，岸边的柳树也绿了，许多人在树下照相。"
park += "我们带了水果、面包和一壶茶，"
three = [
    ("drop", talk("写一篇日记。", park + "中午就在湖边的大树下吃饭，")),
    ("keep", talk("三乘九等于多少？", "27")),
    ("keep", talk("写一篇日记，加上话题。", park + "就在树下吃饭。#春天是大家的")),
]
look(draft, three)

# %%
SHORT, LONG, VERY_LONG = 60, 100, 150  # characters of an answer


# a missing full stop alone is no sign; short answers and short last lines are spared
def truncated(messages):
    answer = messages[-1]["content"].rstrip()
    last = answer.split("\n")[-1]
    if len(answer) < SHORT:
        return None
    sign = pattern("unfinished").search(answer)  # a comma, an open bracket, "3.", "有以下几种："
    if sign and (len(last) > 12 or sign[0].startswith("\n")):
        return f"the last answer stops at {sign[0].strip()!r}"
    if answer.count("```") % 2 and not answer.endswith("```"):
        return "the last answer stops inside a code block"
    stop = max(last.rfind(mark) for mark in "。！？")
    behind = last[stop:]  # from the last full stop on
    if len(answer) <= LONG or stop < 1 or pattern("tag_or_address").search(behind):
        return None
    if last[-1] in "的和与在把被及或但而将":
        return f"the last answer stops at {last[-1]!r}"
    if len(answer) > VERY_LONG and "，" in behind and "\u4e00" <= last[-1] <= "\u9fff":
        return "the last answer stops in the middle of a sentence"
    return None


look(truncated, three)
for messages in conversations:
    assert truncated(messages) == drops.truncated(messages)

# %% [markdown]
# **Exercise 02.1, build: a fourth step,** which the library does not have. Some ShareGPT answers claim to come from *another company's
# model*: 我是ChatGPT. Your model would learn to say so. Drop them. An answer *about* such a product stays, and so does
# "I am an AI assistant". Read the labelled rows first, `data/identity.jsonl`: they name many products and companies. The check runs
# your step on them. It wants a *precision* (精确率) of 0.9, the share of dropped rows
# that are bad, and a *recall* (召回率) of 0.8, the share of bad rows that are dropped.

# %%
from aurora_lib import exercises


def claims(messages):
    return ...


exercises.check("02.1", claims)

# %% [markdown]
# <details><summary>Hint</summary>Look for 我 and a product's name in one sentence. Then look at what the user asked for.</details>
#
# On new rows expect a lower score: you wrote the step for these. At `full`, `look(claims, [])` counts what it drops; the `tiny` rows have none.
#
# ## Ten rows, all steps
#
# **Before you run the cell:** which are mended, which dropped, and which stay as they are?

# %%
ten = [
    talk("北京\u200b在哪里？", "在北方。"),
    talk("你好".encode().decode("latin-1"), "你好！"),
    talk("写一句问候。\n<noinput>", "早上好！"),
    talk("列出两种水果", r"苹果\n香蕉"),
    talk("推荐一本书", "### Response: 《红楼梦》。</s>\n### Instruction: 再推荐一本"),
    talk("画一只鞋", "<无输出>"),
    talk("法国的首都是哪里？", "The capital of France is Paris."),
    talk("三乘九等于多少？", "27"),
    talk("写一封道歉信", "对不起，我不能参加会议。"),
    talk("“谢谢”的英语怎么说？", "You can say thank you."),
]
rows = []
for messages in ten:
    mended, changes = edits.edit(messages)
    became = "stays as it is"
    if changes:
        became = f"{changes[0]['step']}: {said(mended)}"
    for step in drops.DROPS:
        if reason := step(mended):
            became = f"dropped by {step.__name__}: {reason}"
            break
    rows.append([said(messages).replace("\u200b", "[U+200B]"), became])
pd.DataFrame(rows, columns=["question | answer", "what becomes of it"]).replace("\n", "⏎", regex=True)

# %% [markdown]
# What is *not* dropped matters as much. Short answers are mostly right, an apology may have been asked for, and so may English (英语).
#
# ## The account
#
# `clean` takes all steps (`cleaning.steps()` lists them). First, for each source: rows in the file = set aside + dropped + kept.
# Then the same by step, without the rows set aside. A later step may drop what is `edited`.

# %%
from aurora_lib.data import clean, cleaning

result = clean(read, folder=scale.runs / "cleaning")
assert len(result.kept) + len(result.dropped) == len(read)
account = cleaning.account(reading, result)
print(account)
result.report

# %% [markdown]
# Read some of what was dropped. A step that drops good rows shows itself only here.

# %%
texts = dict(zip(read["id"][:], conversations, strict=True))
dropped = result.dropped.to_pandas()
rows = []
for step in cleaning.steps():
    for row in dropped[dropped["step"] == step].head(2).itertuples():
        why = row.reason
        twin = why.split(" ")[-1]  # a duplicate's reason ends in the id of the row that stays
        if twin in texts:
            why = "stays: " + texts[twin][0]["content"]
        rows.append([step, row.messages[0]["content"][:30], row.messages[-1]["content"][:34], why])
pd.DataFrame(rows, columns=["step", "question", "last turn", "reason, or the row that stays"])

# %% [markdown]
# ## Near duplicates
#
# Two rows that say the same in almost the same words teach it twice. To compare texts, cut them into *shingles*: every five
# characters in a row. The *Jaccard similarity* J is the number of shingles that both have, divided by the number that at least one has.
#
# **Exercise 02.2, a prediction.** Two sentences of 25 characters differ in one, the fifth from the end. How large is J?

# %%
from aurora_lib import exercises

similarity = ...
exercises.check("02.2", similarity)

# %% [markdown]
# <details><summary>Hint</summary>How many shingles does a sentence of 25 characters have? In how many of them does one character stand?</details>


# %%
def shingles(text):
    return {text[i : i + 5] for i in range(len(text) - 4)}


a = "长城是中国古代的防御工程，东起山海关，西到嘉峪关。"
b = "长城是中国古代的防御工程，东起山海关，西至嘉峪关。"
common, all_ = shingles(a) & shingles(b), shingles(a) | shingles(b)
print(f"J = {len(common)} / {len(all_)} = {len(common) / len(all_):.2f}")
print(sum(x == y for x, y in zip(a, b, strict=True)), "of", len(a), "characters are equal")
print("only in one of them:", sorted(all_ - common))

# %% [markdown]
# Comparing all pairs of 176,678 rows would take 15.6 billion comparisons. **MinHash** makes each text a short list of numbers: hash all its shingles,
# keep the smallest hash, and repeat with 128 different hash functions. Of all shingles of two texts, each is equally likely to get the
# smallest hash. With probability J it is a *common* one, and then both texts keep the same number: **the share of equal numbers estimates
# J.** Then cut the 128 numbers into 32 *bands* of 4. A band is equal with probability $J^4$ (all four numbers). At least one of 32
# is with $1-(1-J^4)^{32}$, the S-curve. Only such texts are compared.
#
# The next cell copies each longer text and replaces a random share of its characters. Left: a dot is one pair; on the black
# line the estimate is exact. Right: the formula for four ways to cut the numbers (thick: ours). A black dot is the measured
# share for one tenth of J (0.4 to 0.5, say). With few pairs luck moves it.

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


some = result.kept.select(range(min(2_000, len(result.kept))))
plain = [duplicates.plain(row["messages"]) for row in some]
long_enough = [text for text in plain if len(text) >= 25][:400] or plain[:400]
pairs = [(text, changed(text, rng.uniform(0, 0.33))) for text in long_enough]
true = np.array([duplicates.jaccard(text, copy) for text, copy in pairs])
texts_signed = duplicates.signatures([duplicates.shingles(text) for text, _ in pairs])
copies_signed = duplicates.signatures([duplicates.shingles(copy) for _, copy in pairs])
estimate = (texts_signed == copies_signed).mean(axis=1)
same_band = duplicates.bands(texts_signed) == duplicates.bands(copies_signed)
compared = same_band.any(axis=1)
error = np.abs(estimate - true).mean()
print(f"{len(pairs)} pairs: mean error of the estimate {error:.3f}; {compared.sum()} share a band")

# %%
import matplotlib.pyplot as plt

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
# Pairs that share a band are then compared in full. Near duplicates have at least 0.7 of their shingles in common, or (like the Great Wall
# pair) 0.9 of their characters, *unless* question and answer changed together, as in the same sum with other figures.
#
# How many are found? We add copies with one character in fifty of the last answer replaced, at least one.
# Short rows are counted apart: one character may be what they are about.

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
# Nearly all are found, also the short ones; such small changes are easy.
#
# **Exercise 02.3, hunt.** Of texts that are alike, one should stay, the one that says most. `alike(a, b)` says whether two are alike.
# This function has two bugs. Write it again without them.
#
# ```python
# def stay(texts, alike):
#     kept, before = [], []
#     for text in sorted(texts, key=len):
#         if not any(alike(text, other) for other in before):
#             kept.append(text)
#         before.append(text)
#     return kept
# ```

# %%
from aurora_lib import exercises


def stay(texts, alike):
    return ...


exercises.check("02.3", stay)

# %% [markdown]
# <details><summary>Hint</summary>In which order does <code>sorted</code> give them? Of a chain of small changes, what stays?</details>
#
# ## Benchmark questions among the rows
#
# A model that has read the exam scores too well. `contamination` looks for 20 consecutive Chinese characters of a question, and for shorter
# questions as a whole.

# %%
from aurora_lib.evaluation import benchmarks, contamination

root = scale.benchmarks or "hub"
questions = []
for task, about in benchmarks.TASKS.items():
    for subject in benchmarks.load_subjects(task, root):
        loaded, *_ = benchmarks.load_questions(task, subject, about["split"], root)
        questions += [question.text for question in loaded]
asked = contamination.Questions(questions)
rows = []
for row in result.kept:
    if question := asked.found_in(row["messages"]):
        rows.append([question, row["messages"][0]["content"]])
counted = f"{len(rows):,} of {len(result.kept):,} conversations"
print(f"{counted} hold one of {len(asked.texts):,} benchmark questions")
pd.DataFrame(rows[:3], columns=["benchmark question", "a row's question"])

# %% [markdown]
# At `tiny` a few were put there on purpose. We keep them for the course. For a real score, drop them: `clean(read, benchmarks=asked)`.
#
# ## Table 1, and a suspicion
#
# The paper counts single- and multi-round conversations. (At `tiny` only the shape compares; `mid` reads one row in fifty.)

# %%
from aurora_lib.course import paper

count = {name: int(figure.value) for name, figure in paper.CONVERSATIONS.items()}
gpt4 = count["alpaca_gpt4_data_zh, single round"]
theirs = pd.DataFrame(
    {
        "alpaca_zh": [count["alpaca_data_zh_51k, single round"], 0],
        "alpaca_gpt4_zh": [gpt4, 0],
        "sharegpt_zh": [count["sharegpt_70k, single round"], count["sharegpt_70k, multiple rounds"]],
    },
    index=["paper: single", "paper: multiple"],
).T
rows = []
for source, messages in zip(result.kept["source"][:], result.kept["messages"][:], strict=True):
    rounds = sum(message["role"] == "user" for message in messages)
    rows.append([source, "multiple" if rounds > 1 else "single"])
ours = pd.DataFrame(rows, columns=["source", "rounds"]).value_counts().unstack()
ours = ours.reindex(columns=["single", "multiple"]).add_prefix("ours, kept: ")
table = pd.concat([theirs, ours], axis=1).fillna(0).astype(int)
table.loc["total"] = table.sum()
assert table.loc["total", theirs.columns].sum() == count["total"]
removed = 6_103  # "mistruncated examples", says the card of llamafactory/alpaca_gpt4_zh on the hub
print(f"alpaca_gpt4_zh: {gpt4:,} - {removed:,} ({removed / gpt4:.1%}) = {gpt4 - removed:,} rows")
table.map("{:,}".format)

# %% [markdown]
# LLaMA-Factory, with which the authors trained, offers the second set today. Its card says how many cut-off rows were removed.
# Another copy on the hub has 48.8k rows, the paper's count. So perhaps nothing was removed, and Aurora saw the cut-off rows too; the paper does not say.
# At `full` the account above says how many rows today's copy has (the table counts what we kept).
#
# ## Figure 2, a detective story
#
# The paper: "There are mainly 20 categories in datasets. The three categories with the highest quantity are computer, natural, and science." Is *natural* a
# topic? ShareGPT's tags look like "Natural Science, Chemistry: ". Count them split at commas, then at spaces.
# **Before you run the cell:** what becomes of *natural science* in the second count?

# %%
from collections import Counter

whole, words, tagged = Counter(), Counter(), 0
for tag in result.kept["category"][:]:
    tag = tag.strip(" ,:\n").lower()
    if tag:
        tagged += 1
        whole.update(topic.strip(" :") for topic in tag.split(","))
        words.update(word.strip(",:") for word in tag.split())
figure, both = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axes, counts, title in zip(both, (whole, words), ("split at commas", "split at spaces"), strict=True):
    top = counts.most_common(10)[::-1]
    names = [name for name, _ in top]
    named = {"computer", "natural", "science", "natural science", "computer science"}
    colours = ["tab:orange" if name in named else "tab:gray" for name in names]
    axes.barh(names, [n for _, n in top], color=colours)
    axes.set(title=f"ShareGPT's tags, {title}", xlabel="times counted")
print(f"{tagged:,} of {len(result.kept):,} kept conversations have a tag")
print("natural science:", whole["natural science"], "times;", end=" ")
print(", ".join(f"{word}: {words[word]}" for word in ("natural", "science", "computer")))

# %% [markdown]
# One topic became two words, each as frequent as it was, or more. "Computer Science" would add to *science* too. So the three
# categories may be two topics. But then *science* should be the largest, and the paper names it last (perhaps by alphabet).
#
# At `tiny` the tags are ours, without computers. At `full` the cell reads the released ones; we have not run that. It cannot
# rebuild Figure 2: the Alpaca rows have no tags, and the paper does not say where its categories come from.
#
# ## What Chinese costs in tokens
#
# Mixtral's tokenizer has 32,000 pieces, few of them Chinese. A character without a piece becomes its three
# bytes, like the last one of 巴黎. Same facts, both languages, the *real* tokenizer:

# %%
from aurora_lib import evaluation
from aurora_lib.data import language
from aurora_lib.model import load_tokenizer

mixtral_tokenizer = load_tokenizer()
print(mixtral_tokenizer.tokenize("法国的首都是巴黎。"))
chinese = sum(language(piece) == "zh" for piece in mixtral_tokenizer.get_vocab())
print(f"{chinese:,} of {len(mixtral_tokenizer):,} pieces are Chinese")
facts, pieces = {}, {}
for side in ("zh", "en"):
    facts[side] = "".join(probe[side]["answer"] for probe in evaluation.load_probes())
    pieces[side] = mixtral_tokenizer.tokenize(facts[side])
in_bytes = sum(piece.startswith("<0x") for piece in pieces["zh"]) / len(pieces["zh"])
print(f"{in_bytes:.1%} of the tokens of our Chinese facts are single bytes")
per_character = len(pieces["zh"]) / len(facts["zh"])
print(f"{per_character:.2f} tokens a Chinese character (punctuation included)")
print(f"{len(pieces['zh']) / len(pieces['en']):.2f} x the tokens of the same facts in English")

# %% [markdown]
# ## Save
#
# A conversation longer than the training length (the paper's stack: 1,024 tokens) would lose its end. So it is split *between turns*.
# The second piece may begin with a lone "继续".
#
# Notebook 04 trains on exactly this, on the same machine or with the same `AURORA_RUNS`.

# %%
from aurora_lib.data import save_conversations, split

own = load_tokenizer(scale.base_model, revision=scale.revision)
saved = split(result.kept, own, scale.length)
path = save_conversations(saved, scale, account)
print(f"{len(saved):,} conversations of at most {scale.length} tokens (or one exchange) in {path.name}")
print(f"Splitting made {len(saved) - len(result.kept):,} of them")

# %% [markdown]
# ## Exercise
#
# **02.4 Try.** Cut the numbers in another way: `my_cut = bands, numbers in each` (at most 128 in all). By the S-curve, can it compare less than 5 % of the pairs
# with J = 0.3, and miss at most 2 % of those with J = 0.8? Many cuts can. Then set `duplicates.BANDS, duplicates.ROWS = my_cut`, clean once more, and count the near duplicates.

# %%
from aurora_lib import exercises

my_cut = ...
exercises.check("02.4", my_cut)

# %% [markdown]
# <details><summary>Hint</summary>Compare the curves above: longer bands agree by chance less often, and miss more. You need not use all 128.</details>
#
# ## Paper, records and you

# %%
from aurora_lib.course import results

steps_taken = result.dropped["step"][:]
long_found = found.found[found.characters == "25 and more"].mean()
results.record(
    "02",
    {
        "rows read": len(read) + len(aside),
        "rows set aside as no conversation": len(aside),
        "conversations dropped": len(result.dropped),
        "refusals dropped": steps_taken.count("refusal"),
        "exact duplicates dropped": steps_taken.count("duplicate"),
        "near duplicates dropped": steps_taken.count("near_duplicate"),
        "planted near duplicates found (25 characters and more) [share]": round(long_found, 4),
        "conversations": len(saved),
        "tokens per Chinese character": round(per_character, 3),
    },
)
results.compare("02")

# %% [markdown]
# **In short.** Every row is kept, dropped with its reason, or set aside with
# its line, and the totals match. A first draft drops good rows: try it on rows that should stay. MinHash finds near duplicates without comparing all
# pairs. Chinese costs more tokens than English: split long conversations between turns.
#
# **Next:** [03 QLoRA and memory](03_qlora_memory.ipynb).
