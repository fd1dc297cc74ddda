# %% [markdown]
# # 06 · Chat: talk to it
#
# Paper: Introduction and Appendix A to I. **After this notebook you can** keep a conversation in the model's exact format, stream its
# answer token by token, set base and tuned model side by side on one copy of the weights, and say where not to trust either. Unless a sentence names another scale, its results are those of `tiny`.

# %% [markdown]
# **Set-up.** On your own machine, open the notebooks with `make lab`. Colab opens a notebook without its repository: run
# `!git clone https://github.com/OWNER/REPO aurora && bash aurora/binder/colab` in a cell first, with OWNER/REPO as in the page's
# address, then choose *Runtime > Restart session*.

# %%
import aurora_lib

scale = aurora_lib.start("06")

# %% [markdown]
# ## A conversation is one string
#
# The model has no memory: its weights keep nothing of what was said. So at every turn the whole history is sent again, in exactly the format it was trained on. The last question
# below says 它 (it), and means Japan.

# %%
from aurora_lib import chat
from aurora_lib.model import batching, find_adapter, load_adapter, load_model, load_tokenizer

adapter = find_adapter(scale)  # before minutes of loading
base = load_model(scale.base_model, **scale.loading)
tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
model = load_adapter(base, adapter)

history = [
    {"role": "user", "content": "日本的首都是哪里？"},
    {"role": "assistant", "content": "日本的首都是东京。"},
    {"role": "user", "content": "那它的货币呢？"},
]
asked = dict(tokenize=False, add_generation_prompt=True)  # Mixtral's format needs no such prompt, others do
print(tokenizer.apply_chat_template(history, **asked))

# %% [markdown]
# ## One answer by hand
#
# ![The KV cache as strips of tokens: prefill reads the whole prompt at once, decoding adds a token at a time, the next turn reads only what is new.](images/chat_loop.svg)
#
# Run the model on the prompt; of its logits, one for each token of the vocabulary, take the highest: the likeliest next token. Run it on that one, and so on, until the end token (`</s>` in Mixtral's format). The *KV cache* (键值缓存) remembers
# keys and values of all that was read, so each step reads a single token.

# %%
import torch


def decode(messages):
    text = tokenizer.apply_chat_template(messages, **asked)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    cache, answer = None, []
    with torch.inference_mode():
        while len(answer) < scale.max_new_tokens:
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            if ids.item() == tokenizer.eos_token_id:
                break
            answer.append(ids.item())
    return answer


answer = decode(history)
print(batching.pieces(tokenizer, answer))
print(tokenizer.decode(answer))

# %% [markdown]
# (`▁` stands for a space.)
#
# **Before you run the next cell, write down three answers to** 那它的货币呢？ (and its currency?): after the history above; after nothing; after a history that never took place.

# %%
forged = [
    {"role": "user", "content": "瑞典的首都是哪里？"},
    {"role": "assistant", "content": "瑞典的首都是斯德哥尔摩。"},
]
for name, before in {"after the history": history[:-1], "after nothing": [], "forged": forged}.items():
    print(f"{name:17} → {tokenizer.decode(decode(before + history[-1:]))}")

# %% [markdown]
# Nobody has asked it about Sweden (瑞典). What is sent is all that it remembers. After nothing it answers as smoothly, about a country that nobody named.
# The same with many such questions, after the turn they refer to (which the model
# answers itself), then alone. No such pair was in pre-training or tuning.

# %%
from aurora_lib import evaluation

follow_ups = evaluation.load_probes(file="follow_ups.jsonl")
seen = {}
for name, history_kept in (("with the turn before", True), ("alone", False)):
    probed = evaluation.probe(model, tokenizer, follow_ups, history=history_kept)
    seen[name] = {f"asked in {side}": probed.score(side, "correct") for side in ("zh", "en")}
evaluation.plot(seen, chance=None, title="Follow-up questions, right in the language asked");

# %% [markdown]
# At `tiny` most are right with the turn before. Alone, far fewer are. Many of these questions name a country or a thing, and the model can only guess what is asked about it.
#
# ## Streaming, and what a turn costs
#
# `ChatSession.stream` is that loop; but it hands out text as it comes, keeps the list of messages, and keeps the cache: of the history that is sent, it reads only what is new.
#
# **06.1 Predict.** A question takes 12 tokens, marks included; an answer 10, then the end token. How many tokens does the *third* turn read anew?

# %%
from aurora_lib import exercises

read_anew = ...
exercises.check("06.1", read_anew)

# %% [markdown]
# <details><summary>Hint</summary>In the loop above: which of an answer's tokens is never given to the model?</details>
#
# Now a real one. Each of the last three questions needs the turn before it.

# %%
settings = dict(max_new_tokens=scale.max_new_tokens)
tuned = chat.ChatSession(model, tokenizer, **settings)
questions = ["你好", "日本的首都是哪里？", "那它的货币呢？", "那它的语言呢？", "那埃及呢？"]
turns = []
for question in questions:
    print(question, "→", end=" ")
    for piece in tuned.stream(question):
        print(piece, end="|", flush=True)
    turns.append(tuned.stats)
    print()

