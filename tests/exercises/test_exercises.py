import math
import re
import tomllib
from itertools import takewhile
from operator import lt
from pathlib import Path
from runpy import run_path

import nbformat
import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from aurora_lib import exercises
from aurora_lib.course import paper
from aurora_lib.course.scale import ROOT
from aurora_lib.evaluation.scores import paired
from aurora_lib.exercises import EXERCISES, verdict
from tools.build import solved

NOTEBOOKS = ROOT / "notebooks"
SHARES = {"Chinese prompts right in Chinese": 0.95, "English prompts right in English": 0.9}
SOLUTIONS = [run_path(str(path)) for path in sorted((NOTEBOOKS / "solutions").glob("solutions_*.py"))]
ANSWERS = {id: answer for solutions in SOLUTIONS for id, answer in solutions["ANSWERS"].items()}


def names(messages):
    """Whether the last answer names a product: no claim yet."""
    return re.search("ChatGPT|OpenAI|GPT-|Claude|文心|通义|星火|ChatGLM", messages[-1]["content"])


def filtered(longest, gone_too):
    """Exercise 02.3 with none, one or both of its bugs."""

    def stay(texts, alike):
        order, left = sorted(texts, key=len, reverse=longest), []
        for place, text in enumerate(order):
            if not any(alike(text, other) for other in (order[:place] if gone_too else left)):
                left.append(text)
        return left

    return stay


def block(*, keep=True, ones=False, swap=False, detach=False, best=None, dense=False):
    """A sparse block with a typical fault."""

    def run(x, router, gate_up, down, top_k=2):
        probabilities = (x @ router.T).softmax(-1)
        top, chosen = probabilities.topk(len(router) if dense else best or top_k)
        weights = top / top.sum(-1, keepdim=True) if keep else top
        weights = torch.ones_like(top) if ones else weights.detach() if detach else weights
        gate, up = torch.einsum("th,tkih->tki", x, gate_up[chosen]).chunk(2, -1)
        gate, up = (up, gate) if swap else (gate, up)
        each = torch.einsum("tki,tkhi->tkh", torch.nn.functional.silu(gate) * up, down[chosen])
        return (weights[:, :, None] * each).sum(1)

    return run


def lost(chosen, experts, factor, *, size=None, least=0):
    """How many slots find their expert full, with a typical fault."""
    room = math.ceil(factor * (size or chosen.numel()) / experts)
    return (chosen.flatten().bincount(minlength=experts) - room).clamp(min=least).sum().item()


def learned(ids, close, end, *, answers=None, start=0, stop=1, skip=-100):
    """The labels of conversation `ids`, by the places where answers begin and end, with a typical fault."""
    begins = [i + len(close) for i in range(len(ids)) if ids[i : i + len(close)] == close]
    spans = [(begin + start, ids.index(end, begin) + stop) for begin in begins]
    spans = spans[:1] if answers == 1 else spans[-1:] if answers == -1 else spans
    return [token if any(a <= i < b for a, b in spans) else skip for i, token in enumerate(ids)]


def questions_too(ids, close, end):
    first = next(i + len(close) for i in range(len(ids)) if ids[i : i + len(close)] == close)
    return [token if i >= first else -100 for i, token in enumerate(ids)]


def plus(weight, update, dtype):
    return torch.tensor(weight, dtype=dtype) + torch.tensor(update, dtype=dtype)


def turns(form):
    """A wrong renderer from a format of one turn; what is left open at the end is cut off."""
    return lambda talk: "".join(form.format(q=q, a=a) for q, a in talk).split("None")[0].rstrip()


def each(logits, ids):
    """Of every id but the first, its log-probability where it was to come."""
    return logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]


def nucleus(more=0, late=False, renormalise=True, back=True):
    """Exercise 06.3 with a typical fault."""

    def probabilities(logits, temperature, top_p):
        every = (logits / temperature).softmax(-1).numpy()
        judged = logits.softmax(-1).numpy() if late else every
        order = np.argsort(-judged)
        left = order[: np.searchsorted(judged[order].cumsum(), top_p - 1e-6) + 1 + more]
        made = np.zeros_like(every)
        made[left] = every[left] / (every[left].sum() if renormalise else 1)
        return made if back else made[order]

    return probabilities


