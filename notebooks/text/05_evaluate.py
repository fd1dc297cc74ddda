# %% [markdown]
# # 05 · Evaluate: C-Eval, MMLU and CMMLU, with honest error bars
#
# Paper: sections 4.2 and 4.3, Table 3. **After this notebook you can** score 5-shot multiple choice as the field does, put
# an interval and the chance line on it, compare two models question by question, and say what such a score does not show.
#
# At `tiny` the questions are our own, in the released CSV layouts and under released subject names; no fact is asked in two benchmarks.
# `AURORA_BENCHMARKS=/a/folder` reads the released files.

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
# The prompt names the subject, shows solved examples (*few-shot*, 少样本) and ends where the answer letter comes next. First
# look at the text the model reads, with one example instead of five.

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
examples, _ = benchmarks.load_questions("ceval", subject, "dev", root)
questions, _ = benchmarks.load_questions("ceval", subject, "val", root)
print(fewshot.letter_prompt(questions[0], examples[:1], subjects[subject]["name"], "zh"))

# %% [markdown]
# Nothing is generated. Only the logits (raw scores) of A, B, C and D as the next token are compared, here the tuned model's.

# %%
import matplotlib.pyplot as plt
import torch

prompt = fewshot.letter_prompt(questions[0], examples, subjects[subject]["name"], "zh")
ids = torch.tensor([batching.encode(tokenizer, prompt)], device=model.device)
letters = [letter[0] for letter in fewshot.letter_ids(tokenizer, "zh")]
with torch.no_grad():
    probabilities = model(ids).logits[0, -1, letters].float().softmax(-1).tolist()

figure, axes = plt.subplots(figsize=(4, 2.2))
axes.bar(
    list("ABCD"), probabilities, color=["C2" if letter == questions[0].answer else "C0" for letter in "ABCD"]
)
axes.axhline(0.25, color="grey", linestyle="--", label="chance")
axes.legend()
axes.set(title="Tuned model, one question: the right letter is green", ylabel="share among A-D");

# %% [markdown]
# Right or wrong, one question shows nothing yet. (The prompt's wording is C-Eval's own template.)
#
# ## Many questions: read the examples once
#
# All questions of a subject begin with the same five examples. `multiple_choice` reads that prefix once, keeps its keys and values (the *KV cache*),
# and lets every question continue from there. (The paper's stack shuffles the five examples anew for every question; we keep the file's order, so that the
# prefix can be shared.) How many tokens does that save here?

# %%
name = subjects[subject]["name"]
prompts = [fewshot.letter_prompt(question, examples, name, "zh") for question in questions]
lengths = [len(batching.encode(tokenizer, text)) for text in prompts]
beginning = prompts[0].rpartition("\n\n")[0]
prefix = len(batching.encode(tokenizer, beginning))
read = prefix + sum(length - prefix for length in lengths)
print(f"{len(questions)} questions of about {lengths[0]} tokens, {prefix} of them the same:")
print(f"{sum(lengths):,} tokens in all, or {read:,} with the prefix read once")

# %% [markdown]
# ## All questions, base and tuned
#
# One copy of the weights serves both: switched off, the adapter leaves the base. Every score comes with its n and its 95 % interval
# (Wilson's formula): where the true share plausibly lies, given so few questions. Rows that had to be skipped would be counted, too. (C-Eval's test
# answers are not public; as the paper's stack did, we use its *val* split.) Scores are kept in
# `cache` as they are made: interrupted, the same cell goes on where it was.

# %%
scores, settings = {}, dict(root=root, cache=scale.runs / "scores")
for task in benchmarks.TASKS:
    with model.disable_adapter():
        scores[task, "letter", "base"] = evaluation.multiple_choice(model, tokenizer, task, **settings)
    scores[task, "letter", "tuned"] = evaluation.multiple_choice(model, tokenizer, task, **settings)
    for which in ("base", "tuned"):
        print(f"{which:6}", scores[task, "letter", which])

# %% [markdown]
# By category, for the tuned model. The paper's numbers are *micro* averages: every question counts alike. The *macro* average is the mean of the subjects'
# scores, so that a small subject weighs as much as a large one.

# %%
scores["cmmlu", "letter", "tuned"].table().round(1)

