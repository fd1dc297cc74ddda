# %% [markdown]
# # 05 · Evaluate: C-Eval, MMLU and CMMLU, with honest error bars
#
# Paper: sections 4.2 and 4.3, Table 3. **After this notebook you can** score 5-shot multiple choice as the paper's authors did, put
# an interval and the chance line on it, compare two models question by question, and say what such a score does not show.
#
# At `tiny` the questions are our own, in the released CSV layouts and under released subject names; no fact is asked in two benchmarks.
# At `full` they are the released ones. Before every evaluation stands what it will take; the whole notebook takes less than an hour there
# (predicted, not measured). `AURORA_BENCHMARKS=/a/folder` reads the released files from a folder.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("05")

# %% [markdown]
# ## One question by hand
#
# A few-shot (少样本) prompt shows solved examples and ends where the answer letter comes next. First look at the text that the model reads, with one example instead of five. It is the form of the
# paper's authors: their tool, LLaMA-Factory, makes every example a turn of a *chat*. The subject stands in front of the first question only. The words around the question are English, for the Chinese
# benchmarks too.

# %%
from aurora_lib import evaluation
from aurora_lib.evaluation import benchmarks, fewshot
from aurora_lib.model import batching, find_adapter, load_adapter, load_model, load_tokenizer

root = scale.benchmarks or "hub"
base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
model = load_adapter(base, find_adapter(scale))

subjects = benchmarks.load_subjects("ceval", root)
subject = next(iter(subjects))
name = subjects[subject]["name"]
examples, _ = benchmarks.load_questions("ceval", subject, "dev", root)
questions, _ = benchmarks.load_questions("ceval", subject, "val", root)
chat = fewshot.Form(prompt="chat", language="en")
print(fewshot.letter_prompt(tokenizer, questions[0], examples[:1], name, chat))

# %% [markdown]
# Nothing is generated. The model reads this text once. Then only four numbers are compared: the logits (raw scores) of A, B, C and D as the next token. Here they are as probabilities among *all* tokens,
# of the untuned model, with five examples.

# %%
import matplotlib.pyplot as plt
import torch


def next_token(question, form):
    prompt = fewshot.letter_prompt(tokenizer, question, examples[:5], name, form)
    ids = torch.tensor([batching.encode(tokenizer, prompt)], device=model.device)
    with torch.no_grad(), model.disable_adapter():
        return model(ids).logits[0, -1].float().softmax(-1)


letters = [ids[0] for ids in fewshot.letter_ids(tokenizer, chat)]
probabilities = next_token(questions[0], chat)[letters].tolist()
figure, axes = plt.subplots(figsize=(4, 2.2))
labels = [f"{letter}\n(right)" if letter == questions[0].answer else letter for letter in "ABCD"]
axes.bar(labels, probabilities)
axes.axhline(0.25, color="grey", linestyle="--", label="a quarter")
axes.legend()
axes.set(title="One question", ylabel="probability", ylim=(0, 1.05))
print("token ids of the letters:", letters, tokenizer.convert_ids_to_tokens(letters))
print(f"the four together: {sum(probabilities):.3f} of all probability")

# %% [markdown]
# The four together have nearly all of the probability. So the model has understood that a letter must come, and which piece of text a letter is here: `▁A`, with a space before it. `A` without the space is *another* token. Compare the wrong
# ones, and the score becomes noise; exercise 05.4 hunts this bug.
#
# Now all questions of the subject, in the plainest way: one prompt, one pass, one letter. Beside it the library's `multiple_choice`. It must choose the same letters.

# %%
by_hand = ["ABCD"[next_token(question, chat)[letters].argmax()] for question in questions]
with model.disable_adapter():
    library = evaluation.multiple_choice(model, tokenizer, "ceval", root=root, subjects=[subject])
assert by_hand == [row["prediction"] for row in library.predictions]
print(library)

# %% [markdown]
# The same letters, with far fewer tokens to read. All questions of a subject begin with the same five examples. The library reads this beginning once, keeps its keys and values (the *KV cache*),
# and lets every question go on from there. (The authors' tool drew the five examples anew for each question; `shuffle=1` does that too, and then there is little to share. Exercise 05.5 asks how much it matters.)

# %%
prompts = [fewshot.letter_prompt(tokenizer, question, examples[:5], name, chat) for question in questions]
rows = [batching.encode(tokenizer, prompt) for prompt in prompts]
shared = batching.shared_length(rows)
once = shared + sum(len(row) - shared for row in rows)
print(f"{len(rows)} prompts of about {len(rows[0])} tokens; the first {shared} are the same for all.")
print(f"To read: {sum(map(len, rows)):,} tokens, or {once:,} with the shared beginning read once.")