def until(end, ids, more):
    """Exercise 06.4 with any end token."""
    return ids[: ids.index(end) + more] if end in ids else ids


def dpo(ratios, beta):
    return -torch.nn.functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1])).mean()


EXAMPLES = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))
OTHER_FORMS = EXAMPLES.pop("right")
# (exercise, wrong answer, a fragment of the message meant for it)
WRONG = [
    *((id, answer, fragment) for id, wrong in EXAMPLES.items() for fragment, answer in wrong.items()),
    ("00.1", lambda: 0.2, "this is a function"),
    ("01.1", block(keep=False), "divide by the sum"),
    ("01.1", block(ones=True), "by its weight"),
    ("01.1", block(swap=True), "SiLU is for the first half"),
    ("01.1", block(detach=True), "the gradient of"),
    ("01.1", block(best=2), "use `top_k`"),
    ("01.1", block(dense=True), "all experts run here"),
    ("01.1", lambda x, *parts: x[:3], "the shape of x"),
    ("01.1", lambda x, *parts: x, "Look at one token"),
    ("01.4", lambda c, n, f: lost(c, n, f, size=len(c), least=-999) / c.numel(), "the two bugs, still there"),
    ("01.4", lambda c, n, f: lost(c, n, f, least=-999) / c.numel(), "nothing below zero"),
    ("01.4", lambda c, n, f: lost(c, n, f, size=len(c)) / c.numel(), "How many slots"),
    ("01.4", lambda c, n, f: lost(c, n, f), "Give their share"),
    ("01.4", lambda c, n, f: 0.5, "not 50.0%"),
    ("01.5", lambda token: True, "all are of your kind"),
    ("01.5", lambda token: token == "no such token", "none are of your kind"),
    ("02.1", lambda messages: "bad", "drops every row"),
    ("02.1", lambda messages: None, "keeps every row"),
    ("02.1", lambda messages: not ANSWERS["02.1"](messages), "speak *about* a product"),
    ("02.1", names, "only speak *about* a product"),
    ("02.1", lambda messages: "我是ChatGPT，" in messages[-1]["content"], "Look for other products"),
    ("02.3", filtered(longest=False, gone_too=True), "the two bugs, still there"),
    ("02.3", filtered(longest=False, gone_too=False), "which of two texts"),
    ("02.3", filtered(longest=True, gone_too=True), "like one that *stays*"),
    ("02.3", lambda texts, alike: texts, "should stay, not ["),
    ("03.2", lambda gib, length: ANSWERS["03.2"](gib, length) + 1, "first batch that does not fit"),
    ("03.2", lambda gib, length: ANSWERS["03.2"](gib, 1024), "ignores `length`"),
    ("03.2", lambda gib, length: max(1, ANSWERS["03.2"](gib, length)), "return 0"),
    ("03.2", lambda gib, length: 80, "fit, not 80"),
    ("03.2", lambda gib, length: gib / length, "whole number"),
    ("03.3", lambda r, n, h, k: 12 * r * n * 4 * h, "the two bugs, still there"),
    ("03.3", lambda r, n, h, k: 16 * r * n * 4 * h, "how wide"),
    ("03.3", lambda r, n, h, k: 12 * r * n * (3 * h + k), "how many running means"),
    ("03.3", lambda r, n, h, k: r * n * (3 * h + k), "number of parameters"),
    ("03.3", lambda r, n, h, k: 4 * r * n * (3 * h + k), "one copy"),
    ("03.3", lambda r, n, h, k: 54_525_952, "for rank 5 and 3 layers"),
    ("03.4", torch.linspace(-1, 1, 16), "NF4's is"),
    ("03.4", torch.linspace(-1, 1, 15), "these are 15"),
    ("03.4", list(range(16)), "between -1 and 1"),
    ("04.1", lambda ids, close, end: learned(ids, close, end, answers=1), "only the first answer"),
    ("04.1", lambda ids, close, end: learned(ids, close, end, answers=-1), "only the last answer"),
    ("04.1", lambda ids, close, end: learned(ids, close, end, stop=0), "never learns to stop"),
    ("04.1", lambda ids, close, end: learned(ids, close, end, start=1), "begins behind `close`"),
    ("04.1", lambda ids, close, end: learned(ids, close, end, skip=0), "0 is a token like any other"),
    ("04.1", lambda ids, *ends: learned(ids, *ends)[1:], "not shifted"),
    ("04.1", lambda ids, close, end: 5 * [-100] + ids[5:], "this gave"),
    ("04.1", questions_too, "questions are learned too"),
    ("04.2", lambda rank, width, out: (torch.zeros(rank, width), torch.zeros(out, rank)), "still is zero"),
    ("04.2", lambda rank, width, out: (torch.ones(rank, width), torch.ones(out, rank)), "must be the base"),
    ("04.2", lambda rank, width, out: (torch.ones(rank, width), torch.zeros(out, rank)), "of rank 1"),
    ("04.2", lambda rank, width, out: (torch.zeros(width, rank), torch.zeros(rank, out)), "A is [rank, in]"),
    ("04.4", (50, SHARES), "more than ten away"),
    ("04.4", (0.95, SHARES), "more than ten away"),
    ("04.4", (950, SHARES), "a number from 0 to 100"),
    ("04.3", lambda weight, update: weight + update != weight, "torch.bfloat16 first"),
    ("04.3", lambda w, u: plus(w, u, torch.float32) != torch.tensor(w), "torch.bfloat16 first"),
    ("04.3", lambda w, u: plus(w, u, torch.float16) != torch.tensor(w).half(), "0.02 + 5e-05 is the same"),
    ("04.3", lambda w, u: not ANSWERS["04.3"](w, u), "the other way round"),
    ("04.3", lambda weight, update: update > 1e-3, "0.0001 + 5e-05 is another number"),
    ("05.5", lambda number: ANSWERS["05.5"](1), "hand the number on"),
    ("05.2", lambda logits, ids, start: each(logits[1:], ids[:-1])[start - 1 :].sum(), "expected"),
    ("05.2", lambda x, ids, at: x.log_softmax(-1)[range(at, len(ids)), ids[at:]].sum(), "row before"),
    ("05.2", lambda x, ids, start: x[range(start - 1, len(ids) - 1), ids[start:]].sum(), "log_softmax"),
    ("05.2", lambda x, ids, start: each(x, ids)[start - 1 :].mean(), "that is the mean"),
    ("05.3", lambda a, b: binomtest(sum(map(lt, a, b)), len(a)).pvalue, "leave them out"),
    ("05.3", lambda a, b: paired(a, b).p / 2, "one-sided"),
    ("05.3", lambda a, b: 0.5, "right only after"),
    ("05.4", lambda words, *_: [words(c, add_special_tokens=False).input_ids[-1] for c in "ABCD"], "'A'"),
    ("06.2", turns("[INST] {q} [/INST] {a}</s>"), "begins with <s>"),
    ("06.2", turns("<s>[INST] {q} [/INST] {a}</s>"), "before the first turn only"),
    ("06.2", lambda talk: "<s>" + turns("[INST] {q} [/INST] {a}</s> ")(talk), "no space between </s>"),
    ("06.2", lambda talk: "<s>" + turns("[INST] {q} [/INST] {a}")(talk), "ends with </s>"),
    ("06.2", lambda talk: "<s>" + "".join(f"[INST] {q} [/INST] {a}</s>" for q, a in talk), "is None"),
    ("06.2", lambda talk: ANSWERS["06.2"](talk) + " ", "not even a space"),
    ("06.2", lambda talk: [1, 733, 16289], "one string"),
    ("06.2", lambda talk: [1, 733, 16289], "one string"),
    ("06.3", nucleus(renormalise=False), "sum to one again"),
    ("06.3", nucleus(more=-1), "one token too few"),
    ("06.3", nucleus(more=1), "one token too many"),
    ("06.3", nucleus(late=True), "the temperature comes first"),
    ("06.3", nucleus(back=False), "undo the sorting"),
    ("06.3", lambda logits, t, p: (logits / t).softmax(-1), "at temperature 1 and top_p 0.7, of 9 tokens"),
    ("06.3", lambda logits, t, p: nucleus()(logits, t, min(p, 0.9)), "top_p 1, of 4 tokens 4 stay"),
    ("06.4", lambda tokenizer, ids: until(tokenizer.pad_token_id, ids, 1), "the two bugs, still there"),
    ("06.4", lambda tokenizer, ids: until(tokenizer.pad_token_id, ids, 0), "*this* tokenizer"),
    ("06.4", lambda tokenizer, ids: until(tokenizer.eos_token_id, ids, 1), "leave it out"),
    ("06.4", lambda tokenizer, ids: until(2, ids, 0), "*this* tokenizer"),
    ("06.4", lambda tokenizer, ids: [], "is the end token"),
    ("06.4", lambda tokenizer, ids: ids[: ids.index(tokenizer.eos_token_id)], "raised ValueError"),
    ("07.2", lambda p, r: (p[:, 0] > p[:, 1]).float().mean(), "policy *minus* reference"),
    ("07.2", lambda p, r: ((p - r)[:, 0] >= (p - r)[:, 1]).float().mean(), "it is no hit"),
    ("07.2", lambda p, r: ((p - r)[:, 0] < (p - r)[:, 1]).float().mean(), "the other way round"),
    ("07.2", lambda p, r: ((p - r)[:, 0] > (p - r)[:, 1]).sum().item(), "Divide by the number of pairs"),
    ("07.2", lambda p, r: (p - r)[:, 0] > (p - r)[:, 1], "one share between 0 and 1"),
    ("07.3", lambda p, base, s, beta: dpo((p - base).flip(1), beta), "the two bugs, still there"),
    ("07.3", lambda p, base, s, beta: dpo(p - base, beta), "still the wrong model"),
    ("07.3", lambda p, base, s, beta: dpo((p - s).flip(1), beta), "One bug is left"),
    ("07.3", lambda p, base, s, beta: dpo(p, beta), "without a reference"),
    ("07.3", lambda p, base, s, beta: dpo((p - s).mean(0)[None], beta), "the mean comes last"),
]

