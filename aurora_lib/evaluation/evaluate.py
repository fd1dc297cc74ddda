"""From a benchmark to a score with its interval: read the questions, build prompts, score them, judge.

The files are in `benchmarks`, the mechanism is in `fewshot`. Log-probabilities are kept on disk as they are
made, so that an interrupted evaluation goes on where it stopped.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from peft.tuners.tuners_utils import BaseTunerLayer
from scipy.stats import binomtest
from tqdm.auto import tqdm

from aurora_lib.evaluation import benchmarks, fewshot
from aurora_lib.evaluation.benchmarks import LETTERS, TASKS, EvalError, load_questions
from aurora_lib.evaluation.fewshot import Candidate, Group
from aurora_lib.model import batching

SAMPLE = 256  # at least so many elements of each weight identify it
CATEGORIES = ("STEM", "Social Sciences", "Humanities", "Other")
CHANCE = 1 / len(LETTERS)
PASSING = ("use_cache", "output_router_logits", "_name_or_path", "transformers_version")  # change no score


@dataclass(frozen=True)
class Score:
    """`correct` out of `n`: `accuracy` (0..1, nan when n is 0) and `interval`."""

    correct: int
    n: int

    @classmethod
    def of(cls, hits: Iterable[bool]) -> "Score":
        hits = list(hits)
        return cls(sum(hits), len(hits))

    @classmethod
    def by(cls, hits: Iterable[tuple[str, bool]], order: Iterable[str] = ()) -> dict[str, "Score"]:
        """A score for each name in (name, hit); names of `order` come first."""
        found = {name: [] for name in order}
        for name, hit in hits:
            found.setdefault(name, []).append(hit)
        return {name: cls.of(each) for name, each in found.items() if each}

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy, both ends in 0..1; (0, 1) when n is 0."""
        return tuple(binomtest(self.correct, self.n).proportion_ci(method="wilson")) if self.n else (0.0, 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}] n={self.n}"


@dataclass(frozen=True)
class EvalResult:
    """One model on one task.

    `predictions` has a dict per scored question: subject, index, prediction, answer, correct, shots (how many
    examples it was asked with), logprobs (natural logarithms, one per choice). `skipped` has a dict per row
    left out: file, line, subject, index, reason. `root` is the folder the questions came from.
    """

    task: str
    scoring: str
    shots: int
    root: Path
    subjects: dict[str, dict[str, str]]
    predictions: list[dict]
    skipped: list[dict]

    @property
    def overall(self) -> Score:
        """All right answers over all questions: the micro average, which the paper's numbers are."""
        return Score.of(row["correct"] for row in self.predictions)

    @property
    def by_subject(self) -> dict[str, Score]:
        return Score.by((row["subject"], row["correct"]) for row in self.predictions)

    @property
    def by_category(self) -> dict[str, Score]:
        of = {subject: entry["category"] for subject, entry in self.subjects.items()}
        return Score.by(((of[row["subject"]], row["correct"]) for row in self.predictions), CATEGORIES)

    @property
    def macro(self) -> float:
        """The mean of the subjects' accuracies: every subject weighs the same, however few its questions."""
        scores = self.by_subject.values()
        return sum(score.accuracy for score in scores) / len(scores)

    def table(self) -> pd.DataFrame:
        """Categories, then the two averages: accuracy and both ends of the interval (per cent), and n."""
        rows = {}
        for name, score in (self.by_category | {"micro average (the paper's)": self.overall}).items():
            rows[name] = [100 * share for share in (score.accuracy, *score.interval)] + [score.n]
        for name, share in (("macro average, over subjects", self.macro), ("chance", CHANCE)):
            rows[name] = [100 * share, math.nan, math.nan, self.overall.n]
        return pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "low", "high", "n"])

    def __str__(self) -> str:
        notes = f"; {len(self.skipped)} rows skipped" if self.skipped else ""
        name = f"{self.task} {TASKS[self.task]['split']}, {self.shots}-shot {self.scoring}"
        return f"{name}: {self.overall}, macro {self.macro:.3f}, chance {CHANCE:.2f}{notes}"


