# %% [markdown]
# # 05 · Evaluate: C-Eval, MMLU and CMMLU, with honest error bars
#
# Paper: sections 4.2 and 4.3, Table 3. **After this notebook you can** score 5-shot multiple choice as the paper's authors did, put
# an interval and the chance line on it, compare two models question by question, and say what such a score does not show.
#
# ![The line with the subject and five solved examples are read once, and their keys and values are kept. From there each of many questions goes on to four bars, the probabilities of A, B, C and D as the next token; the tallest is the prediction, and the score is the share of right letters.](images/fewshot.svg)
#
# At `tiny` the questions are our own, in the released CSV layouts and under released subject names; no fact is asked in two benchmarks. At `full` they are the released ones. There every multiple-choice run first prints
# what it will take; all of these together take at least 12 minutes (predicted from the weights to be read and the numbers to be multiplied, not measured). The free answers come on top, 4 minutes if all are long, and so does the cleaning of the data if notebook 02 has not run. In all it should be less than an hour. At `mid` five questions of each subject are asked. `AURORA_BENCHMARKS=/a/folder` reads released files. **What the text says of results, it says of `tiny`.**

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
# A few-shot (少样本) prompt shows solved examples and ends where the answer letter comes next. First look at the text that the model reads, with one example instead of five. The paper does not print its prompt. Its repository publishes the command: LLaMA-Factory's evaluator, as it was in December 2023, with the
# template of Mistral and English words around the question, for Chinese questions too. So this is what the model read: every example is a *chat* turn of its own, and the subject stands in front of the first question only.

# %%
from aurora_lib import evaluation
from aurora_lib.evaluation import benchmarks, fewshot
from aurora_lib.model import batching, find_adapter, load_adapter, load_model, load_tokenizer

root = scale.benchmarks or "hub"
adapter = find_adapter(scale)  # before minutes of loading
base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
model = load_adapter(base, adapter)

subjects = benchmarks.load_subjects("ceval", root)
subject = next(iter(subjects))
name = subjects[subject]["name"]
examples, _ = benchmarks.load_questions("ceval", subject, "dev", root)
questions, _ = benchmarks.load_questions("ceval", subject, "val", root)
chat = fewshot.Form(prompt="chat", language="en")
print(fewshot.letter_prompt(tokenizer, questions[0], examples[:1], name, chat))

# %% [markdown]
# (The examples end in `Answer: ` with a space, the question does not, and every example has its own `<s>`. So their tool made it with Mixtral. At `mid` OLMoE's own chat format stands around the same words.)
#
# Nothing is generated. The model reads this text once. Then four numbers are compared: the logits (raw scores) of A, B, C and D as the next token. The highest is the prediction. Below they are shown as probabilities among *all* tokens,
# for the untuned model, with five examples.

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
print("token ids of the letters:", letters, batching.pieces(tokenizer, letters))
print(f"the four together: {sum(probabilities):.3f} of all probability")

# %% [markdown]
# A wins, and A is right; but B and C are close. The score counts right or wrong, and not how sure the model was.
#
# Look at the two lines that are printed: nearly all probability is on four pieces of text, in Mixtral's format `▁A` to `▁D`. The mark in front is a space: in this prompt a letter follows a space. (OLMoE's prompt ends in a line break, so there it is `A`.) `A` without it is *another* token. Whoever compares the wrong four gets noise; exercise 05.4 is about this bug.
#
# Now all questions of the subject, in the plainest way: one prompt, one pass, one letter. Beside it the library's `multiple_choice`. It must choose the same letters.

# %%
by_hand = ["ABCD"[next_token(question, chat)[letters].argmax()] for question in questions]
with model.disable_adapter():
    library = evaluation.multiple_choice(model, tokenizer, "ceval", root=root, subjects=[subject])
same = sum(a == row["prediction"] for a, row in zip(by_hand, library.predictions, strict=True))
assert same == len(questions) or scale.device == "cuda"  # in 16 bits a near tie may fall otherwise
print(f"the same letter for {same} of {len(questions)} questions")
print(library)

# %% [markdown]
# The same letters, with far fewer tokens to read. All questions of a subject begin with the same five examples. The library reads this beginning once, keeps its keys and values (the *KV cache*), and lets every question go on from there. How many tokens does that save? (The authors' tool put the
# five examples into another order for each question. `shuffle=1` does that too, and then there is little to share. Exercise 05.5 asks how much it matters.)