# %% [markdown]
# ## Letters against answers
#
# Every score below comes with its *n* and its 95 % interval (Wilson's formula): where the true share plausibly lies, given so few questions. (C-Eval's test answers are not public, so its *val*
# split is scored.) Scores are kept in `cache` as they are made: interrupted, the same cell goes on where it was. First the untuned model.
#
# Ask also in another way. *Cloze* scoring (完形填空式打分) shows no letters and no options: it takes the one of the four answers that the model finds likeliest as its answer in a chat. **Before you run the cell:** will the two ways agree? They ask for
# the same facts.

# %%
scores, settings = {}, dict(root=root, cache=scale.runs / "scores")
# where only ways of asking are compared, 20 questions of each subject will do; None asks all
few = settings | dict(limit=None if scale.name == "tiny" else 20)
with model.disable_adapter():
    for task in benchmarks.TASKS:
        scores[task, "letter", "base"] = evaluation.multiple_choice(model, tokenizer, task, **settings)
        scores[task, "cloze", "base"] = evaluation.multiple_choice(
            model, tokenizer, task, scoring="cloze", **few
        )
for result in scores.values():
    print(result)

# %%
names = {"ceval": "C-Eval", "mmlu": "MMLU", "cmmlu": "CMMLU"}
ways = {
    how: {names[task]: scores[task, how, "base"].overall for task in benchmarks.TASKS}
    for how in ("letter", "cloze")
}
evaluation.plot(ways, title="Untuned: the same facts, asked in two ways");

# %% [markdown]
# Asked for the answer itself, the tiny model finds nearly all. Asked for a letter, it misses more than a quarter. So it is not knowledge that the letters miss. What is it?
#
# In pre-training the tiny model also took exams: it was asked by letter about *some* of its facts, in other words than here. `drilled.json` lists those questions. (A list like this exists only for our own
# questions.) **Before you run the cell:** what do you expect for letters on facts that were never drilled?

# %%
import json

import pandas as pd

file = benchmarks.folder("cmmlu", root).parent / "drilled.json"
listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
asked = pd.DataFrame(
    dict(way=how, ever=row["index"] in listed[task][row["subject"]], right=row["correct"])
    | dict(category=result.subjects[row["subject"]]["category"])
    for (task, how, _), result in scores.items()
    if task in listed
    for row in result.predictions
)
if listed:
    sides = {"drilled by letter": asked[asked.ever], "never drilled": asked[~asked.ever]}
    evaluation.plot(
        {
            side: {way: evaluation.scores.Score.of(of.right) for way, of in rows.groupby("way")}
            for side, rows in sides.items()
        },
        title=f"All three benchmarks: n = {' and '.join(str(len(rows) // 2) for rows in sides.values())}",
    )
    by_category = asked[asked.way == "letter"].groupby("category")[["ever", "right"]]
    print(by_category.mean().join(by_category.size().rename("n")).round(2))
else:
    print("For the released benchmarks nobody outside can draw this.")

# %% [markdown]
# It is the drill. On drilled facts the letters come out right, in wordings never seen before. On the others they are *below* the quarter that guessing gives: this model does not guess, it prefers wrong letters. And the answers to these very
# questions it knows. The small table says the same by category: the share right follows the share drilled.
#
# **Here a letter score shows which facts were drilled, not which are known.** For a large model nobody can draw this picture, unless its training data are public. Keep it in mind when you read Table 3.
#
# ## The form of the question
#
# Is the score at least a property of the model? Ask the same questions with the same options, and change only the form:
#
# - *plain*: text instead of chat turns, in the benchmark's own language;
# - *other mark*: the options marked as many Chinese exams mark them, `A、` instead of `A.`; nothing else changes.
#
# **Before you run the cell:** how many points will each change cost?

# %%
forms = {"chat": {}, "plain": dict(prompt="plain"), "chat, other mark": dict(option="\n{letter}、{choice}")}
formed = {}
with model.disable_adapter():
    for form, how in forms.items():
        for task in benchmarks.TASKS:
            formed[form, task] = evaluation.multiple_choice(model, tokenizer, task, **how, **few)
evaluation.plot(
    {
        form: {names[task]: formed[form, task].overall for task in benchmarks.TASKS}
        for form in forms
    },
    title="Untuned: the same questions in three forms",
)
for form in ("plain", "chat, other mark"):
    for task in benchmarks.TASKS:
        pair = evaluation.scores.paired(formed["chat", task], formed[form, task])
        print(f"{names[task]:6} chat -> {form}: {pair}")

