# %% [markdown]
# # 02 · Chinese data: from three files to clean conversations
#
# Paper: section 2, Table 1 and Figure 2. **After this notebook you can** read the three released formats, clean them by named
# steps, and account for every single row.
#
# At `tiny` the files are samples of our own in the released layouts, dirt included. `AURORA_DATA=/a/folder` reads yours.

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

from aurora_lib import sources

data = scale.data or "hub"
for name in sources.SOURCES:
    for file in sources.files(name, data):
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".jsonl":
            row = json.loads(max(text.splitlines()[:5], key=len))
        else:
            row, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
        print(f"{name}: {file.name}\n  {json.dumps(row, ensure_ascii=False)[:200]}\n")

# %% [markdown]
# `sources.load` recognises each row's layout and turns it into one shape, *messages*. A row that is no conversation is not
# dropped in silence: `sources.rejected` names its line and what is wrong with it.

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
# ## One step at a time
#
# A cleaning step is a small function of a conversation. Some return it mended; others return a reason to drop it, or `None` to let it pass. Three of them on three rows:

# %%
from aurora_lib import cleaning


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


print(cleaning.html_entities(talk("5 &lt; 6 ？", "对。"))[0]["content"])
print(cleaning.wrong_language(talk("法国的首都是哪里？", "The capital of France is Paris.")))
print(cleaning.empty(talk("三乘九等于多少？", "27")))

# %% [markdown]
# The last one prints `None`: "27" is short, and right. Length alone never drops a row.
#
# ## All steps
#
# In order, each with what it does:

# %%
pd.options.display.max_colwidth = None
functions = [*cleaning.TEXT_EDITS, *cleaning.EDITS, *cleaning.DROPS, cleaning.fingerprint]
pd.DataFrame({"step": cleaning.STEPS, "what it does": [f.__doc__.split("\n")[0] for f in functions]})

# %% [markdown]
# `clean` runs them all and keeps everything: what was kept, what was dropped and why, and how many rows each step touched.

# %%
result = cleaning.clean(read)
assert len(result.kept) + len(result.dropped) == len(read)
result.report

# %% [markdown]
# Read some of what was dropped. A step that drops good rows shows itself here, and nowhere else.

# %%
dropped = pd.DataFrame(result.dropped.to_list())
first = dropped.groupby("step", sort=False).head(2)
pd.DataFrame(
    {
        "step": first.step,
        "reason": first.reason,
        "question": [m[0]["content"][:30] for m in first.messages],
        "last turn": [m[-1]["content"][:40] for m in first.messages],
    }
).reset_index(drop=True)

# %% [markdown]
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
# The paper's Figure 2 shows twenty categories. Ours come from ShareGPT's own tags where there are any, else from a small keyword
# lexicon, whose accuracy is not measured: read the shape, not single bars.

# %%
from collections import Counter

import matplotlib.pyplot as plt

from aurora_lib import categories

topics = Counter(categories.categorise(row["messages"], row["category"]) for row in result.kept)
names, counts = zip(*topics.most_common()[::-1], strict=True)
figure, axes = plt.subplots(figsize=(6, 0.28 * len(names) + 0.6))
axes.barh(names, counts)
axes.set(xlabel="conversations", title="Topics of the kept conversations");

# %% [markdown]
# ## What Chinese costs in tokens
#
# Mixtral's tokenizer has 32,000 pieces, few of them Chinese; a character without a piece of its own falls back to its three
# bytes. Same facts, both languages, the *real* tokenizer:

# %%
from aurora_lib import evaluation, tokenizer

mixtral_tokenizer = tokenizer.load()
sentences = {side: [probe[side]["answer"] for probe in evaluation.load_probes()] for side in ("zh", "en")}
tokens = {
    side: sum(len(mixtral_tokenizer(s, add_special_tokens=False).input_ids) for s in sentences[side])
    for side in sentences
}
per_character = tokens["zh"] / sum(len(s) for s in sentences["zh"])
print(mixtral_tokenizer.tokenize("斯德哥尔摩在瑞典。"))
print(
    f"Chinese: {per_character:.2f} tokens a character; the same facts take {tokens['zh'] / tokens['en']:.2f} x the English tokens"
)

# %% [markdown]
# ## Save
#
# Notebook 04 trains on exactly this.

# %%
path = cleaning.save(result.kept, scale)
print(f"{len(result.kept):,} conversations in {path.name}")

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
# ## Paper, records and you

# %%
from aurora_lib import results

results.record(
    "02",
    {
        "rows read": len(read) + len(rejected),
        "rows set aside as no conversation": len(rejected),
        "conversations dropped": len(result.dropped),
        "conversations": len(result.kept),
        "tokens per Chinese character": round(per_character, 3),
    },
)
results.compare("02")

# %% [markdown]
# **In five lines.** Three layouts become one: messages. Every row is kept, or dropped with its step and reason, or set aside with
# its line, and the totals match. Short is not bad. Reading drops by eye is part of cleaning. Chinese is expensive in Mixtral's tokens,
# which is why the cutoff in tokens matters.
#
# **Next:** [03 QLoRA and memory](03_qlora_memory.ipynb).