# %%
prompts = [fewshot.letter_prompt(tokenizer, question, examples[:5], name, chat) for question in questions]
rows = [batching.encode(tokenizer, prompt) for prompt in prompts]
shared = batching.shared_length(rows)
once = shared + sum(len(row) - shared for row in rows)
print(f"{len(rows)} prompts of about {len(rows[0])} tokens; the first {shared} are the same for all.")
print(f"To read: {sum(map(len, rows)):,} tokens, or {once:,} with the shared beginning read once;", end=" ")
print("the line above counts some padding too.")

# %% [markdown]
# ## Letters against answers
#
# Every score below comes with its *n* and its 95 % interval (Wilson's formula): where the true share plausibly lies, given so few questions. C-Eval is scored on its *val* split, since the answers to *test* were secret until July 2025; with a newer release,
# `split="test"` scores that. Scores are kept in `cache` as they are made: after an interruption run the same cell again, and it goes on. (After a restart run the cells above it too. Free answers and perplexities are not kept. On a rented machine, set `AURORA_RUNS` to a disk that outlives it.) First the untuned model.
#
# Ask also in another way. In *cloze* scoring (完形填空式打分) the model sees no letters and no options, only five questions with their answers, as a chat, and then the question. Each of the four answers gets the sum of the log-probabilities of its tokens. The highest wins. **Before you run
# the cell:** will the two ways agree? They ask for the same facts.

# %%
scores, settings = {}, dict(root=root, cache=scale.runs / "scores", limit=scale.questions)
file = benchmarks.folder("cmmlu", root).parent / "drilled.json"  # only our own questions have it
# of released files, ways of asking are compared on at most 20 questions of each subject; limit=None asks all.
# Scores are then weighted to the whole benchmark, paired differences are not
few = settings | dict(limit=None if file.is_file() else scale.questions or 20)
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
    for how in ("cloze", "letter")
}
evaluation.plot(ways, title="Untuned: the same facts, asked in two ways");

# %% [markdown]
# By cloze the tiny model finds nearly all answers. By letter it misses more than a quarter. So it is not knowledge that the letters miss. What is it? (For released questions the two can differ the other way: many cannot be answered without seeing the options.)
#
# In pre-training the tiny model was *drilled*: it was asked by letter about some of its facts, in a wording other than here. `drilled.json` lists the questions here whose facts were drilled. (Such a list exists only for our own questions.) **Before you run the cell:** what do you expect for letters
# on facts that were never drilled?

# %%
import json

import pandas as pd

listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
if listed:
    answered = pd.DataFrame(
        dict(
            way=way,
            drilled=row["index"] in listed[task][row["subject"]],
            right=row["correct"],
            category=result.subjects[row["subject"]]["category"],
        )
        for (task, way, _), result in scores.items()
        for row in result.predictions
    )
    sides = {}
    for (drilled, way), each in answered.groupby(["drilled", "way"]):
        score = evaluation.scores.Score.of(each.right)
        sides.setdefault("drilled by letter" if drilled else "never drilled", {})[way] = score
        print(f"{'drilled' if drilled else 'never drilled':13} {way:6} {score}")
    evaluation.plot(sides, title="Untuned, all three benchmarks")
else:
    print("For the released benchmarks nobody outside can draw this.")

# %%
if listed:
    by_category = answered[answered.way == "letter"].groupby("category")[["drilled", "right"]]
    print(by_category.mean().join(by_category.size().rename("n")).round(2))