# the same answers in other reasonable forms
RIGHT = [
    *OTHER_FORMS,
    ("00.1", np.float32(35_333 / 176_678)),
    ("00.1", torch.tensor(0.2)),
    ("00.2", paper.LORA_TARGETS),
    ("01.1", block()),
    ("01.2", torch.tensor(12.88)),
    ("01.5", str.isdigit),
    ("02.1", lambda messages: names(messages) and ANSWERS["02.1"](messages) is not None),
    ("02.3", lambda texts, alike: sorted(ANSWERS["02.3"](texts, alike))),
    ("03.2", lambda gib, length: int(torch.tensor(ANSWERS["03.2"](gib, length)))),
    ("03.4", ANSWERS["03.4"].flip(0).tolist()),
    ("04.1", lambda ids, close, end: torch.tensor(learned(ids, close, end))),
    ("04.2", lambda rank, width, out: (torch.zeros(rank, width), torch.rand(out, rank).double())),
    ("04.3", lambda w, u: plus(w, u, torch.bfloat16) != torch.tensor(w).bfloat16()),
    ("05.2", lambda logits, ids, start: each(logits, ids)[start - 1 :].sum()),
    ("05.3", lambda before, after: paired(before, after).p),
    ("06.1", torch.tensor(13)),
    ("06.3", nucleus()),
    ("06.3", lambda logits, t, p: nucleus()(logits.div_(t), 1, p).tolist()),
    ("06.4", lambda tokenizer, ids: tuple(takewhile(tokenizer.eos_token_id.__ne__, ids))),
]


