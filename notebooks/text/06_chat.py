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
# The model has no memory. At every turn the whole history is written out again, in exactly the format it was trained on. So it can look back: the last question
# below says 它 (it), and means Japan.

# %%
from aurora_lib import chat, course
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
# ![Three strips of token boxes, the KV cache: prefill reads the whole prompt at once, decoding adds one token at a time until &lt;/s&gt;, and the next turn keeps the common prefix and reads only what is new.](images/chat_loop.svg)
#
# Run the model on the prompt; of its logits, one for each token of the vocabulary, take the highest: the likeliest next token. Run it on that one token, and so on, until the end token (`</s>` in Mixtral's format) comes. The *KV cache* (键值缓存) remembers
# keys and values of everything read so far, so each step reads a single token.

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
# **Before you run the next cell:** cut the history, so that only the last question is left. What will the model say?

# %%
print(history[-1]["content"], "→", tokenizer.decode(decode(history[-1:])))

# %% [markdown]
# It answers all the same, and as smoothly. Only the history says what 它 means. The same with many such questions: first after the turn they refer to (which the model
# answers itself), then alone. No such pair of questions was in pre-training or tuning.

# %%
from aurora_lib import evaluation

follow_ups = evaluation.load_probes(file="follow_ups.jsonl")
seen = {}
for name, history_kept in (("with the turn before", True), ("alone", False)):
    probed = evaluation.probe(model, tokenizer, follow_ups, history=history_kept)
    seen[name] = {f"asked in {side}": probed.score(side, "correct") for side in ("zh", "en")}
evaluation.plot(seen, chance=None, title="Follow-up questions, right in the language asked");

# %% [markdown]
# At `tiny` most are right with the turn before. Alone, some still are: "那日本呢？" (and Japan?) names the country, and the model guesses what is asked about it.
#
# ## Streaming
#
# `ChatSession.stream` is that loop, with three differences. It remembers the conversation. It reads only what is new: from the second question on, the `reused` tokens of the prompt were in the cache
# already. And it hands out text as it comes:

# %%
tuned = chat.ChatSession(model, tokenizer, max_new_tokens=scale.max_new_tokens)
speeds = []
for question in ("你好", "日本的首都是哪里？", "那它的货币呢？"):
    print(question, "→", end=" ")
    for piece in tuned.stream(question):
        print(piece, end="|", flush=True)
    speeds.append(tuned.stats)
    print(f"   ({tuned.stats.prompt_tokens} tokens of prompt, {tuned.stats.reused_tokens} reused)")

# %% [markdown]
# It never shows half a character. The real Mixtral tokenizer has only some of the Chinese characters as a piece; the others, and most emoji, are spelled in
# *bytes*. Decoded one by one, bytes are nothing (�); the stream waits until the character is whole. Before you run the cell: in UTF-8, 筷 has three bytes and 🐯 four. How many tokens will
# 筷子🐯 take, if 子 is a piece, and a `▁` stands in front?

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
# Type in Chinese or English: Enter sends, Shift-Enter breaks the line; temperature, and *Adapter on*, which switches between tuned and base, are under *Settings*. Whatever is said is shown as text and never run: type
# `<b>bold</b>`. In a terminal there is `python -m aurora_lib.chat`. (A page without a kernel shows the conversation from above; with one, it looks like this:)
#
# ![The chat box, in JupyterLab's light and dark theme](images/chat_widget.png)

# %%
chat.ChatBox(tuned)

# %% [markdown]
# A conversation is a list of messages, and nothing else. So any file keeps it, and it can be taken up again:

# %%
import json

file = scale.runs / "conversation.json"
file.write_text(json.dumps(tuned.messages, ensure_ascii=False), encoding="utf-8")
again = chat.ChatSession(model, tokenizer)
again.messages = json.loads(file.read_text(encoding="utf-8"))
print(len(again.messages), "messages, the last one:", again.messages[-1]["content"])

# %% [markdown]
# When history and answer no longer fit the context window, the oldest turns are left out of the prompt, and counted (`forgotten`): the box says so. Whoever asks about them gets an answer all the
# same, made up. To see it, keep so much room for the answer that little is left for the history:

# %%
from itertools import islice

short = chat.ChatSession(model, tokenizer, max_new_tokens=model.config.max_position_embeddings - 64)
for question in ("瑞典的首都是哪里？", "你好", "铁的元素符号是什么？", "那它的货币呢？"):
    said = "".join(islice(short.stream(question), scale.max_new_tokens))  # else a model may go on for long
    used, room = short.context
    print(f"{question} → {said}  ({used} of {room} tokens used, {short.forgotten} turns forgotten)")

