"""Checkers for the notebooks' exercises: they say what is likely wrong, greet an untouched stub, and raise nothing.

A stub is `...`, as a value or as what a function returns. A checker takes the answer and returns None when it is right,
else a sentence that helps.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real

import torch


@dataclass(frozen=True)
class Exercise:
    """One exercise: difficulty 1 to 3, expected minutes, what it trains, and its checker."""

    id: str
    difficulty: int
    minutes: int
    trains: str
    checker: Callable[[object], str | None]


EXERCISES: dict[str, Exercise] = {}


def exercise(id: str, difficulty: int, minutes: int, trains: str):
    """Register the decorated checker under `id` ("notebook.number")."""

    def register(checker):
        EXERCISES[id] = Exercise(id, difficulty, minutes, trains, checker)
        return checker

    return register


class _Untouched(Exception):
    pass


def check(id: str, answer) -> None:
    """Print what the checker of exercise `id` says of `answer`. See `verdict`."""
    print(verdict(id, answer)[1])


def verdict(id: str, answer) -> tuple[str, str]:
    """("untouched" | "wrong" | "right", what to tell the learner).

    Raises KeyError for an exercise that does not exist; nothing an answer does raises.
    """
    task = EXERCISES[id]
    answer = _Watched(answer) if callable(answer) else answer
    try:
        if answer is ...:
            raise _Untouched
        problem = task.checker(answer)
    except _Untouched:
        about = f"{'★' * task.difficulty}, {task.minutes} min, trains: {task.trains}"
        return "untouched", f"Exercise {id} ({about}). Replace the `...` and run again."
    except Exception as error:
        problem = _trouble(answer, error)
    if problem:
        starts_with_a_name = "_" in problem.split()[0]
        told = problem if starts_with_a_name else problem[0].upper() + problem[1:]
        return "wrong", f"Exercise {id}: not yet. {told}"
    return "right", f"Exercise {id}: right! ✓"


class _Watched:
    """A learner's function: notices an untouched stub, and remembers whether it was running and what it returned."""

    def __init__(self, function):
        self.function, self.running, self.value = function, False, None

    def __call__(self, *args):
        self.running = True
        self.value = self.function(*args)
        self.running = False
        if self.value is ...:
            raise _Untouched
        return self.value


def _trouble(answer, error: Exception) -> str:
    """What to say of `error`: the learner's function raised it, or gave a checker something it cannot look at."""
    if not isinstance(answer, _Watched):
        return f"a {type(answer).__name__} is not what is asked for ({error})."
    if answer.running:
        return f"your answer raised {type(error).__name__}: {error}"
    if answer.value is None:
        return "your function returned None. Is a `return` missing?"
    return (
        f"your function returned a {type(answer.value).__name__}, which is not what is asked for ({error})."
    )


def _plain(answer):
    """A tensor of one element as a Python number, anything else as it is."""
    return answer.item() if isinstance(answer, torch.Tensor) and answer.numel() == 1 else answer


def _number(answer, right: float, mistakes: dict[float, str], tolerance: float = 1e-3) -> str | None:
    """Compare a number with the right one and with the results of typical mistakes, all within a relative tolerance."""
    answer = _plain(answer)
    if isinstance(answer, _Watched):
        return "a number is wanted, and this is a function. Call it."
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return f"a number is wanted, and this is a {type(answer).__name__}."
    answer = float(answer)
    if math.isclose(answer, right, rel_tol=tolerance):
        return None
    for value, why in mistakes.items():
        if math.isclose(answer, value, rel_tol=tolerance):
            return why
    return f"{answer:g} is too {'small' if answer < right else 'large'}. Write out the formula term by term."


def _close(a, b: torch.Tensor) -> bool:
    a = torch.as_tensor(a, dtype=torch.float32)
    return a.shape == b.shape and torch.allclose(a, b.float(), atol=1e-5)


# 00: the paper in one page


@exercise("00.1", 1, 3, "reading Table 1")
def _multi_round_share(share):
    return _number(
        share,
        35_333 / 176_678,
        {
            35_333 / 76_399: "that is the share within ShareGPT alone; divide by all three datasets.",
            100 * 35_333 / 176_678: "that is per cent; a share lies between 0 and 1.",
            35_333 / 141_345: "that is the ratio to single-round conversations; divide by the total.",
        },
    )