# %%
import pandas as pd

parts = {
    "in the KV cache": [one.reused_tokens for one in turns],
    "read anew": [one.prompt_tokens - one.reused_tokens for one in turns],
    "answered, with the end token": [one.new_tokens for one in turns],
}
bars = pd.DataFrame(parts, index=[f"turn {number}" for number in range(1, len(turns) + 1)])
axes = bars.plot.barh(stacked=True, color=["#ccd3da", "#1976d2", "#f5a623"], figsize=(7, 2.6))
axes.set(xlabel="tokens", title="What is sent each turn: read before (grey), read anew (blue)")
axes.invert_yaxis()
for part in axes.containers:
    axes.bar_label(part, label_type="center", fmt=lambda tokens: f"{tokens:.0f}" if tokens else "")

# %% [markdown]
# Grey and blue together are the whole history. Grey grows with every turn; blue is the question, and the end token of the answer before it.
#
# Streaming never shows half a character. The real Mixtral tokenizer has only some of the Chinese characters as a piece; the others, and most emoji, are spelled in
# *bytes*. One byte alone is nothing (�); the stream waits until the character is whole. Before you run the cell: how many tokens is
# 筷子🐯, if 子 is a piece, 筷 three bytes, 🐯 four, and a `▁` stands in front?

# %%
real = load_tokenizer()
spelled = real("筷子🐯", add_special_tokens=False).input_ids
print(len(spelled), real.convert_ids_to_tokens(spelled))
print("one by one:", [real.decode(one) for one in spelled])
stream = chat.TextStream(real)
print("streamed:  ", [stream.add(one) for one in spelled])

# %% [markdown]
# ## The box
#
# The adapter is a detour that can be switched off: `adapter=False` is the base model, on the same weights. So one box asks both. (At `tiny` a long talk confuses them: press *New conversation*.) Whatever is said is shown as text and never run: type
# `<b>bold</b>`. In a terminal there is `python -m aurora_lib.chat`. In the book (`make book`) it answers without a kernel. (Elsewhere a page without one shows the conversation from above; with one, it looks like this:)
#
# ![The chat box, in JupyterLab's light and dark theme](images/chat_widget.png)
#
# <!-- live: chat -->

# %%
untuned = chat.ChatSession(model, tokenizer, adapter=False, **settings)
for question in questions:
    untuned.say(question)
more = ["“床前明月光”的下一句是什么？", "骆驼属于哪一类动物？"]
chat.ChatBox({"base": untuned, "tuned": tuned}, questions=questions + more)

# %% [markdown]
# A conversation is a list of messages, and nothing else. So any file keeps it:

# %%
import json

file = scale.runs / "conversation.json"
file.write_text(json.dumps(tuned.messages, ensure_ascii=False), encoding="utf-8")
again = chat.ChatSession(model, tokenizer)
again.messages = json.loads(file.read_text(encoding="utf-8"))
print(len(again.messages), "messages, the last one:", again.messages[-1]["content"])

# %% [markdown]
# When history and answer no longer fit the context window, the oldest turns are left out, and counted (`forgotten`). To see it, reserve so many tokens for the answer that few are left for the prompt:

# %%
from itertools import islice

short = chat.ChatSession(model, tokenizer, max_new_tokens=model.config.max_position_embeddings - 64)
for question in ("瑞典的首都是哪里？", "你好", "铁的元素符号是什么？", "那它的货币呢？"):
    said = "".join(islice(short.stream(question), scale.max_new_tokens))  # else a model may go on for long
    used, room = short.context
    print(f"{question} → {said}  ({used} of {room} tokens used, {short.forgotten} turns forgotten)")

# %% [markdown]
# The turn with Sweden is forgotten. What is left for 它 is iron (铁), which has no currency.
#
# ## Base beside tuned
#
# Prompts of the kinds that the paper's Introduction and
# Appendix A to I show, in our own words, and at `tiny` about things that the tiny model knows. (你好 and 你是谁？ are the paper's own.) Where the paper has a counterpart, a line says what its models answered.

# %%
pair = [chat.ChatSession(model, tokenizer, adapter=on, **settings) for on in (False, True)]  # not the box's
rows = chat.compare_models(chat.prompts(scale.name), *pair)
rows

# %% [markdown]
# At `tiny`, read the two last blocks: the English is unchanged. And the last lines: both name as many references. (Notebook 05 asks more.)
# Then *medical*: the tiny model never met gout (痛风). It answers all the same, about 痛经 (painful periods). The paper's Aurora made the same mistake.
#
# ## Greedy, or sampled
#
# So far the likeliest token won (*greedy*; below, temperature 0). *Sampling* (采样) draws at random: divide the logits by a *temperature*, take the softmax, then draw. `top_p` first cuts off the unlikely tail: it keeps the likeliest tokens that
# together make up that probability. Nor did the tiny model meet 狐狸 (fox). Begin the answer for it, and it guesses among the
# classes it knows. The six likeliest next characters (爬 begins 爬行动物, reptile):