# %%
by_category = {which: scores["cmmlu", "letter", which].by_category for which in ("base", "tuned")}
evaluation.plot(by_category, title="CMMLU by category, 5-shot letters");

# %% [markdown]
# The dashed line is chance: one in four. All categories lie above it, but far apart: STEM near the top, Humanities about half. Is knowledge missing there? Or was
# only the *format* not understood?
#
# Ask another way. *Cloze* scoring shows no letters. It takes the one of the four answers that the model finds likeliest (the sum of its tokens'
# log-probabilities) as the answer to the question.

# %%
cloze = settings | dict(scoring="cloze")
for task in benchmarks.TASKS:
    with model.disable_adapter():
        scores[task, "cloze", "base"] = evaluation.multiple_choice(model, tokenizer, task, **cloze)
    scores[task, "cloze", "tuned"] = evaluation.multiple_choice(model, tokenizer, task, **cloze)
    for which in ("base", "tuned"):
        print(f"{which:6}", scores[task, "cloze", which])

# %%
evaluation.plot(
    {
        which: {
            f"{task}\n{how}": scores[task, how, which].overall
            for task in benchmarks.TASKS
            for how in ("letter", "cloze")
        }
        for which in ("base", "tuned")
    },
    title="5-shot, base and tuned",
);

# %% [markdown]
# The model knows nearly all of these facts: it was pre-trained on them, on purpose. So knowledge is not what the letters miss.
#
# What is it, then? In pre-training the model also took exams: it was asked by letter about *some* of the facts, in other words than here.
# `drilled.json` lists those questions. **Before you run the cell:** what do you expect for letters on the facts that were never drilled?

# %%
import json

import pandas as pd

file = benchmarks.folder("cmmlu", root).parent / "drilled.json"  # the released benchmarks have none
listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
asked = [
    dict(task=task, how=how, drilled=row["index"] in listed[task][row["subject"]], right=row["correct"])
    | dict(category=benchmarks.load_subjects(task, root)[row["subject"]]["category"])
    for (task, how, which), result in scores.items()
    if which == "base" and task in listed
    for row in result.predictions
]
if listed:
    asked, of = pd.DataFrame(asked), evaluation.scores.Score.of
    groups = {
        name: {f"{task}\n{how}": of(each.right) for (task, how), each in rows.groupby(["task", "how"])}
        for name, ever in (("drilled by letter", True), ("never drilled", False))
        for rows in [asked[asked.drilled == ever]]
    }
    evaluation.plot(groups, title="The base model: was the fact ever asked by letter?")

# %%
if listed:
    print(asked[asked.how == "letter"].groupby("category")[["drilled", "right"]].mean().round(2))

# %% [markdown]
# It is the drill. On facts that were drilled the letters come out right, in wordings never seen before. On the others they are no better than guessing (here even
# worse: the model does not guess, it prefers wrong letters), though cloze shows that it knows most of the answers. And the categories follow their shares of drilled
# facts, as the small table of all three benchmarks shows. **Here the letters show which facts were drilled, not which are known.** For a released benchmark nobody outside can make
# this plot, unless the training data are public.
#
# Two intervals that overlap do not show that two models are equal. Both answered the *same* questions: only those that one got right and the
# other wrong can tell them apart (*McNemar's test*, 麦克尼马尔检验).

# %%
compared = {
    task: evaluation.scores.paired(scores[task, "letter", "base"], scores[task, "letter", "tuned"])
    for task in benchmarks.TASKS
}
pd.DataFrame(
    {
        task: {
            "right only before": pair.only_a,
            "right only after": pair.only_b,
            "difference": f"{pair.difference:+.3f} [{pair.interval[0]:+.3f}, {pair.interval[1]:+.3f}]",
            "p, exact McNemar": round(pair.p, 3),
        }
        for task, pair in compared.items()
    }
)

# %% [markdown]
# *p* is the probability of a split at least this uneven between two equally good models. A large p, and an interval that holds 0, are no evidence of a
# difference; they are not evidence that there is none.
#
# ## What was gained, what was lost
#
# Free answers to held-out facts, judged by language and by content; sums and instructions in both languages, judged by rules (`aurora_lib/evaluation/abilities.py`).
# English made up only a small part of the tuning data, and users of the original reported lost step-by-step reasoning (its repository, issue 9): both belong in
# the table.