@exercise("00.2", 1, 3, "what LoRA trains here")
def _trained_parts(parts):
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        return "give the names as a set of strings."
    parts = {str(name).rpartition(".")[2] for name in parts}
    if parts & {"gate", "router"}:
        return "the router stays frozen: the adapter sits in the attention only."
    if parts & {"experts", "w1", "w2", "w3", "gate_up_proj", "down_proj"}:
        return "the experts stay frozen in 4 bits: the adapter sits in the attention only."
    if parts - {"q_proj", "v_proj"}:
        return f"{', '.join(sorted(parts - {'q_proj', 'v_proj'}))} is not in the published training command."
    return (
        None
        if parts == {"q_proj", "v_proj"}
        else "one is missing: two projections of the attention carry an adapter."
    )


@exercise("00.3", 2, 5, "batch, accumulation and steps")
def _optimizer_steps(steps):
    return _number(
        steps,
        3 * 176_678 / 8,
        {
            3 * 176_678 / 4: "each of the 4 batches holds 2 conversations: a step sees 8.",
            3 * 176_678 / 2: "a step happens after 4 batches of 2: gradient accumulation is missing.",
            176_678 / 8: "that is one epoch; the paper trains three.",
            3 * 176_678: "that is one step per conversation; 2 x 4 of them share a step.",
        },
    )


# 01: the router


@exercise("01.1", 1, 8, "softmax, top-k, renormalisation")
def _top2(route):
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, 0.0, 0.0, 4.0]])
    probabilities = logits.softmax(-1)
    top, index = probabilities.topk(2, dim=-1)
    result = route(logits.clone())
    if not (isinstance(result, tuple | list) and len(result) == 2):
        return "return two tensors: the weights and the indices, both [tokens, 2]."
    weights, chosen = map(torch.as_tensor, result)
    if chosen.shape != index.shape:
        return f"the indices should have shape {tuple(index.shape)}, one row per token."
    if torch.is_floating_point(chosen):
        return "the second of the two should be the indices: return (weights, indices)."
    chosen = chosen.long()
    if not torch.equal(chosen.sort().values, index.sort().values):
        return "these are not the two largest logits of each token. Is `dim` the last one?"
    if _close(weights, probabilities.gather(-1, chosen)):
        return "these are the two probabilities out of all experts; their sum is below 1. Divide each pair by its sum."
    if _close(weights, logits.gather(-1, chosen)):
        return "these are the logits; a softmax is missing."
    if _close(weights, probabilities.gather(-1, chosen).softmax(-1)):
        return "a second softmax flattens probabilities: divide each pair by its sum instead."
    expected = (probabilities / top.sum(-1, keepdim=True)).gather(-1, chosen)
    if _close(weights, expected):
        return None
    kept = logits.gather(-1, chosen)
    if _close(weights, kept / kept.sum(-1, keepdim=True)):
        return "these are logits divided by their sum: take the softmax first."
    if not _close(weights.float().sum(-1), torch.ones(2)):
        return "the weights of each token should sum to one."
    return (
        "the weights belong to other logits. Is your softmax over the experts of one token, the last `dim`?"
    )


@exercise("01.2", 2, 8, "stored and active parameters")
def _active_parameters(billions):
    billions = _plain(billions)
    if isinstance(billions, Real) and billions > 1e6:
        billions = billions / 1e9
    return _number(
        billions,
        12.88,
        {
            46.70: "those are all stored parameters; a token passes through 2 of 8 experts.",
            46.70 / 4: "only the experts come in at 2 of 8; attention and embeddings are used whole.",
            7.24: "that is with one expert; each token takes two.",
            14.0: "2 x 7B counts attention and embeddings twice: only the experts are multiplied.",
            11.27: "those are the two experts alone; attention, embeddings and head are missing.",
            12.75: "embedding and head are two matrices of 32,000 x 4096: count both.",
            12.62: "embedding and head are missing.",
            56.0: "8 x 7B is the name, not the size: attention is shared by the experts.",
        },
        tolerance=4e-3,
    )