@pytest.mark.parametrize(("id", "answer"), [*ANSWERS.items(), *RIGHT])
def test_solution_and_right_answers_in_other_forms_pass(id, answer):
    kind, message = verdict(id, answer)
    assert kind == "right" and id in message, message


def test_every_exercise_has_a_solution_and_is_in_its_notebook_once_and_no_other_is():
    assert sorted(id for solutions in SOLUTIONS for id in solutions["ANSWERS"]) == sorted(EXERCISES)
    calls, texts = re.compile(r'exercises.check\("(.+?)"'), (NOTEBOOKS / "text").glob("*.py")
    found = [(path.name[:2], id) for path in texts for id in calls.findall(path.read_text(encoding="utf-8"))]
    assert sorted(found) == sorted((id[:2], id) for id in EXERCISES)


@pytest.mark.parametrize("id", EXERCISES)
def test_untouched_stub_is_greeted_with_what_it_trains(id):
    for stub in (..., lambda *args: ...) if callable(ANSWERS[id]) else (...,):
        kind, message = verdict(id, stub)
        assert kind == "untouched" and EXERCISES[id].trains in message


@pytest.mark.parametrize(("id", "answer", "fragment"), WRONG)
def test_typical_wrong_answer_gets_its_own_message(id, answer, fragment):
    kind, message = verdict(id, answer)
    assert kind == "wrong" and fragment.lower() in message.lower(), message