# %% [markdown]
# Chat or plain: a few questions change sides, in both directions. That is no difference one could show with so few questions. The other mark for the options costs the tiny model everything: it is down to guessing. It knows no less than before. It was drilled on `A.`, and `A、` is
# another token. A large model is less easily thrown, but it is thrown too: **a score belongs to a model and a form.** So the form must be told with the score, and two models must be asked in one form.
#
# ## Base against tuned
#
# One copy of the weights serves both: with the adapter switched off, the model is the base. Two intervals that overlap do not show that two models are equal. Both answered the *same* questions, and only those that one got right and
# the other wrong can tell the two apart. *McNemar's test* (麦克尼马尔检验) counts these.

# %%
for task in benchmarks.TASKS:
    scores[task, "letter", "tuned"] = evaluation.multiple_choice(model, tokenizer, task, **settings)
pairs = {
    names[task]: evaluation.scores.paired(scores[task, "letter", "base"], scores[task, "letter", "tuned"])
    for task in benchmarks.TASKS
}
pd.DataFrame(
    {
        "n": {task: pair.n for task, pair in pairs.items()},
        "right only before": {task: pair.only_a for task, pair in pairs.items()},
        "right only after": {task: pair.only_b for task, pair in pairs.items()},
        "difference": {task: f"{pair.difference:+.3f}" for task, pair in pairs.items()},
        "95 % interval": {task: "{:+.3f} to {:+.3f}".format(*pair.interval) for task, pair in pairs.items()},
        "p": {task: round(pair.p, 3) for task, pair in pairs.items()},
    }
)

# %% [markdown]
# *p* is the probability of a split at least this uneven between two equally good models. A large p, and an interval that holds 0, are no evidence of a difference. They are not evidence that there is none: the interval says how large it may be.
#
# By category. (The paper's figures are *micro* averages: every question counts alike, whatever its subject.)

# %%
both = {which: scores["cmmlu", "letter", which] for which in ("base", "tuned")}
evaluation.plot({which: result.by_category for which, result in both.items()}, title="CMMLU by category")
pd.DataFrame({which: result.by_category for which, result in both.items()}).map(str)

# %% [markdown]
# The categories differ far more from each other than the two models do. At `tiny` you know why.
#
# ## What was gained, what was lost
#
# Tuning was to change the *language* of answers. No letter can show that. So ask freely, about facts that no training row mentions: in Chinese and in English, and judge every answer by language and by content. Sums in both languages are asked too:
# users of the original reported lost step-by-step reasoning (its repository, issue 9).

# %%
found = {}
for which in ("base", "tuned"):
    with model.disable_adapter() if which == "base" else torch.no_grad():
        free = evaluation.probe(model, tokenizer, max_new_tokens=scale.max_new_tokens)
        sums = evaluation.load_probes(file="sums.jsonl")
        reckoned = evaluation.probe(model, tokenizer, sums, max_new_tokens=scale.max_new_tokens)
    found[which] = free, {
        "Chinese prompts:\nright, in Chinese": free.score("zh", "correct"),
        "Chinese prompts:\nright, in either": free.score("zh", "understood"),
        "Chinese prompts:\nmixed languages": free.languages("zh")["mixed"],
        "English prompts:\nright, in English": free.score("en", "correct"),
        "sums asked\nin Chinese": reckoned.score("zh", "understood"),
        "sums asked\nin English": reckoned.score("en", "understood"),
    }
before, after = found["base"][1], found["tuned"][1]
never = [label for label in before if before[label].correct == after[label].correct == 0]
print("none right, before and after:", "; ".join(f"{' '.join(x.split())}, n={before[x].n}" for x in never))
shown = {
    which: {label: score for label, score in of.items() if label not in never}
    for which, (_, of) in found.items()
}
evaluation.plot(shown, chance=None, title="Asked freely: base and tuned")
pd.DataFrame(shown).rename(index=lambda label: label.replace("\n", " ")).map(str)

# %% [markdown]
# This is the paper's claim, in miniature: Chinese questions are answered in Chinese, and the mixed answers are gone. (The paper's own examples, in its appendix, still mix.) What did it cost? Compare in pairs:

# %%
for asked_in, what in (("zh", "understood"), ("en", "correct")):
    pair = evaluation.scores.paired(*(found[which][0].hits(asked_in, what) for which in ("base", "tuned")))
    print(f"asked in {asked_in}, {what:10}: {pair}")