# %%
found = {}
for which in ("base", "tuned"):
    with model.disable_adapter() if which == "base" else torch.no_grad():
        probed = evaluation.probe(model, tokenizer, max_new_tokens=scale.max_new_tokens)
        found[which] = probed, evaluation.skills(model, tokenizer)
before, after = found["base"][0], found["tuned"][0]
pd.DataFrame({which: probed.scores | skills.scores for which, (probed, skills) in found.items()}).map(str)

# %% [markdown]
# Which of these differences are more than luck? The same questions were asked twice, so compare them in pairs:

# %%
for asked, what in (("zh", "understood"), ("en", "understood"), ("en", "correct")):
    pair = evaluation.scores.paired(before.hits(asked, what), after.hits(asked, what))
    print(f"asked in {asked}, {what:10}: {pair}")
followed = [row for row in found["tuned"][1].rows if row["skill"] == "instructions" and row["correct"]]
for row in followed[:1]:
    print(f"\n'followed' by the tuned model: {row['question']} -> {row['answer']}")

# %% [markdown]
# The first line counts a right answer in either language. So the change of language does not show in it, only facts gained and lost. The two English lines show the
# cost of tuning: hardly a fact gained, some lost. A small p says that this is more than luck. The instruction rows need care:
# such a rule can be met by accident, as any sentence without the forbidden letter shows. A model of this size never learned sums or instructions, so there is
# nothing to lose here; these rows are for the full model.
#
# An answer may also *mix* languages, which the paper's own example answers do (Appendix):

# %%
for asked in ("zh", "en"):
    for which, (probed, _) in found.items():
        counts = {name: score.correct for name, score in probed.languages(asked).items()}
        print(f"asked in {asked}, {which:5}:", counts)

# %% [markdown]
# The paper's repository also scores checkpoints by how near their answers come to reference answers: BLEU-4 and ROUGE, on Chinese characters and words.
# *Perplexity* asks how well the model foresees the reference itself: 1 would be perfect foresight.

# %%
from aurora_lib.course import paper
from aurora_lib.evaluation import metrics

held_out = [probe for probe in evaluation.load_probes() if probe["held_out"]]
questions_zh, answers_zh = ([probe["zh"][side] for probe in held_out] for side in ("question", "answer"))
talks = [
    [{"role": "user", "content": asked}, {"role": "assistant", "content": right}]
    for asked, right in zip(questions_zh, answers_zh, strict=True)
]
near = {}
for which in ("base", "tuned"):
    with model.disable_adapter() if which == "base" else torch.no_grad():
        said = evaluation.probes.answers(model, tokenizer, questions_zh, max_new_tokens=scale.max_new_tokens)
        near[which] = metrics.overlap(said, answers_zh)
        near[which]["perplexity"] = metrics.perplexity(model, tokenizer, talks)
checkpoint, published = max(paper.GENERATION_SCORES.items(), key=lambda item: item[1][0])
names = ("BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L")
best = f"paper's repository: checkpoint {checkpoint}, best of 5 by BLEU-4"
near[best] = dict(zip(names, published, strict=True))
pd.DataFrame(near).round(2)

# %% [markdown]
# High figures on short stock sentences are no victory over the paper's: other data, other answers. But see the base's perplexity: it foresees Chinese answers
# that it never gives. They were there, and needed eliciting.
#
# ## The paper's Table 3
#
# Per cent, 5-shot. The paper collected its baselines from elsewhere, and gives no score for the *untuned* Mixtral: its table cannot show
# what tuning changed. That is why this run's base and tuned rows are both here. (At `tiny` they may stand above GPT-4. They answer our
# own easy questions: do not compare them with the rest.)

# %%
table = pd.DataFrame.from_dict(paper.TABLE_3, orient="index", columns=["C-Eval", "MMLU", "CMMLU"])
for which in ("base", "tuned"):
    ours = {name: scores[name.lower().replace("-", ""), "letter", which] for name in table.columns}
    n = "/".join(str(result.overall.n) for result in ours.values())
    label = f">>> this run ({scale.name}, {which}; n {n})"
    table.loc[label] = [100 * result.overall.accuracy for result in ours.values()]
table.round(2)

