# %% [markdown]
# # 06 · Chat: talk to it
#
# Paper: Introduction and Appendix A to I. **After this notebook you can** keep a conversation in the model's exact format, stream its
# answer token by token, and set base and tuned model side by side on one copy of the weights.

# %%
import aurora_lib

scale = aurora_lib.start("06")

# %% [markdown]
# ## A conversation is one string
#
# The model has no memory. At every turn the whole history is written out again, in exactly the format it was trained on.

# %%
from aurora_lib import adapters, chat, nf4, tokenizer

base = nf4.load(scale.base_model, **scale.loading)
words = tokenizer.load(scale.base_model, revision=scale.revision)
model = adapters.load_adapter(base, adapters.find_adapter(scale))

history = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！有什么可以帮你的吗？"},
    {"role": "user", "content": "老虎属于什么动物？"},
]
print(words.apply_chat_template(history, tokenize=False))

# %% [markdown]
# ## Streaming
#
# One token at a time: run the model on the new token only (the *KV cache* remembers the rest), take the likeliest next token,
# show it, until the end token comes. `ChatSession.stream` is that loop.

# %%
import time

from IPython.display import HTML

tuned = chat.ChatSession(model, words, max_new_tokens=scale.max_new_tokens)
started, pieces = time.time(), []
for piece in tuned.stream("你好"):
    pieces.append(piece)
    print(piece, end="|")
seconds = time.time() - started
print(f"\n{len(pieces)} pieces, {len(pieces) / seconds:.0f} a second")

# %% [markdown]
# Three more turns of the same conversation, the history growing each time:

# %%
for question in ("日本的首都是哪里？", "猫头鹰属于什么动物？", "What is the capital of Japan?"):
    tuned.say(question)
HTML(chat.to_html(tuned.messages))

# %% [markdown]
# ## Base beside tuned
#
# The adapter is a detour that can be closed: `adapter=False` is the base model, without loading anything twice. The prompts are
# of the kinds of the paper's Introduction and of its Appendix B (arithmetic), and plain facts, within what the tiny model knows; the last
# ones test what tuning did to English.

# %%
import pandas as pd

untuned = chat.ChatSession(model, words, max_new_tokens=scale.max_new_tokens, adapter=False)
prompts = [
    "你好",
    "你是谁？",
    "我有点头疼。",
    "三加六等于多少？",
    "《西游记》的作者是谁？",
    "豆腐是用什么做的？",
    "Who are you?",
    "Who wrote Hamlet?",
]
rows = chat.compare(prompts, untuned, tuned)
pd.DataFrame(rows)

# %% [markdown]
# One warning: a tuned model that answers in fluent Chinese is not thereby right. In the paper's own Appendix A, Aurora's answer on
# gout is medically wrong (it calls it an infection of the kidneys), and in Appendix G its list of sleeping medicines repeats itself.
#
# ## Now you
#
# Type in Chinese or English. (On GitHub, see the conversation above: the box needs a running notebook.) Whatever the model says
# is escaped before it is shown: a `<script>` in an answer is text.

# %%
chat.widget(chat.ChatSession(model, words, max_new_tokens=scale.max_new_tokens))

# %%
print(chat.to_html([{"role": "assistant", "content": "<script>alert('你好')</script>"}]))

# %% [markdown]
# ## Exercises
#
# **06.1** Write the format: `[(question, answer), ...]` to one string; the last answer is `None`, the model is to give it.

# %%
from aurora_lib import exercises


def render(turns):
    return ...


exercises.check("06.1", render)

# %% [markdown]
# <details><summary>Hint</summary>Print the template above and look where there is no space.</details>
#
# **06.2** Probabilities from logits at a temperature.

# %%
def probabilities(logits, temperature):
    return ...


exercises.check("06.2", probabilities)

# %% [markdown]
# <details><summary>Hint</summary>A low temperature makes differences larger, before the softmax.</details>
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
from aurora_lib import results

chinese = [row for row in rows if not row["prompt"].isascii()]
results.record(
    "06",
    {
        "Chinese prompts": len(chinese),
        "answered in Chinese, base": sum(row["base language"] == "zh" for row in chinese),
        "answered in Chinese, tuned": sum(row["tuned language"] == "zh" for row in chinese),
        "English prompts answered in English, tuned": sum(
            row["tuned language"] == "en" for row in rows if row["prompt"].isascii()
        ),
        "time of one streamed answer [s]": round(seconds, 3),
    },
)
results.compare("06")

# %% [markdown]
# **In short.** A chat is a string that grows. Streaming is a loop with a cache. One copy of the weights holds both models. What a
# model writes is untrusted text. You have gone from a router's softmax to a model that answers you in Chinese.
#
# **Next:** set `AURORA_SCALE=full` on a rented GPU, and run the same notebooks.