# %% [markdown]
# At `tiny` it is the drill. On drilled facts the letters come out right, in wordings never seen before. On the others the whole interval lies *below* the quarter that guessing gives: this model does not guess. A likely reason: in the drill it learned which *answers* are right ones, and the answers to these questions were there almost always among the wrong options, so it avoids them.
# Yet by cloze it finds nearly all of them. The small table says the same by category: the share right follows the share drilled.
#
# We built the tiny model so, to make this visible: the share drilled was set for each category, and learning letters needed extra help in training (`data/tiny/README.md`). So it shows what drill *can* do to a letter score: **here the score shows what was drilled, not what is known.** How far this holds for Mixtral it cannot say.
#
# ## The form of the question
#
# Is a score at least a property of the model? Ask the same questions with the same options, and change only the form:
#
# - *plain*: text instead of chat turns; for the Chinese benchmarks the words around the question become Chinese too;
# - *other mark*: the options marked as many Chinese exams mark them, `A、` instead of `A. `.
#
# **Before you run the cell:** by how many points will each change move the score, and which way?

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
# Chat or plain: a few questions change sides, in both directions. With so few questions that shows no difference. The other mark takes everything from the tiny model: it is down to guessing. It knows no less than before. To the tiny model a line break with `A.` is *one* token, the only mark that it ever met. `A、` becomes five other
# tokens, three of them bytes, since its vocabulary has no `、`. Mixtral's tokenizer has one, so do not expect the same there. But large models are sensitive too: up to 76 points between formats of the same task were measured with LLaMA-2-13B (Sclar et al., arXiv 2310.11324). For OLMoE this cell measures it at `mid`, for Mixtral at `full`.
#
# So **a score belongs to a model and a form.** Write the form beside the score. Ask two models in one form.
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
# By category, drawn. (The authors' tool counts every question alike, whatever its subject: a *micro* average. So does this page.)

# %%
both = {which: scores["cmmlu", "letter", which] for which in ("base", "tuned")}
evaluation.plot({which: result.by_category for which, result in both.items()}, title="CMMLU by category")
pd.DataFrame({which: result.by_category for which, result in both.items()}).map(str)

# %% [markdown]
# The categories differ far more from each other than the two models do. At `tiny` the share drilled is the reason.
#
# ## What was gained, what was lost
#
# Tuning was to change the *language* of answers. No letter can show that. So ask freely, and judge every answer by language and by content. At `tiny` the facts asked for stand in pre-training and in no row of the tuning. (At `full` the released rows may mention them.) Sums are asked too: a user of the original reported weaker
# step-by-step reasoning, and its author agreed (its repository, issue 9). **Before you run the cell:** which of these shares will fall?

# %%
from contextlib import nullcontext

found = {}
for which in ("base", "tuned"):
    with model.disable_adapter() if which == "base" else nullcontext():
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
both_none = [label for label in before if before[label].correct == after[label].correct == 0]
never = [label for label in both_none if "mixed" not in label]
print("none right, before and after:", "; ".join(f"{' '.join(x.split())}, n={before[x].n}" for x in never))
shown = {
    which: {label: score for label, score in of.items() if label not in never}
    for which, (_, of) in found.items()
}
evaluation.plot(shown, chance=None, title="Asked freely: base and tuned")
pd.DataFrame(shown).rename(index=lambda label: label.replace("\n", " ")).map(str)

# %% [markdown]
# This is what the paper's title promises, in miniature: Chinese questions are answered in Chinese, and the mixed answers are gone. (Some of the example answers in the paper's appendix still mix.) What did it cost? Compare in pairs:

# %%
for asked_in, what in (("zh", "understood"), ("en", "correct")):
    pair = evaluation.scores.paired(*(found[which][0].hits(asked_in, what) for which in ("base", "tuned")))
    print(f"asked in {asked_in}, {what:10}: {pair}")

# %% [markdown]
# The first line counts a right answer in *either* language: only facts gained and lost show in it. Its interval holds 0, so no loss is shown. The second line is English. A few answers were lost and none gained. That is weak evidence of a small loss: p speaks of luck in drawing questions, for one training run.
# (The record of notebook 04 has three seeds, and English falls in all of them.) A tiny model never learned sums, so it has none to lose. At `full` look at them first.
#
# ## How well does it foresee the answer?
#
# *Perplexity* (困惑度) asks how well a model predicts the tokens of a text, one after the other. At 1 it is sure of each; at 2 it wavers as between two equally likely ones. A low value alone proves little: any Chinese sentence is partly predictable, the more so after its question. So here is a control. The same
# questions are followed by the *right* Chinese answer, by the same sentence with *another word* of the same kind (another capital, another author), and by the right answer in English. **Before you run the cell:** which of the three will tuning change? Below them stand the conversations that notebook 04 held out for validation.

# %%
from aurora_lib.data import clean_conversations, hold_out

facts = evaluation.load_probes(held_out=True)
words = {}  # relation -> answers of this kind
for fact in evaluation.load_probes():
    words.setdefault(fact["relation"], []).append(fact["zh"]["key"])