@exercise("01.3", 3, 12, "the load-balancing loss")
def _balance(loss):
    from aurora_lib.routing import balance_loss

    logits = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0)) * 2
    flat = logits.flatten(0, 1)
    right = balance_loss(logits, 2)
    mine = torch.as_tensor(loss(flat.clone(), 2)).float()
    if mine.dim():
        return "a loss is one number: sum over the experts."
    ratio = (mine / right).item()
    if math.isclose(ratio, 1, rel_tol=1e-4):
        one = torch.as_tensor(loss(flat.clone(), 1)).float()
        if not _close(one, balance_loss(logits, 1)):
            return "right for two experts a token, and wrong for one: use `top_k`."
        never = torch.tensor([[2.0, 1.0, 0.0, -9.0]]).repeat(5, 1)  # nobody chooses the last expert
        if not _close(torch.as_tensor(loss(never, 2)).float(), balance_loss(never[None], 2)):
            return "an expert that nobody chooses must count too, with a share of 0."
        return None
    if math.isclose(ratio, 1 / 4, rel_tol=1e-4):
        return "multiply by the number of experts, so that a perfect balance gives top_k."
    if math.isclose(ratio, 1 / 2, rel_tol=1e-4):
        return "each token gives top_k choices: divide the counts by the tokens, not by the choices."
    if torch.isclose(mine, 4 * flat.softmax(-1).mean(0).square().sum(), rtol=1e-4):
        return "one factor must be the share of choices (counted), the other the mean probability."
    return f"expected {right:.4f} on the test input, got {mine:.4f}."


# 02: the data


@exercise("02.1", 1, 6, "telling Chinese from English")
def _han_share(share):
    for text, right in (("你好", 1.0), ("hello", 0.0), ("GPU 是显卡", 0.5), ("第3章：GPT-4", 0.4)):
        value = share(text)
        if not math.isclose(value, right, abs_tol=1e-6):
            if math.isclose(value, sum("一" <= c <= "鿿" for c in text) / len(text), abs_tol=1e-6):
                return f"in {text!r} every character counts as a letter. Divide by the letters, not by the length."
            return f"{text!r} has a Han share of {right} among its letters, not {value}."
    try:
        value = share("？？ 123")
    except ZeroDivisionError:
        return "a text without any letter divides by zero; return 0.0 there."
    return None if value == 0 else "a text without letters has a Han share of 0."


@exercise("02.2", 2, 8, "exact duplicates")
def _unique(unique):
    rows = ["b", "a", "b", "e", "a", "d", "c", "b"]
    kept = list(unique(list(rows)))
    if kept == ["b", "a", "e", "d", "c"]:
        return None
    if kept == ["e", "d", "c"]:
        return "every copy was dropped; the first of each should stay."
    if sorted(kept) == ["a", "b", "c", "d", "e"]:
        return (
            "right rows, other order: keep each where it first stood, so that two runs give the same result."
        )
    return f"of {rows} the rows ['b', 'a', 'e', 'd', 'c'] should stay, not {kept}."


@exercise("02.3", 2, 8, "dropping without losing good rows")
def _keep(keep):
    for answer in ("27", "负面", "是", "Fe", "¥35", "√2", "Yes."):
        if not keep(answer):
            if answer.isdigit() and keep("负面"):
                return f"the answer {answer!r} is right, and has no letter: numbers say something too."
            return f"the answer {answer!r} is short and right. Length alone is no reason to drop a row."
    for answer in ("", "  ", "。。。", "……", "!?", "——", "\n"):
        if keep(answer):
            return f"the answer {answer!r} says nothing, and was kept."
    return None


@exercise("02.4", 3, 10, "choosing bands and rows")
def _half(half):
    bands, rows = 5, 2
    right = (1 - 0.5 ** (1 / bands)) ** (1 / rows)
    mistakes = {
        (1 / bands)
        ** (
            1 / rows
        ): "(1/bands) ** (1/rows) is the rule of thumb for where the curve is steepest. Solve for exactly one half.",
        0.5 ** (1 / rows): "there *one* band agrees with probability one half. Any of the bands will do.",
        (1 - 0.5 ** (1 / rows))
        ** (1 / bands): "bands and rows are swapped: the values within a band must all agree.",
        1
        - 0.5 ** (1 / bands): "this is the probability that one band agrees. It is j ** rows: take the root.",
        0.5 ** (1 / bands): "this is the probability that one band does *not* agree. What is then j ** rows?",
    }
    problem = _number(half(bands, rows), right, mistakes)
    return problem or _number(half(32, 4), (1 - 0.5 ** (1 / 32)) ** (1 / 4), {})