# %% [markdown]
# The first line counts a right answer in *either* language: only facts gained and lost show in it, not the change of language. The second is the price in English. A small p says that a loss is more than luck. (A tiny model never learned sums, so it has none to lose. At `full` look at these first.)
#
# ## How well does it foresee the answer?
#
# *Perplexity* (困惑度) asks how well a model foresees a text: 1 would be perfect foresight. A low value alone proves little, since any Chinese sentence is partly foreseeable. So here is a control: the same questions with the *right* Chinese answers, with right answers to *other* questions
# (shuffled), and with the right answers in English. And the conversations that notebook 04 held out for validation, by source.

# %%
from aurora_lib.data import clean_conversations, hold_out

facts = evaluation.load_probes(held_out=True)
in_zh, in_en = ([fact[side]["answer"] for fact in facts] for side in ("zh", "en"))
answers = {"right": in_zh, "shuffled": in_zh[7:] + in_zh[:7], "right, in English": in_en}
texts = {
    f"held-out facts, Chinese questions: {kind}": [
        [dict(role="user", content=fact["zh"]["question"]), dict(role="assistant", content=text)]
        for fact, text in zip(facts, said, strict=True)
    ]
    for kind, said in answers.items()
}
_, validation = hold_out(clean_conversations(scale))
for row in validation:
    texts.setdefault(f"validation: {row['source']}", []).append(row["messages"])
foreseen = {}
for which in ("base", "tuned"):
    with model.disable_adapter() if which == "base" else torch.no_grad():
        foreseen[which] = {
            kind: evaluation.perplexity(model, tokenizer, talks) for kind, talks in texts.items()
        }
pd.DataFrame(foreseen | {"n": {kind: len(talks) for kind, talks in texts.items()}}).round(2)

# %% [markdown]
# Read the column *base* from above. It foresees the right Chinese answer worse than the English one, which it would give. But it foresees it better than a shuffled one: so it knows which Chinese answer belongs to the question, and does not say it. The column *tuned* shows what tuning did:
# the right Chinese answer became easy, the shuffled ones did not. The validation rows fell too. (An adapter that was trained on all rows, as the authors' was, has no such rows.)
#
# ## The paper's Table 3, with the missing row
#
# Per cent, 5-shot. The paper took its baselines from elsewhere, and gives no score for the *untuned* Mixtral. So its table cannot show what the tuning changed. Another project published such scores. They are set in here, with their source.

# %%
from aurora_lib.course import paper

table = pd.DataFrame.from_dict(paper.TABLE_3, orient="index", columns=["C-Eval", "MMLU", "CMMLU"])
table["source"] = "paper, Table 3"
untuned = [paper.UNTUNED[column].value for column in ("C-Eval", "MMLU", "CMMLU")]
table.loc["Mixtral-8x7B-Instruct, untuned"] = [*untuned, "README of ymcui/Chinese-Mixtral"]
for which in ("base", "tuned"):
    overall = [scores[task, "letter", which].overall for task in ("ceval", "mmlu", "cmmlu")]
    n = "/".join(str(score.n) for score in overall)
    row = [*(100 * score.accuracy for score in overall), f"here; n {n}"]
    table.loc[f"this run, {scale.name}, {which}"] = row
table.loc[["GPT-4", "LLaMA-2-70B-Chat", *table.index[-4:]]].round(2)

# %% [markdown]
# The untuned Mixtral stands a little *higher* than Aurora on all three. Be careful: another harness asked it (in plain text, by what its scripts say; in which precision it does not say), and a point or two may be the form of the question. For C-Eval it was the *val* split; on the test split the same source gives
# less. Which split the paper used is not said. Aurora's own scores for MMLU and CMMLU are those of its checkpoint 3000, says its README.
#
# What follows: **as far as two harnesses can be compared, these benchmarks show no gain from the tuning.** So the gain must be looked for where the paper claims it: in the language of the answers. Only both models in *one* harness could settle it. That is what this notebook does at `full`: the last two rows.
# (At `tiny` these two answer our own easy questions; do not compare them with the rest.)

# %%
import math

for task, column in (("ceval", "C-Eval"), ("mmlu", "MMLU"), ("cmmlu", "CMMLU")):
    n = {"ceval": 1346, "mmlu": 14042, "cmmlu": 11582}[task]
    p = paper.AURORA[column].value / 100
    half = 100 * 1.96 * math.sqrt(p * (1 - p) / n)
    gap = paper.AURORA[column].value - paper.UNTUNED[column].value
    print(f"{column:6} Aurora - untuned: {gap:+.1f} points; luck alone moves one score by ±{half:.1f} (n={n:,})")

