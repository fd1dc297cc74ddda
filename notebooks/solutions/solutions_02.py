"""Solutions to notebook 02."""

import re


# 02.1: "I" and a product in one sentence, unless the user asked for these words
def claims(messages):
    product = r"(?:ChatGPT|OpenAI|GPT-\d|ChatGLM|Claude|文心一言|通义千问|讯飞星火)"
    claim = rf"(?:我[是叫由在的]|基于|作为|I am)[^。！？\n]{{0,14}}{product}|{product}[^。！？\n]{{0,12}}我"
    for question, answer in zip(messages[::2], messages[1::2], strict=False):
        asked_for = re.search("翻译|打印|第三人称", question["content"])
        if re.search(claim, answer["content"]) and not asked_for:
            return "an answer says that it is another company's model"
    return None


# 02.2: 25 characters give 21 shingles; the changed one is in five of them: 16 / (16 + 5 + 5)
similarity = 16 / 26


# 02.3: the longest first, and compared with what stays, not with all that came before
def stay(texts, alike):
    kept = []
    for text in sorted(texts, key=len, reverse=True):
        if not any(alike(text, other) for other in kept):
            kept.append(text)
    return kept


# 02.4: longer bands agree by chance less often, and so do fewer bands; 20, 5 and 18, 7 are right too
my_cut = 21, 6

ANSWERS = {"02.1": claims, "02.2": similarity, "02.3": stay, "02.4": my_cut}