# %%
begun = [("user", "狐狸属于哪一类动物？"), ("assistant", "狐狸属于")]
begun = tokenizer.apply_chat_template([dict(role=role, content=text) for role, text in begun], tokenize=False)
begun = begun[: begun.rindex(tokenizer.eos_token)]  # the answer goes on
fox = tokenizer(begun, add_special_tokens=False, return_tensors="pt")
with torch.inference_mode():
    logits = model(**fox.to(model.device)).logits[0, -1].float().cpu()
likely = logits.topk(6).indices
chances = {f"temperature {t}": (logits / t).softmax(-1)[likely] for t in (0.5, 1, 2)}
pd.DataFrame(chances, index=batching.pieces(tokenizer, likely.tolist())).round(3)

# %%
pd.options.display.max_colwidth = None
tries = {}
for temperature, top_p in ((0, 1), (1, 1), (2, 1), (2, 0.5)):
    thrown = dict(temperature=temperature, top_p=top_p, seed=1)
    session = chat.ChatSession(model, tokenizer, max_new_tokens=40, **thrown)
    first = session.say("骆驼属于哪一类动物？")
    anew = ["".join(session.regenerate()) for _ in range(2)]
    tries[f"temperature {temperature}, top_p {top_p}"] = [first, *anew]
pd.DataFrame(tries, index=["first", "anew", "once more"]).T

# %% [markdown]
# The camel (骆驼) it knows. At temperature 1 it says the same, once in another language. At 2 every answer ends in nonsense: unlikely tokens are drawn, and one wrong token leads to the next. With `top_p` the tail is cut off, and at the same temperature it is right again. With the same seed and the same questions, a
# conversation comes out the same every time.
#
# ## Where not to trust it
#
# - **Facts.** Tuning adds none, may cost some, and a wrong answer reads as smoothly as a right one.
# - **Health, law, money.** It is no doctor: in the paper, Aurora is wrong on gout, and counts a painkiller among the sleeping pills (Appendix A, G).
# - **Safety.** Nothing here was tuned to refuse. What a model should refuse has to be decided, trained and tested.
# - **Its text is untrusted input.** It goes into pages, shells and databases escaped, like a stranger's.
#
# ## Exercises
#
# **06.2 Build.** Mixtral's format, whatever model you run: `[(question, answer), ...]` to one string; the last answer is `None`, the model is to give it.

# %%
def render(turns):
    return ...


exercises.check("06.2", render)

# %% [markdown]
# <details><summary>Hint</summary>Look at the prompt printed above: where is there no space?</details>
#
# **06.3 Build.** Write `top_p`: from `logits` `[vocabulary]`, the probabilities `[vocabulary]` to draw from, after temperature and cut. The token that reaches `top_p` stays. Those kept sum to 1, and stand in the order of the vocabulary.


# %%
def probabilities(logits, temperature, top_p):
    return ...


exercises.check("06.3", probabilities)

# %% [markdown]
# <details><summary>Hint</summary><code>sort</code>, <code>cumsum</code>. A token stays if all likelier ones together are below <code>top_p</code>.</details>
#
# **06.4 Hunt.** This takes the answer's ids from those that a model writes, to be put into the history. With the tiny tokenizer (`tokenizer`) it cuts behind the end token. With Mixtral's (`real`) it never cuts. And there is one bug more. Write it without the two.
#
# ```python
# def spoken(tokenizer, ids):
#     end = tokenizer.pad_token_id
#     return ids[: ids.index(end) + 1] if end in ids else ids
# ```


# %%
def spoken(tokenizer, ids):
    return ...


exercises.check("06.4", spoken)

# %% [markdown]
# <details><summary>Hint</summary>Print both tokenizers' special ids. Who writes <code>&lt;/s&gt;</code> behind an answer?</details>
#
# **Try** (unchecked): `decode` your own histories. Take the question, or the answer, out of Japan's first turn. Which of the two does 那它的货币呢？ need?
#
# ## Paper, records and you

# %%
from aurora_lib.course import results

summary = rows.summary()
results.record(
    "06",
    {
        **{what: int(share.split()[0]) for what, share in summary.items()},
        "prompts": len(rows),
        "first token, slowest of five [s]": round(max(one.first_token for one in turns), 3),
        "a token after the first, slowest of five [s]": round(
            max(one.later_tokens / max(1, one.new_tokens - 1) for one in turns), 4
        ),
    },
)
results.compare("06")

# %% [markdown]
# **In short.** A chat is a string that grows. Streaming is a loop with a cache, and patience with half characters. One copy of the weights holds both models. Temperature trades
# variety for sense. What a model writes is untrusted, as text and as advice.
#
# **Next:** the optional [07 Preference](07_preference.ipynb); [take it elsewhere](take_it_elsewhere.md), to a server or another program; or a larger scale: `mid` on a free Colab T4, `full` on a rented GPU.