texts = {"right": [], "another word": [], "right, in English": []}
for number, fact in enumerate(facts):
    right, key = fact["zh"]["answer"], fact["zh"]["key"]
    others = sorted(set(words[fact["relation"]]) - {key})
    said = [right, right.replace(key, others[number % len(others)]), fact["en"]["answer"]]
    for kind, text in zip(texts, said, strict=True):
        turns = [dict(role="user", content=fact["zh"]["question"]), dict(role="assistant", content=text)]
        texts[kind].append(turns)
training, validation = hold_out(clean_conversations(scale))
learned = {turn["content"] for row in training for turn in row["messages"] if turn["role"] == "assistant"}
for row in validation:
    texts.setdefault(f"validation: {row['source']}", []).append(row["messages"])
own = (row["messages"] for row in validation if not learned & {turn["content"] for turn in row["messages"]})
texts["validation: no answer in training rows"] = list(own)

# %%
foreseen = {"n": {kind: len(talks) for kind, talks in texts.items()}}
for which in ("base", "tuned"):
    with model.disable_adapter() if which == "base" else nullcontext():
        foreseen[which] = {k: evaluation.perplexity(model, tokenizer, talks) for k, talks in texts.items()}
with model.disable_adapter():
    one_by_one = [
        evaluation.perplexity(model, tokenizer, [a]) < evaluation.perplexity(model, tokenizer, [b])
        for a, b in zip(texts["right"], texts["another word"], strict=True)
    ]
print("base: right likelier than another word:", evaluation.scores.Score.of(one_by_one))
pd.DataFrame(foreseen).round(2)

# %% [markdown]
# First the column *base*. The right Chinese answer is less predictable than the English one, which the model would give. (That comparison is rough: tokens of two languages are not the same unit.) Within Chinese it is sound: with another word the same sentence is far less predictable, and the line above the table says so question by question.
# So the untuned model *has* the Chinese answers, and does not say them.
#
# Then *tuned*. Right or wrong, the Chinese sentences became more predictable, by about the same factor. The English answers became less so. Tuning changed the language; this table shows no new knowledge. The validation rows need care: nearly half of
# their answers stand word for word in training rows. But where no answer does, the last row, it fell too. (For an adapter that was trained on all rows, as the authors' was, none of these is held out.)
#
# ## The paper's Table 3, with the missing row
#
# Per cent, 5-shot. The paper took its baselines from elsewhere, and gives no score for the *untuned* Mixtral. So its table cannot show what the tuning changed. Another project published such scores. They are set in here, with their source, below a few of the paper's rows. At `tiny` the last two rows answer other, easier questions, and at `mid` they are another model: compare the two with each other, and not with the rest.

# %%
from aurora_lib.course import paper

table = pd.DataFrame.from_dict(paper.TABLE_3, orient="index", columns=["C-Eval", "MMLU", "CMMLU"])
table["source"] = "paper, Table 3"
theirs = "README of ymcui/Chinese-Mixtral"
mmlu, cmmlu = paper.UNTUNED["MMLU"].value, paper.UNTUNED["CMMLU"].value
for split, column in (("val", "C-Eval"), ("test", "C-Eval, test")):
    row = [paper.UNTUNED[column].value, mmlu, cmmlu, f"{theirs}, C-Eval {split}"]
    table.loc[f"Mixtral-8x7B-Instruct, untuned ({split})"] = row
for which in ("base", "tuned"):
    overall = [scores[task, "letter", which].overall for task in ("ceval", "mmlu", "cmmlu")]
    n = "/".join(str(score.n) for score in overall)
    own = "our own easy questions" if listed else "here"
    row = [*(100 * score.accuracy for score in overall), f"{own}; n {n}"]
    table.loc[f"this run, {scale.name}, {which}"] = row
table.loc[["GPT-4", "LLaMA-2-70B-Chat", *table.index[-5:]]].round(2)

# %%
import math

sizes = {"C-Eval": 1346, "C-Eval, test": 12342, "MMLU": 14042, "CMMLU": 11582}
for column, n in sizes.items():
    a, b = paper.AURORA[column.partition(",")[0]].value / 100, paper.UNTUNED[column].value / 100
    most = 100 * 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / n)
    print(f"{column:12} Aurora - untuned: {100 * (a - b):+.1f} points; luck: at most ±{most:.1f} (n={n:,})")