# %% [markdown]
# ## What such a score can say, and what not
#
# - **Chance.** Four choices give a quarter by guessing; on a few hundred questions luck alone moves a score by several points. Read the interval.
# - **Form.** One other mark before the options took the tiny model's score away. Tell the form with the score.
# - **Drill.** Letters may show what was drilled rather than what is known. Cloze asks for the answer itself.
# - **Contamination.** A question seen in training measures memory. Notebook 02 counts overlaps for our rows; for a base model whose data is not public nobody
#   outside can.
# - **Language.** A multiple-choice score in Chinese says nothing about whether the model *answers* in Chinese.
#
# Check all this with an independent program: [this page](lm_evaluation_harness.md) gives the same prompts, token for token, to `lm-evaluation-harness`, and says how OpenCompass asks. `tools/bench/evaluation.py` compares every
# prediction, the seconds and the memory.

# %% [markdown]
# ## Exercises
#
# **05.1 Predict.** C-Eval's val split has 1,346 questions. A model gets 51.9 % of them right. How wide is its 95 % interval, from end to end, in percentage points?

# %%
from aurora_lib import exercises

width = ...
exercises.check("05.1", width)

# %% [markdown]
# <details><summary>Hint</summary>One standard error of a share is √(p(1-p)/n). The interval reaches 1.96 of them to each side.</details>
#
# **05.2 Build.** Cloze scoring. `logits` `[tokens, vocabulary]` are the model's output for `ids` `[tokens]`; the answer begins at place `start`. Return the log-probability of the whole answer.


# %%
def answer_logprob(logits, ids, start):
    return ...


exercises.check("05.2", answer_logprob)

# %% [markdown]
# <details><summary>Hint</summary>The output at place i foresees the token at place i + 1. <code>log_softmax(-1)</code>, then add up.</details>
#
# **05.3 Build.** McNemar's exact test. `before` and `after` are lists of True and False, in the same order of questions. Return the two-sided p.


# %%
def mcnemar(before, after):
    return ...


exercises.check("05.3", mcnemar)

# %% [markdown]
# <details><summary>Hint</summary>Count only the questions on which the two differ. If both were equally good, each of these would be a coin's toss: <code>scipy.stats.binomtest</code>.</details>
#
# **05.4 Hunt.** This function gives the ids of A, B, C and D as they follow `before`, with or without a space in between (`gap`). It looks right. On one of our two prompts it compares the wrong tokens. Find out on which, and mend it.


# %%
def letter_ids(tokenizer, before, gap):
    return [tokenizer(letter, add_special_tokens=False).input_ids[-1] for letter in "ABCD"]


exercises.check("05.4", letter_ids)

# %% [markdown]
# <details><summary>Hint</summary>Print <code>tokenizer.convert_ids_to_tokens(...)</code> for "A", for "Answer: A" and for "答案：A".</details>
#
# **05.5 Try.** Does the order of the examples matter? `multiple_choice(..., shuffle=1)` draws them anew for every question, and another number is another draw. Return the result of one benchmark on this model, base or tuned, for draw `number`. No answer is given. The check makes
# five draws and tells their spread, beside what luck in drawing *questions* would do.


# %%
def draw(number):
    return ...


exercises.check("05.5", draw)

# %% [markdown]
# ## Paper, records and you

# %%
from aurora_lib.course import results

values = {}
for (task, how, which), result in scores.items():
    asked = "5-shot letters" if how == "letter" else "5-shot cloze"
    values[f"{names[task]}, {asked}, {which} [share]"] = round(result.overall.accuracy, 4)
    values[f"{names[task]}, questions"] = scores[task, "letter", which].overall.n
for form, text in (("plain", "plain text"), ("chat, other mark", "another mark")):
    values[f"CMMLU, letters, {text}, base [share]"] = round(formed[form, "cmmlu"].overall.accuracy, 4)
for which, (_, of) in found.items():
    for side in ("Chinese", "English"):
        share = of[f"{side} prompts:\nright, in {side}"].accuracy
        values[f"{side} prompts right in {side}, {which} [share]"] = round(share, 3)
values["letters, speed [GFLOP/s]"] = round(scores["cmmlu", "letter", "tuned"].speed, 1)
results.record("05", values)
results.compare("05")

# %% [markdown]
# **In short.** A multiple-choice score is four logits and an argmax. Without n, interval and chance line it says little. It belongs to a model *and* a form. Letters
# may show what was drilled rather than what is known. To compare two models, ask both the same questions in the same form, and count those on which they differ. What was gained in one language may have been lost in another: measure both.
#
# **Next:** [06 Chat](06_chat.ipynb). **Read:** C-Eval (2305.08322), CMMLU (2306.09212), MMLU (2009.03300).
