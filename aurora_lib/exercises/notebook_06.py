"""Checkers of notebook 06: chat."""

import random

import torch

from aurora_lib.course import DATA
from aurora_lib.exercises.checking import compare, exercise, normal
from aurora_lib.model import load_tokenizer


@exercise("06.2", 1, 8, "the exact chat format of Mixtral")
def prompt(render):
    talks = [[("你好", "你好！"), ("再见", None)], [("1 + 1", None)]]
    talks += [[("下雨吗？", "对。"), ("2 > 1？", "对。"), ("1 > 2？", "不对。"), ("为什么？", None)]]
    for talk in talks:
        parts = [f"[INST] {q} [/INST]" + (f" {a}</s>" if a else "") for q, a in talk]
        made, right = render(talk), "<s>" + "".join(parts)
        if not isinstance(made, str):
            yield "return one string."
        faults = {
            "no space between </s> and [INST]: the model never saw a token there.": "</s> [" in made,
            "the last answer is None: the model is to give it, so nothing follows.": "None" in made,
            "nothing follows the last [/INST], not even a space: it begins the answer.": made[-1:] == " ",
            "each finished answer ends with </s>, or the model sees one endless answer.": "</s>" not in made,
            "the conversation begins with <s>.": not made.startswith("<s>"),
            "<s> stands once, before the first turn only.": made.count("<s>") > 1,
            f"expected {right!r}, got {made!r}.": True,
        }
        yield None if made == right else next(why for why, so in faults.items() if so)


@exercise("06.3", 2, 12, "sampling from the likeliest tokens")
def nucleus(probabilities):
    def cut(logits, temperature, top_p, more=0, late=False, total=None):
        every = (logits / temperature).softmax(-1)
        likely, order = (logits.softmax(-1) if late else every).sort(descending=True)
        n = next((n for n in range(1, len(order)) if likely[:n].sum() >= top_p), len(order))
        left = every * torch.zeros_like(every).scatter(0, order[: n + more], 1)
        return left / (total or left.sum())

    drawn = normal(9), normal(7), 2 * normal(30), 9 * normal(3), normal(4)
    for asked in zip(drawn, (1, 2, 0.5, 1, 0.7), (0.7, 0.8, 0.9, 0.5, 1), strict=True):
        right = cut(*asked)
        mistakes = {
            "after the cut the rest must sum to one again: renormalise.": cut(*asked, total=1),
            "the temperature comes first, the cut after it.": cut(*asked, late=True),
            "one token too few: the token that reaches top_p stays.": cut(*asked, more=-1),
            "one token too many: stop at the token that reaches top_p.": cut(*asked, more=1),
            "each probability belongs to its token: undo the sorting.": right.sort(descending=True)[0],
        }
        stay = f"of {len(right)} tokens {(right > 0).sum()} stay"
        otherwise = f"at temperature {asked[1]} and top_p {asked[2]}, {stay}."
        yield compare(probabilities(*asked), right, mistakes if asked[2] < 1 else {}, otherwise)


@exercise("06.4", 2, 8, "finding why a model never stops")
def spoken(spoken):
    def until(ids, end, more=0):
        return ids[: ids.index(end) + more] if end in ids else ids

    renamed, draw = load_tokenizer(DATA / "tiny"), random.Random(6)
    renamed.eos_token = "[/INST]"  # other models call their end token otherwise
    for tokenizer in (load_tokenizer(), renamed, load_tokenizer(DATA / "tiny")):
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        for rest in ([end, 7, pad], []):
            ids = draw.sample(range(9, 6000), 6) + rest
            mistakes = {
                "these are the two bugs, still there.": until(ids, pad, 1),
                "one bug is left: which id ends an answer with *this* tokenizer?": until(ids, pad),
                "one bug is left: the format writes the end token, so leave it out.": until(ids, end, 1),
            }
            made, right = list(spoken(tokenizer, ids)), until(ids, end)
            otherwise = f"of {ids}, where {end} is the end token, {right} is the answer."
            yield compare(made, right, mistakes, otherwise, list.__eq__)