# %% [markdown]
# *Luck* is what other questions would do to the difference, if each model had its own; asked of the same questions it is less, and how much less is not published.
#
# On MMLU and CMMLU the untuned Mixtral stands about two points *higher* than Aurora. That is more than luck. On C-Eval it depends on the split: higher on val, lower on test. Neither is shown to be more than luck. Which split the paper used it does not say. Two signs point to test: its published command says `--split test`, and 51.9 has one decimal, as on
# C-Eval's website, while the authors' tool prints two. A comment in their README says that all three scores are of checkpoint 3000, not of the end of training.
#
# But there are other possible causes. Another harness asked the untuned model. It asked MMLU in plain text. For C-Eval and CMMLU it used plain text or `[INST]` turns; which of them is not said. Nor is the precision. Forms differ by several points. **So this proves neither gain nor loss. But the table cannot be read as a gain either.** As far as
# two harnesses can be compared, these benchmarks show no gain. They cannot show whether tuning changed the *language* of the answers.
#
# Both models in *one* harness could settle it. The last two rows do this at `full`, for the adapter that is loaded: yours, or the authors' last one where notebook 04 has not run. `AURORA_ADAPTER=released`, set before Jupyter starts, takes theirs in any case: that is the cheapest reproduction, without any training. Checkpoint 3000 is a folder of
# their repository, to be downloaded and named as `AURORA_ADAPTER`. Nobody has run either yet.

# %% [markdown]
# ## What such a score can say, and what not
#
# - **Chance.** Four choices give a quarter by guessing; on a few hundred questions luck alone moves a score by several points. Read the interval.
# - **Form.** Another mark before the options took the tiny model's score away. Write the form beside the score.
# - **Drill.** Letters may show what was drilled rather than what is known. Cloze may help: it compares the answers themselves.
# - **Contamination.** A question seen in training measures memory. Some of our own questions stand in the tuning rows, word for word; notebook 02 looks for them. For a base model whose data is not public nobody
#   outside can.
# - **Language.** A multiple-choice score in Chinese says nothing about whether the model *answers* in Chinese.
#
# Check the scores with an independent program: [this page](lm_evaluation_harness.md) gives the same prompts, token for token, to `lm-evaluation-harness`, and says how OpenCompass asks. `tools/bench/evaluation.py` compares every
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
# **05.3 Build.** McNemar's exact test. `before` and `after` are lists of True and False, in the same order of questions. Return the two-sided p; it is 1 where the two never differ.


# %%
def mcnemar(before, after):
    return ...


exercises.check("05.3", mcnemar)

# %% [markdown]
# <details><summary>Hint</summary>Count only the questions on which the two differ. If both were equally good, each of these would be a coin's toss: <code>scipy.stats.binomtest</code>.</details>
#
# **05.4 Hunt.** This function gives the ids of A, B, C and D as they follow `before`; `gap` is what stands in between, a space or nothing. It looks right. After one of our prompts the tokens that it gives are the wrong ones. Repair it.


# %%
def letter_ids(tokenizer, before, gap):
    return [tokenizer(letter, add_special_tokens=False).input_ids[-1] for letter in "ABCD"]


exercises.check("05.4", letter_ids)

# %% [markdown]
# <details><summary>Hint</summary>Print <code>tokenizer.convert_ids_to_tokens(...)</code> for "A", for "Answer: A" and for "答案：A".</details>
#
# **05.5 Try.** Does the order of the examples matter? `multiple_choice(..., shuffle=1)` puts them into another order for every question, and another number gives other orders. Return the result of one benchmark on this model, base or tuned, for `shuffle=number`. (At `full` take C-Eval and `limit=5`: little is shared, so all of it takes long.) No answer is given. The check makes
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
    way = "5-shot letters" if how == "letter" else "5-shot cloze"
    values[f"{names[task]}, {way}, {which} [share]"] = round(result.overall.accuracy, 4)
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
# In this table look at the last column: does your run agree with the recorded one? (At `mid` and `full` it is empty.) (The paper's figures are of another model and other questions.)
#
# **In short.** A multiple-choice score is four logits and an argmax. Without n, interval and chance line it says little. It belongs to a model *and* a form. To compare two models, ask both the same questions in the same form, and count those on which they differ.
# Whether a model answers in Chinese, only its answers show.
#
# **Next:** [06 Chat](06_chat.ipynb). **Read:** C-Eval (2305.08322), CMMLU (2306.09212), MMLU (2009.03300).
