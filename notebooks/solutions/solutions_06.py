"""Solutions to notebook 06."""

import torch


# 06.2: <s> once; an answer follows a space and ends with </s>; the next [INST] follows at once
def render(turns):
    text = "<s>"
    for question, answer in turns:
        text += f"[INST] {question} [/INST]"
        if answer is not None:
            text += f" {answer}</s>"
    return text


# 06.1: the question with its marks, and the end token before it: chosen last, it was never read
read_anew = 12 + 1


# 06.3: a token stays where all likelier ones together have not reached top_p
def probabilities(logits, temperature, top_p):
    likely, order = (logits / temperature).softmax(-1).sort(descending=True)
    if top_p < 1:
        likely = torch.where(likely.cumsum(-1) - likely < top_p, likely, 0)
    return torch.zeros_like(likely).scatter(0, order, likely / likely.sum())


# 06.4: padding is another token in Mixtral's tokenizer, and the format writes the end token
def spoken(tokenizer, ids):
    end = tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


ANSWERS = {"06.1": read_anew, "06.2": render, "06.3": probabilities, "06.4": spoken}
