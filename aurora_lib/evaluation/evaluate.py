"""From a benchmark to a score with its interval: read the questions, build prompts, score them, judge.

The files are in `benchmarks`, the mechanism is in `fewshot`. Log-probabilities are kept on disk as they are
made, so that an interrupted evaluation goes on where it stopped.
"""

import contextlib
import hashlib
import json
import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tqdm.auto import tqdm

from aurora_lib.course import machine, results
from aurora_lib.evaluation import benchmarks, fewshot
from aurora_lib.evaluation.benchmarks import LETTERS, TASKS, EvalError, Question, load_questions
from aurora_lib.evaluation.fewshot import FORMS, Candidate, Form, Group
from aurora_lib.model import batching, memory

SAMPLE = 256  # at least so many elements of each weight identify it
CATEGORIES = ("STEM", "Social Sciences", "Humanities", "Other")
CHANCE = 1 / len(LETTERS)
Z = 1.959964  # standard errors on either side that hold 95 % of a normal distribution
SPEED = "letters, speed [GFLOP/s]"
# Bytes and 16-bit operations a second that large kernels reach in practice; below the data sheets.
CARDS = {"an H100": (3e12, 600e12), "an A100": (1.7e12, 250e12), "a T4": (2.6e11, 40e12)}
PASSING = ("use_cache", "output_router_logits", "_name_or_path", "transformers_version")  # change no score


@dataclass(frozen=True)
class Score:
    """`correct` out of `n`: `accuracy` (0..1, nan when n is 0) and `interval`.

    Where a sample stands for more, `correct` is weighted to add up to the `n` asked, and `effective` is how
    many questions drawn evenly would tell as much (Kish 1965: the weights' sum, squared, over their squares).
    """

    correct: float
    n: int
    effective: float | None = None

    @classmethod
    def of(cls, hits: Iterable[bool], weights: Iterable[float] = ()) -> "Score":
        hits, weights = list(hits), list(weights)
        if len(set(weights)) < 2:
            return cls(sum(hits), len(hits))
        total, right = sum(weights), sum(w for w, hit in zip(weights, hits, strict=True) if hit)
        return cls(len(hits) * right / total, len(hits), total**2 / sum(w * w for w in weights))

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy, both ends in 0..1; (0, 1) when n is 0."""
        if not self.n:
            return 0.0, 1.0
        p, n = self.accuracy, self.effective or self.n
        centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        low, high = ((centre + side) / (1 + Z**2 / n) for side in (-half, half))
        return max(0.0, min(p, low)), min(1.0, max(p, high))  # rounding may put an end on the wrong side of p

    def __str__(self) -> str:
        low, high = self.interval
        like = f" (a sample, worth {self.effective:.0f} drawn evenly)" if self.effective else ""
        return f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}] n={self.n}{like}"


@dataclass(frozen=True)
class EvalResult:
    """One model on one task.

    `predictions` has a dict per scored question: subject, index, prediction, answer, correct, shots (how many
    examples it was asked with), weight (how many questions of the benchmark it stands for), logprobs (natural
    logarithms, one per choice). `skipped` has a dict per row left out: file, line, subject, index, reason.
    `root` is the folder the questions came from, `speed` in GFLOP/s (0 where nothing had to be scored).
    """

    task: str
    split: str
    form: Form
    shots: int
    root: Path
    subjects: dict[str, dict[str, str]]
    predictions: list[dict]
    skipped: list[dict]
    speed: float = 0.0

    def _by(self, names: dict[str, str], order=()) -> dict[str, Score]:
        found = {name: [] for name in order}
        for row in self.predictions:
            found.setdefault(names[row["subject"]], []).append((row["correct"], row["weight"]))
        return {name: Score.of(*zip(*each, strict=True)) for name, each in found.items() if each}

    @property
    def overall(self) -> Score:
        """All right answers over all questions: the micro average, which the paper's numbers are."""
        return self._by(dict.fromkeys(self.subjects, "all"))["all"]

    @property
    def by_category(self) -> dict[str, Score]:
        return self._by({subject: of["category"] for subject, of in self.subjects.items()}, CATEGORIES)

    def __str__(self) -> str:
        shots = max(row["shots"] for row in self.predictions)
        fewer = sum(row["shots"] < shots for row in self.predictions)
        notes = f"; {fewer:,} with fewer examples" * bool(fewer)
        notes += f"; {len(self.skipped)} rows skipped" * bool(self.skipped)
        name = f"{self.task} {self.split}, {shots}-shot {_words(self.form)}"
        return f"{name}: {self.overall}, chance {CHANCE:.2f}{notes}"