# 03: NF4, LoRA, memory


@exercise("03.1", 2, 10, "absmax and nearest level")
def _quantize_block(quantize):
    from bitsandbytes.functional import get_4bit_type

    levels = get_4bit_type("nf4", device="cpu")
    block = torch.tensor([0.6, -1.2, 0.05, 0.0, 1.4, -2.4])
    distance = (block[:, None] / block.abs().max() - levels).abs()
    codes = torch.as_tensor(quantize(block.clone(), levels.clone()))
    if codes.shape != block.shape:
        return f"one code per weight is wanted: shape {tuple(block.shape)}, not {tuple(codes.shape)}."
    if torch.equal(codes.long(), distance.argmin(1)):
        return None
    if torch.is_floating_point(codes):
        return "return the numbers of the levels (0 to 15), not their values."
    if torch.equal(codes.long(), (block[:, None] - levels).abs().argmin(1)):
        return "divide the block by its absmax first: the levels reach from -1 to 1."
    if torch.equal(codes.long(), (block[:, None] / block.max() - levels).abs().argmin(1)):
        return "is your scale the largest *absolute* value?"
    return "some codes are not the nearest level."


@exercise("03.2", 2, 6, "what double quantization saves")
def _bits_per_weight(bits):
    return _number(
        bits,
        4 + 8 / 64 + 32 / (64 * 256),
        {
            4.5: "that is without double quantization: the absmax values themselves take 8 bits, not 32.",
            4.0: "that is the codes alone; each block of 64 also stores its absmax.",
            4 + 8 / 64: "nearly: 256 absmax values share one 32-bit scale of their own.",
            4 + 8 / 64 + 32 / 256: "the 32-bit scale serves 256 absmax values, and each of those 64 weights.",
            8 / 64 + 32 / (64 * 256): "that is what comes on top; add the 4 bits of the code itself.",
            (4 + 8 / 64 + 32 / (64 * 256)) / 8: "that is in bytes; the question is in bits.",
        },
        tolerance=1e-4,
    )


@exercise("03.3", 2, 8, "counting an adapter")
def _lora_parameters(count):
    return _number(
        count,
        3_407_872,
        {
            # q_proj is 4096 -> 4096 and v_proj 4096 -> 1024, in 32 layers, at rank 8
            32 * 8 * 4 * 4096: "v_proj gives 8 key-value heads of 128: its output is 1024 wide, not 4096.",
            8 * (3 * 4096 + 1024): "that is one layer; Mixtral has 32.",
            32 * 4096 * (4096 + 1024): "those are the full matrices; LoRA trains r x in + out x r instead.",
            32 * 8 * (4096 + 1024): "each adapter has two matrices, A [r, in] and B [out, r]; A is missing.",
            32 * 8 * (4096 + 4096): "each adapter has two matrices, A [r, in] and B [out, r]; B is missing.",
        },
        tolerance=1e-9,
    )


# 04: fine-tuning


@exercise("04.1", 1, 6, "what the loss sees")
def _labels(labels):
    ids, mask = torch.tensor([1, 5, 6, 7, 2]), torch.tensor([0, 0, 0, 1, 1])
    made = torch.as_tensor(labels(ids.clone(), mask.clone()))
    if made.shape != ids.shape:
        return "labels are as long as the ids."
    if torch.equal(made, torch.tensor([-100, -100, -100, 7, 2])):
        return None
    if torch.equal(made, ids * mask):
        return "0 is a token like any other; the loss skips the label -100."
    if torch.equal(made, torch.tensor([1, 5, 6, -100, -100])):
        return "the other way round: the mask is 1 where the assistant speaks, and that is what is learned."
    if torch.equal(made, torch.tensor([-100, -100, 7, 2, -100])):
        return "do not shift: the model's loss compares each label with the prediction before it by itself."
    if made[-1] == -100:
        return "the end token belongs to the answer: without it the model never learns to stop."
    return f"for ids {ids.tolist()} and mask {mask.tolist()} this gave {made.tolist()}."


