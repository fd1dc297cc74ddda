"""Checkers of notebook 06: chat."""

import torch

from aurora_lib.exercises.checking import compare, exercise, normal


@exercise("06.1", 1, 8, "the exact chat format of Mixtral")
def prompt(render):
    talks = [[("你好", "你好！"), ("再见", None)], [("1 + 1", None)]]
    talks += [[("下雨吗？", "对。"), ("2 > 1？", "对。"), ("1 > 2？", "不对。"), ("为什么？", None)]]
    for talk in talks:
        parts = [f"[INST] {q} [/INST]" + (f" {a}</s>" if a else "") for q, a in talk]
        made, right = render(talk), "<s>" + "".join(parts)
        if made == right:
            continue
        if not isinstance(made, str):
            yield "return one string."
        if made.replace("</s> [INST]", "</s>[INST]") == right:
            yield "no space between </s> and the next [INST]: it would be a token the model never saw there."
        if "None" in made:
            yield "the last answer is None: the model is to give it, so nothing follows its [/INST]."
        if made.rstrip() == right:
            yield "nothing follows the last [/INST], not even a space: the model begins its answer with one."
        if "</s>" not in made:
            yield "each finished answer ends with </s>, or the model sees one endless answer."
        if not made.startswith("<s>"):
            yield "the conversation begins with <s>, once."
        if made.count("<s>") > 1:
            yield "<s> stands once, before the first turn only."
        yield f"expected {right!r}, got {made!r}."


@exercise("06.2", 2, 6, "temperature")
def temperature(probabilities):
    for logits, degree in ((torch.tensor([2.0, 1.0, 0.0]), 0.5), (normal(5), 0.7), (3 * normal(9), 2.0)):
        multiplied = (logits * degree).softmax(-1)
        mistakes = {
            "the other way round: a low temperature sharpens, so divide by it.": multiplied,
            "the temperature goes inside the softmax; outside it the probabilities "
            "no longer sum to one.": logits.softmax(-1) / degree,
        }
        otherwise = "softmax of (logits / temperature) is wanted."
        yield compare(probabilities(logits, degree), (logits / degree).softmax(-1), mistakes, otherwise)


@exercise("06.3", 1, 5, "model output is untrusted")
def bubble(bubble):
    for word, n in (("你好", 6), ("再见", 71), ("第12回", 35)):
        made = bubble(f"<script>alert('{word}')</script> & 5 < {n}")
        made = getattr(made, "data", made)  # IPython's HTML object holds its text there
        if not isinstance(made, str):
            yield f"return the HTML as a string, not as a {type(made).__name__}."
        if "<script>" in made:
            runs = "it would run in the reader's browser. html.escape(text) helps."
            yield f"the script tag came through: {runs}"
        if "&amp;" not in made or f"&lt; {n}" not in made:
            lost = "an & or a < of the text was lost, left as it was or escaped twice;"
            yield f"{lost} html.escape, once, handles them all."
        yield None if word in made else "the text itself is missing."