# %% [markdown]
# ## What such a score can say, and what not
#
# - **Chance.** Four choices give a quarter by guessing; on a few hundred questions luck alone moves a score by several points. Read the interval.
# - **Format.** Letters and cloze disagree above, on the same model and the same facts: a score belongs to the pair of model *and* format.
# - **Order.** Other examples, or the same in another order, can change predictions. How many, the cell below counts.
# - **Contamination.** A question seen in training measures memory. Notebook 02 counts overlaps for our rows; for a base model whose data is not public nobody
#   outside can.
# - **Language.** A multiple-choice score in Chinese says nothing about whether the model *answers* in Chinese.

# %%
def predictions(turned):
    found = []
    for subject, entry in subjects.items():
        examples, _ = benchmarks.load_questions("ceval", subject, "dev", root)
        examples = examples[::-1] if turned else examples
        for question in benchmarks.load_questions("ceval", subject, "val", root)[0][:4]:
            text = fewshot.letter_prompt(question, examples, entry["name"], "zh")
            ids = torch.tensor([batching.encode(tokenizer, text)], device=model.device)
            with torch.no_grad():
                logits = model(ids).logits[0, -1, letters]
            found.append(("ABCD"[logits.argmax()], question.answer))
    return found


one, other = predictions(turned=False), predictions(turned=True)
right = [sum(letter == answer for letter, answer in found) for found in (one, other)]
print(f"of {len(one)} C-Eval questions {right[0]} right with the examples as in the file,", end=" ")
print(f"{right[1]} with them turned around;", end=" ")
print(f"{sum(a != b for a, b in zip(one, other, strict=True))} predictions differ")

# %% [markdown]
# ## Check it with an independent program
#
# `lm-evaluation-harness` can score the same prompts, token for token: [this page](lm_evaluation_harness.md) shows how, on this model and adapter.
# `tools/bench/evaluation.py` compares every prediction, the seconds and the memory on the tiny base
# (16 bits, no adapter) and on a random Mixtral.

# %% [markdown]
# ## Exercises
#
# **05.1** The 95 % Wilson interval of `correct` out of `n`: `(low, high)`.

# %%
from aurora_lib import exercises


def interval(correct, n):
    return ...


exercises.check("05.1", interval)

# %% [markdown]
# <details><summary>Hint</summary>With p = correct/n and z = 1.96: centre (p + z²/(2n)) / (1 + z²/n), half width
# z / (1 + z²/n) · √(p(1-p)/n + z²/(4n²)).</details>
#
# **05.2** Return the answer, "A" to "D", from the logits `[vocabulary]`, given the token ids of A, B, C, D.

# %%
def pick(logits, letter_ids):
    return ...


exercises.check("05.2", pick)

# %% [markdown]
# <details><summary>Hint</summary>Index first, then <code>argmax</code>.</details>
#
# **05.3** The *micro average* of `{subject: (correct, n)}`: every question counts alike, as in the paper's repository.

# %%
def average(subjects):
    return ...


exercises.check("05.3", average)

# %% [markdown]
# <details><summary>Hint</summary>Add up first, divide once.</details>
#
# ## Paper, records and you

# %%
from aurora_lib.course import results

values = {}
for (task, how, which), result in scores.items():
    name = {"ceval": "C-Eval", "mmlu": "MMLU", "cmmlu": "CMMLU"}[task]
    asked = "5-shot letters" if how == "letter" else "5-shot cloze"
    values[f"{name}, {asked}, {which} [share]"] = round(result.overall.accuracy, 4)
    values[f"{name}, questions"] = result.overall.n
for which, probed in (("base", before), ("tuned", after)):
    values[f"Chinese prompts right in Chinese, {which} [share]"] = round(
        probed.score("zh", "correct").accuracy, 3
    )
    values[f"English prompts right in English, {which} [share]"] = round(
        probed.score("en", "correct").accuracy, 3
    )
results.record("05", values)
results.compare("05")

# %% [markdown]
# **In short.** A multiple-choice score is four logits and an argmax. Without n, interval and chance line it says little. Letters
# may show what was drilled rather than what is known. What was gained in one language may have been lost in another: measure both. The order
# of the examples, and whether the questions were in the training data, move such scores too.
#
# **Next:** [06 Chat](06_chat.ipynb). **Read:** C-Eval (2305.08322), CMMLU (2306.09212), MMLU (2009.03300).