@exercise("04.2", 2, 6, "the cosine schedule")
def _cosine(rate):
    for step, right in ((0, 1.0), (50, 0.5), (100, 0.0), (25, 0.5 * (1 + math.cos(math.pi / 4)))):
        value = float(rate(step, 100, 0.1)) / 0.1
        if not math.isclose(value, right, abs_tol=1e-6):
            if math.isclose(value * 0.1, right, abs_tol=1e-6):
                return "that runs from 1; multiply by the peak."
            if step == 0 and math.isclose(value, 2.0):
                return "1 + cos starts at 2: halve it."
            if step == 50 and math.isclose(value, math.cos(math.pi / 4) / 2 + 0.5, abs_tol=1e-6):
                return "the whole run spans half a period: the angle goes from 0 to pi."
            if step == 25 and math.isclose(value, 0.75, abs_tol=1e-6):
                return "that is a straight line; the cosine falls slowly at both ends."
            return f"at step {step} of 100 the rate should be {right:.4f} of its peak, not {value:.4f}."
    return None


@exercise("04.3", 3, 8, "why adapters stay in 32 bits")
def _survives(survives):
    for weight, update, right in (
        (1.0, 5e-5, False),
        (1.0, 0.01, True),
        (1e-4, 5e-5, True),
        (0.02, 5e-5, False),
    ):
        if bool(survives(weight, update)) != right:
            if survives(1.0, 5e-5) and not survives(1.0, 0.01):
                return "the other way round: True where the weight changes."
            if survives(1.0, 5e-5):
                return "with 32 or 64 bits everything survives. Make both numbers torch.bfloat16 first."
            return f"in bfloat16 {weight} + {update} is {'another number' if right else 'the same number again'}."
    return None


# 05: evaluation


@exercise("05.1", 2, 8, "an interval for a share")
def _interval(interval):
    from aurora_lib.evaluation import wilson

    low, high = interval(9, 10)
    right = wilson(9, 10)
    if math.isclose(low, right[0], abs_tol=2e-3) and math.isclose(high, right[1], abs_tol=2e-3):
        return None
    half = 1.96 * math.sqrt(0.9 * 0.1 / 10)
    if math.isclose(low, 0.9 - half, abs_tol=2e-3):
        return "that is the normal approximation: it reaches above 1 here. Use Wilson's formula."
    if low > high:
        return "the lower end comes first: (low, high)."
    if not 0 <= low <= high <= 1:
        return "a share lies between 0 and 1, and so does its interval."
    return f"for 9 of 10 Wilson's 95 % interval is about {right[0]:.3f} to {right[1]:.3f}, not {low:.3f} to {high:.3f}."


@exercise("05.2", 1, 6, "reading an answer from the logits")
def _pick(pick):
    logits, ids = torch.tensor([9.0, 0.1, 2.0, 1.0, 0.3, 5.0]), [4, 3, 1, 2]
    letter = _plain(pick(logits, ids))
    if not isinstance(letter, str | Real):
        return f"one of the letters A, B, C, D is wanted, not a {type(letter).__name__}."
    if letter == "D":
        return None
    if letter in ("A", "B", "C"):
        return (
            f"the token ids {ids} stand for A, B, C, D; {letter} does not have the highest logit among them."
        )
    if letter == 3:
        return "return the letter, not its position."
    if letter == 2:
        return "return the letter, not its token id."
    if letter == 0:
        return "only the four letters' tokens compete, not the whole vocabulary."
    return f"one of the letters A, B, C, D is wanted, not {letter!r}."


@exercise("05.3", 1, 5, "micro and macro average")
def _micro(average):
    value = average({"law": (9, 10), "physics": (30, 100)})
    if math.isclose(value, 39 / 110, abs_tol=1e-6):
        return None
    if math.isclose(value, 0.6, abs_tol=1e-6):
        return "that is the macro average: every subject counts alike. The paper's stack counts every question alike."
    return f"39 of 110 questions are right, which is {39 / 110:.4f}, not {value:.4f}."


# 06: chat


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
    if _close(made, (logits / 0.5).softmax(-1)):
        return None
    if _close(made, (logits * 0.5).softmax(-1)):
        return "the other way round: a low temperature sharpens, so divide by it."
    if _close(made, logits.softmax(-1) / 0.5):
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