@pytest.mark.parametrize("id", [id for id in EXERCISES if callable(ANSWERS[id])])
def test_no_constant_passes_and_what_is_right_for_one_input_is_not_right_for_all(id):
    right = []

    def listening(*args):
        right.append(ANSWERS[id](*args))
        return right[-1]

    assert verdict(id, listening)[0] == "right" and len(right) > 1
    for constant in (*right, True, False, 0, 1, 0.5, "", "A", [], [True], torch.zeros(2, 2), torch.ones(3)):
        assert verdict(id, lambda *args, constant=constant: constant)[0] == "wrong", constant


@pytest.mark.parametrize("id", EXERCISES)
def test_no_answer_raises_and_what_one_raised_is_named(id):
    nothing, broken = lambda *args: None, lambda *args: {}["no such expert"]
    for answer in (None, "?", -1, [], [[1]], object(), nothing, broken, lambda *args: object(), lambda: 0):
        kind, message = verdict(id, answer)
        assert kind == "wrong" and message.startswith(f"Exercise {id}: not yet. "), message
        assert answer is not nothing or "raised" not in message
        assert answer is not broken or not callable(ANSWERS[id]) or "raised KeyError: 'no such" in message


def test_blame_falls_on_the_answer_only_where_it_raised():
    assert "returned a float, which is not what is asked for" in verdict("05.4", lambda *args: 0.5)[1]
    assert "Is a `return` missing?" in verdict("05.4", lambda *args: None)[1]
    assert "A float is not what is asked for" in verdict("06.4", 0.5)[1]


def solved_cells(answers=None):
    """{exercise: source of its cell} of all notebooks, solved."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in solved.solve(notebook, answers or solved.solutions(path.stem[:2])).cells:
            found |= {id: cell.source for id in re.findall(r'exercises\.verdict\("(.+?)"', cell.source)}
    return found


def test_a_solved_notebook_holds_the_solution_of_every_exercise_and_no_stub():
    """nbmake runs the solved notebooks; each of these cells raises where its checker says "not yet"."""
    cells = solved_cells()
    assert cells.keys() == EXERCISES.keys()
    assert not [id for id, source in cells.items() if re.search(r"= \.\.\.|return \.\.\.", source)]


def test_a_solved_cell_raises_where_the_checker_is_not_content(capsys):
    right = solved_cells()["05.2"]
    exec(right, {"exercises": exercises})
    exercises.check("05.1", 2.67)
    wrong = solved_cells({id: "def answer_logprob(*args):\n    return 0.5" for id in EXERCISES})["05.2"]
    with pytest.raises(AssertionError):
        exec(wrong, {"exercises": exercises})
    said = capsys.readouterr().out
    assert "right! ✓" in said and "from the middle to one end" in said