def multiple_choice(
    model, tokenizer, task, *, root=None, subjects=None, shots=5, scoring="letter", batch_size=8, cache=None
) -> EvalResult:
    """Few-shot multiple choice as the paper scored it (section 4.2), or by cloze.

    `task`: "ceval", "cmmlu" or "mmlu"; `subjects`: a list, or None for all. `root`: the folder that holds the
    task's folder, or that folder, or "hub" for a download; the bundled questions by default. The examples are
    the first `shots` of the subject's dev file; a prompt longer than the model's context loses examples from
    the front. (The paper's stack, LLaMA-Factory, shuffles the examples anew for every question.)

    `scoring`: "letter" takes the likeliest of A, B, C, D as the next token. "cloze" lists no options: it
    takes the choice with the highest log-likelihood, summed over its tokens, as the answer in a chat.
    `cache`: a folder for the scores as they are made; run again, only what is missing is scored.

    Unusable rows are skipped and listed in the result. Raises EvalError for an unknown task, subject or
    scoring, a missing file, and when no row at all can be scored.
    """
    known, root = benchmarks.load_subjects(task, root), benchmarks.folder(task, root)
    subjects = list(known) if subjects is None else subjects
    for kind, values, allowed in (("scoring", [scoring], fewshot.SCORING), ("subject", subjects, known)):
        for value in values:
            if value not in allowed:
                raise EvalError(f"There is no {kind} {value!r} in {task}. Choose from: {', '.join(allowed)}.")
    chosen = {subject: known[subject] for subject in subjects}

    split, language = TASKS[task]["split"], TASKS[task]["language"]
    limit, template = model.config.max_position_embeddings, tokenizer.chat_template
    groups, skipped = [], []
    for subject, entry in chosen.items():
        # read
        examples, unusable = load_questions(task, subject, "dev", root) if shots else ([], [])
        questions, unusable_too = load_questions(task, subject, split, root)
        skipped += unusable + unusable_too
        # build prompts with the same examples, which are then read once
        asked = tuple(questions), tuple(examples[:shots]), entry["name"], language, scoring
        found, too_long = fewshot.fit(tokenizer, template, limit, *asked)
        groups += found
        for question, length in too_long:
            row = dict(file=benchmarks.file_name(task, subject, split), line=None, subject=subject)
            reason = f"{length} tokens without any example, and the model's context has {limit}"
            skipped.append(row | dict(index=question.index, reason=reason))
    if not groups:
        first = f"; the first is {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else ""
        raise EvalError(f"No question of {task} {split} can be scored: {len(skipped)} rows skipped{first}.")

    # score, then judge
    scored = score(model, tokenizer, groups, f"{task} {scoring}", batch_size, cache)
    return EvalResult(task, scoring, shots, root, chosen, judge(groups, scored), skipped)


def score(model, tokenizer, groups: list[Group], label, batch_size, cache) -> list[list[list[float]]]:
    """Per group and question, the log-probabilities of its four candidates.

    `cache`: folder of kept scores; `label` names file and bar. Raises EvalError where a result is no number.
    """
    kept = KeptScores(Path(cache, f"{label.replace(' ', '-')}-{model_key(model)}.jsonl") if cache else None)
    keys = [[question_key(group.prefix, four) for four in group.rest] for group in groups]
    known, total = sum(key in kept for each in keys for key in each), sum(map(len, keys))
    with batching.ready(model), tqdm(total=total, initial=known, desc=label, unit="question") as bar:
        # the longest prefix first: it needs most memory, and too little shows at once
        for group, names in sorted(zip(groups, keys, strict=True), key=lambda pair: -len(pair[0].prefix)):
            missing = [i for i, key in enumerate(names) if key not in kept]
            prefix = fewshot.read_prefix(model, group.prefix) if missing else None
            for batch in group.batches(missing, batch_size):
                asked = [group.rest[i] for i in batch]
                values = fewshot.logprobs(model, prefix, asked, batching.padding(tokenizer))
                if any(math.isnan(value) for four in values for value in four):
                    where = f"{label}, {group.questions[0].subject}: the model's output"
                    raise EvalError(f"{where} is not a number; load the model in bfloat16 or float32.")
                kept.add({names[i]: four for i, four in zip(batch, values, strict=True)})
                bar.update(len(batch))
    return [[kept[key] for key in names] for names in keys]


def judge(groups: list[Group], scored: list[list[list[float]]]) -> list[dict]:
    """A row for each question, in the order of the files: the likeliest candidate is the prediction."""
    rows = {}
    for group, values in zip(groups, scored, strict=True):
        for question, four in zip(group.questions, values, strict=True):
            said = LETTERS[four.index(max(four))]
            row = dict(subject=question.subject, index=question.index, prediction=said)
            row |= dict(answer=question.answer, correct=said == question.answer, shots=group.shots)
            rows.setdefault(question.subject, []).append(row | dict(logprobs=four))
    return [row for each in rows.values() for row in sorted(each, key=lambda row: row["index"])]


# ---- scores kept on disk


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
    """16 hex digits for a model: configuration, weights (a sample of each) and the state of its adapters."""
    facts = [{name: value for name, value in model.config.to_dict().items() if name not in PASSING}]
    for name, weight in model.named_parameters():
        sample = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE)]
        facts.append((name, str(weight.dtype), weight.shape, sample.tolist()))
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):  # an adapter that is switched off still has its weights
            state = module.disable_adapters, module.active_adapters, module.merged_adapters
            facts.append((name, *state, getattr(module, "scaling", None)))
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
