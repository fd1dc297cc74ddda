"""Checkers of notebook 06: chat."""

import torch

from aurora_lib.exercises.checking import close, exercise


@exercise("06.1", 1, 8, "the exact chat format")
def _prompt(render):
    right = "<s>[INST] 你好 [/INST] 你好！</s>[INST] 再见 [/INST]"
    made = render([("你好", "你好！"), ("再见", None)])
    if made == right:
        return None
    if not isinstance(made, str):
        return "return one string."
    if made.replace("</s> [INST]", "</s>[INST]") == right:
        return "no space between </s> and the next [INST]: it would be a token the model never saw there."
    if "None" in made:
        return "the last answer is None: the model is to give it, so nothing follows its [/INST]."
    if made.rstrip() == right:
        return "nothing follows the last [/INST], not even a space: the model begins its answer with one."
    if "</s>" not in made:
        return "each finished answer ends with </s>, or the model sees one endless answer."
    if not made.startswith("<s>"):
        return "the conversation begins with <s>, once."
    if made.count("<s>") > 1:
        return "<s> stands once, before the first turn only."
    return f"expected {right!r}, got {made!r}."


@exercise("06.2", 2, 6, "temperature")
def _temperature(probabilities):
    logits = torch.tensor([2.0, 1.0, 0.0])
    made = probabilities(logits.clone(), 0.5)
    if close(made, (logits / 0.5).softmax(-1)):
        return None
    if close(made, (logits * 0.5).softmax(-1)):
        return "the other way round: a low temperature sharpens, so divide by it."
    if close(made, logits.softmax(-1) / 0.5):
        return "the temperature goes inside the softmax; outside it the probabilities no longer sum to one."
    return "softmax of (logits / temperature) is wanted."


@exercise("06.3", 1, 5, "model output is untrusted")
def _bubble(bubble):
    made = bubble("<script>alert('你好')</script> & 5 < 6")
    made = getattr(made, "data", made)  # IPython's HTML object holds its text there
    if not isinstance(made, str):
        return f"return the HTML as a string, not as a {type(made).__name__}."
    if "<script>" in made:
        return "the script tag came through: it would run in the reader's browser. html.escape(text) helps."
    if "&amp;" not in made or "&lt; 6" not in made:
        return "an & or a < of the text was lost, left as it was or escaped twice; html.escape, once, handles them all."
    return None if "你好" in made else "the text itself is missing."