def multiple_choice(
    model, tokenizer, task, *, root=None, split=None, subjects=None, shots=5, limit=None, shuffle=0,
    prompt="chat", language=None, scoring="letter", option=Form.option, batch_size=None, cache=None,
) -> EvalResult:  # fmt: skip
    """Few-shot multiple choice as the paper's authors scored it (section 4.2), in plain text, or by cloze.

    `task`: "ceval", "cmmlu" or "mmlu"; `subjects`: a list, or None for all. `root`: the folder that holds the
    task's folder, or that folder, or "hub" for a download; the bundled questions by default. `split`: test,
    for C-Eval val. `limit`: at most so many questions a subject, drawn at random; the score is weighted.

    The examples are the first `shots` of the subject's dev file, and are read once. With `shuffle`, a number,
    they are shuffled for every question, as the authors' were; another number is another order. A prompt
    longer than the model's context loses examples from the front. `prompt`, `language`, `option` and
    `scoring` are those of `fewshot.Form`; plain text is in the benchmark's language unless told otherwise.

    It prints what it will take. `cache`: a folder for the scores as they are made; run again, only what is
    missing is scored. `batch_size`: rows; 8 on a CPU, else 32. Unusable rows are listed in the result. Raises
    EvalError for an unknown task, subject or form, a missing file, and when no row at all can be scored.
    """
    known, root = benchmarks.load_subjects(task, root), benchmarks.folder(task, root)
    split, own = split or TASKS[task]["split"], TASKS[task]["language"]
    form = Form(prompt, language or (own if prompt == "plain" else "en"), option, scoring, shuffle)
    subjects = list(known) if subjects is None else subjects
    given = [("split", split, ("val", "test")), *((k, getattr(form, k), names) for k, names in FORMS.items())]
    for kind, value, allowed in given + [("subject", subject, known) for subject in subjects]:
        if value not in allowed:
            raise EvalError(f"There is no {kind} {value!r} in {task}. Choose from: {', '.join(allowed)}.")
    chosen = {subject: known[subject] for subject in subjects}

    context, template = model.config.max_position_embeddings, tokenizer.chat_template
    groups, skipped, weights = [], [], {}
    for subject, entry in chosen.items():
        examples, unusable = load_questions(task, subject, "dev", root) if shots else ([], [])
        questions, unusable_too = load_questions(task, subject, split, root)
        skipped += unusable + unusable_too
        # draw: a larger limit keeps the questions of a smaller one
        drawn = random.Random(subject).sample(questions, len(questions))[:limit] if limit else questions
        weights[subject] = len(questions) / max(1, len(drawn))
        asked = tuple((q, tuple(shown(examples, shots, shuffle, q))) for q in drawn)
        found, too_long = fewshot.fit(tokenizer, template, context, asked, entry["name"], form)
        groups += found
        where = dict(file=benchmarks.file_name(task, subject, split), line=None, subject=subject)
        reason = f"tokens without any example, and the model's context has {context}"
        skipped += [where | dict(index=q.index, reason=f"{length} {reason}") for q, length in too_long]
    if not groups:
        first = f"; the first is {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else ""
        raise EvalError(f"No question of {task} {split} can be scored: {len(skipped)} rows skipped{first}.")

    size = batch_size or (8 if model.device.type == "cpu" else 32)
    scored, speed = score(model, tokenizer, groups, f"{task} {_words(form)}", size, cache)
    return EvalResult(task, split, form, shots, root, chosen, judge(groups, scored, weights), skipped, speed)


def shown(examples: list, shots: int, shuffle: int, question) -> list:
    """The examples before a question: the first ones, or with `shuffle` some drawn for it alone."""
    draw = random.Random(f"{int(shuffle)} {question.subject} {question.index}")
    return draw.sample(examples, min(shots, len(examples))) if shuffle else examples[:shots]


def _words(form: Form) -> str:
    asked = "cloze" if form.scoring == "cloze" else f"{form.prompt} letter {form.language}"
    asked += f", shuffled {int(form.shuffle)}" * bool(form.shuffle)
    return asked + ", other options" * (form.option != Form.option)


def score(model, tokenizer, groups: list[Group], label, size, cache) -> tuple[dict[Question, list], float]:
    """Of each question the log-probabilities of its four candidates; and the speed in GFLOP/s.

    `size`: rows a batch. `label` names file and bar. Raises EvalError where a result is no number.
    """
    kept = KeptScores(Path(cache, f"{label.replace(' ', '-')}-{model_key(model)}.jsonl") if cache else None)
    keys = {q: question_key(group.prefix, four) for group in groups for q, four in group.rest.items()}
    work = []
    for group in sorted(groups, key=lambda group: -len(group.prefix)):  # too little memory shows at once
        if missing := [question for question in group.rest if keys[question] not in kept]:
            work.append((group, group.batches(missing, size)))
    passes = sum(bool(group.prefix) + len(batches) for group, batches in work)
    tokens = sum(len(group.prefix) + sum(n for _, n in batches) for group, batches in work)
    total, left = len(keys), sum(len(batch) for _, batches in work for batch, _ in batches)
    print(f"{label}: {left:,} of {total:,} questions, {tokens:,} tokens{expected(model, passes, tokens)}")
    began = time.perf_counter()
    with batching.ready(model), tqdm(total=total, initial=total - left, desc=label, unit="question") as bar:
        for group, batches in work:
            prefix = fewshot.read_prefix(model, group.prefix)
            for batch, _ in batches:
                asked = [group.rest[question] for question in batch]
                values = fewshot.logprobs(model, prefix, asked, tokenizer.pad_token_id)
                if any(math.isnan(value) for four in values for value in four):
                    raise EvalError(f"{label}: the model's output is no number; load it in bf16 or fp32.")
                kept.add({keys[question]: four for question, four in zip(batch, values, strict=True)})
                bar.update(len(batch))
    speed = flops(model.config, tokens) / (time.perf_counter() - began) / 1e9
    return {question: kept[key] for question, key in keys.items()}, speed