# %% [markdown]
# ## Base beside tuned
#
# The adapter is a detour that can be switched off: `adapter=False` is the base model, without loading anything twice. The prompts are of the kinds that the paper's Introduction and
# Appendix A to I show, in our own words (你好 and 你是谁？ at `tiny` are the paper's); at `tiny`, those within its world. Where the paper has a counterpart, a line says what its models answered. *Han* is the share of
# Chinese characters among an answer's letters.

# %%
settings = dict(max_new_tokens=scale.max_new_tokens)  # sessions of their own, whatever you set in the box
untuned = chat.ChatSession(model, tokenizer, adapter=False, **settings)
rows = chat.compare_models(chat.prompts(scale.name), untuned, chat.ChatSession(model, tokenizer, **settings))
rows

# %% [markdown]
# At `tiny`, read the two last blocks as well: did tuning change the English? And compare the two last lines: did it cost facts? (So few questions show only a large loss; notebook 05 asks more.) Then one warning:
# whoever answers in fluent Chinese is not thereby right. Read the notes under *medical* and *multi-turn*.
#
# ## Greedy, or a throw of dice
#
# So far the likeliest token won. *Sampling* (采样) throws dice instead: divide the logits by a *temperature*, take the softmax, then draw. `top_p` first cuts off the unlikely tail: it keeps the likeliest tokens that
# together make up that probability. The tiny model never met 狐狸 (fox). (A large one has.) Ask the model what kind of animal that is, and begin the answer for it: it guesses among the
# classes it knows. The six likeliest next characters (爬 begins 爬行动物, reptile):

# %%
import pandas as pd

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
    first = session.say("狐狸属于哪一类动物？")
    anew = ["".join(session.regenerate()) for _ in range(2)]
    tries[f"temperature {temperature}, top_p {top_p}"] = [first, *anew]
pd.DataFrame(tries, index=["first", "anew", "once more"]).T

# %% [markdown]
# Here nothing was begun for the model, and it may lose the fox as well. A high temperature makes variety and nonsense by the same means. `top_p` cuts off the
# unlikeliest tokens, and yet at temperature 2 much nonsense is left: what it keeps is still flat, and one wrong token leads to the next. The seed makes a conversation repeatable: the same seed and the same questions give the same answers.
#
# ## Where not to trust it
#
# - **Facts.** Tuning is for the language of the answers. It adds no facts, may cost some, and a wrong answer reads as smoothly as a right one.
# - **Health, law, money.** It is no doctor: in the paper's Appendix A its answer on gout is medically wrong, and in Appendix G it counts a painkiller among the sleeping pills.
# - **Safety.** Nothing here was tuned to refuse. What a model for others should refuse has to be decided, trained and tested; this one was not.
# - **Its text is untrusted input.** It goes into pages, shells and databases escaped, like a stranger's. This is what a saved page makes of a script (the box itself writes text only):

# %%
print(course.html.to_html([{"role": "assistant", "content": "<script>alert('你好')</script>"}]))

# %% [markdown]
# ## Exercises
#
# **06.1** Write Mixtral's format, whatever model you run: `[(question, answer), ...]` to one string; the last answer is `None`, the model is to give it.

# %%
from aurora_lib import exercises


def render(turns):
    return ...


exercises.check("06.1", render)

# %% [markdown]
# <details><summary>Hint</summary>Look at the prompt printed above: where is there no space?</details>
#
# **06.2** Probabilities from logits at a temperature.


# %%
def probabilities(logits, temperature):
    return ...


exercises.check("06.2", probabilities)

# %% [markdown]
# <details><summary>Hint</summary>Divide the logits by the temperature, then take the softmax: below one, differences grow.</details>
#
# **06.3** A chat bubble: HTML with the text in it, whatever the text is.


# %%
def bubble(text):
    return ...


exercises.check("06.3", bubble)

# %% [markdown]
# <details><summary>Hint</summary>The standard library's <code>html</code> module.</details>
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
        "first token, slowest of three [s]": round(max(one.first_token for one in speeds), 3),
        "a token after the first, slowest of three [s]": round(
            max(one.later_tokens / max(1, one.new_tokens - 1) for one in speeds), 4
        ),
    },
)
results.compare("06")

# %% [markdown]
# **In short.** A chat is a string that grows. Streaming is a loop with a cache, and patience with half characters. One copy of the weights holds both models. Temperature trades
# variety for sense. What a model writes is untrusted, as text and as advice. You have gone from a router's softmax to a model that answers you in Chinese.
#
# **Next:** the optional [07 Preference](07_preference.ipynb); [take it elsewhere](take_it_elsewhere.md), to a server or another program; or a larger scale: `mid` on a free Colab T4, `full` on a rented GPU.