def flops(config, tokens: int) -> float:
    """Operations to read `tokens`: two for a parameter in use. The head is left out: few tokens need it."""
    parts = memory.predict(config, train=False).parts  # half a byte a parameter
    used = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    return 4 * machine.GIB * (parts["experts"] * used + parts["attention"]) * tokens


def least_seconds(config, passes: int, tokens: int) -> tuple[float, str]:
    """Seconds for `passes` over `tokens` in all, and the card they are of: this machine's, else an H100.

    A pass reads the weights, and writes and reads the 4-bit ones in 16 bits. Training makes three passes
    a batch (forward, recomputed forward, backward), over three times the tokens.
    """
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    card = next((name for name in CARDS if name.split()[1] in here), "an H100")
    bandwidth, speed = CARDS[card]
    budget = memory.predict(config, train=False)
    moved = budget.weights + 8 * (budget.parts["experts"] + budget.parts["attention"])
    return passes * moved * machine.GIB / bandwidth + flops(config, tokens) / speed, card


def expected(model, passes: int, tokens: int) -> str:
    """The time that `passes` of the model over `tokens` will take, in words; nothing where it is unknown.

    By the speed recorded, else on a GPU the least that it can be.
    """
    device = "tiny" if model.device.type == "cpu" else "h100"
    if speed := results.recorded("05", device).get(SPEED):
        return f": about {flops(model.config, tokens) / speed / 1e9:,.0f} s by the speed recorded"
    seconds, card = least_seconds(model.config, passes, tokens)
    return f": on {card} at least {seconds / 60:.1f} minutes (predicted)" * (device == "h100")


def judge(groups: list[Group], scored: dict[Question, list], weights: dict[str, float]) -> list[dict]:
    """A row for each question, in the order of the files: the likeliest candidate is the prediction."""
    rows, subjects = [], list(weights)
    for question, shots in ((question, group.shots) for group in groups for question in group.rest):
        said = LETTERS[(four := scored[question]).index(max(four))]
        row = dict(subject=question.subject, index=question.index, prediction=said, logprobs=four)
        row |= dict(answer=question.answer, correct=said == question.answer, shots=shots)
        rows.append(row | dict(weight=weights[question.subject]))
    return sorted(rows, key=lambda row: (subjects.index(row["subject"]), row["index"]))


class KeptScores(dict):
    """Key of a question -> log-probabilities of its candidates; also in a file, unless `path` is None.

    A question's key is a digest of the very ids the model reads, and the file's name has one of the model:
    so nothing stale is taken for fresh.
    """

    def __init__(self, path: Path | None):
        self.path = path
        for line in path.read_bytes().splitlines() if path and path.is_file() else []:
            with contextlib.suppress(ValueError, TypeError):  # a line that a kill cut off does not count
                self.update(json.loads(line))

    def add(self, scores: dict[str, list[float]]) -> None:
        """Keep a batch. It begins with a line break: no line cut off earlier can spoil it."""
        self.update(scores)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("\n" + json.dumps(scores))


def question_key(prefix: list[int], four: list[Candidate]) -> str:
    """32 hex digits for a question: a digest of the ids of its prompt, and of what is scored after it."""
    return hashlib.blake2b(json.dumps([prefix, four]).encode(), digest_size=16).hexdigest()


def model_key(model) -> str:
    """16 hex digits for a model: configuration, weights (a sample of each), adapters that are switched on."""
    facts = [{name: value for name, value in model.config.to_dict().items() if name not in PASSING}]
    tuners = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    off = all(tuner.disable_adapters and not tuner.merged_adapters for tuner in tuners)
    facts += [(t.active_adapters, t.merged_adapters, getattr(t, "scaling", None)) for t in tuners if not off]
    for name, weight in model.named_parameters():
        if not off or ".lora_" not in name:
            sample = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE)]
            facts.append((name, str(weight.dtype), weight.shape, sample.tolist()))
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
