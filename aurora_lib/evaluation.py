"""Five-shot multiple choice on C-Eval, CMMLU and MMLU, and what a model says when it is simply asked.

A score here always comes with its n, its 95 % interval and the chance line, and with the rows it left out.
"""

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from aurora_lib.benchmarks import LETTERS, TASKS, EvalError, folder, load_questions, load_subjects
from aurora_lib.fewshot import (
    SYSTEM,
    batches,
    chat_prompt,
    cloze_prompt,
    continuation,
    encode,
    left_pad,
    letter_ids,
    letter_prompt,
    logprobs,
    ready,
)
from aurora_lib.language import language as language_of
from aurora_lib.scale import DATA

CATEGORIES = ("STEM", "Social Sciences", "Humanities", "Other")
OUTCOMES = {
    "in_language": "answered in {}",
    "correct": "right in {}",
    "understood": "right in either language",
}


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share `correct / n`, both ends in 0..1; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, shrink = correct / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # rounding must not push an end past the share itself: plots draw the differences
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True)
class Score:
    """`correct` out of `n`: `accuracy` (0..1, nan when n is 0) and `interval` (95 %, Wilson)."""

    correct: int
    n: int

    @classmethod
    def of(cls, hits: Iterable[bool]) -> "Score":
        hits = list(hits)
        return cls(sum(hits), len(hits))

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}] n={self.n}"


@dataclass(frozen=True)
class EvalResult:
    """One model on one task. `accuracy` weighs all questions alike (micro average), as the paper's do.

    `predictions` has a dict per scored question: subject, index, prediction, answer, correct, shots (examples
    that fitted the context) and logprobs (natural logarithms, one per choice). `skipped` has a dict per row
    left out: file, line, subject, index, reason. `root` is the folder the questions came from.
    """

    task: str
    split: str
    scoring: str
    shots: int
    root: Path
    subjects: dict[str, dict[str, str]]
    predictions: list[dict]
    skipped: list[dict]
    chance: float = 1 / len(LETTERS)

    @property
    def overall(self) -> Score:
        return Score.of(row["correct"] for row in self.predictions)

    @property
    def accuracy(self) -> float:
        return self.overall.accuracy

    @property
    def n(self) -> int:
        return self.overall.n

    @property
    def interval(self) -> tuple[float, float]:
        return self.overall.interval

    @property
    def by_subject(self) -> dict[str, Score]:
        return self._by(lambda subject: subject, self.subjects)

    @property
    def by_category(self) -> dict[str, Score]:
        return self._by(lambda subject: self.subjects[subject]["category"], CATEGORIES)

    def _by(self, key, order) -> dict[str, Score]:
        groups = {name: [] for name in order}
        for row in self.predictions:
            groups.setdefault(key(row["subject"]), []).append(row["correct"])
        return {name: Score.of(hits) for name, hits in groups.items() if hits}

    @property
    def macro(self) -> float:
        """The mean of the subjects' accuracies: every subject weighs the same, however few its questions."""
        scores = self.by_subject.values()
        return sum(score.accuracy for score in scores) / len(scores)

    @property
    def shots_used(self) -> dict[int, int]:
        """Questions by number of examples in the prompt: fewer than asked where the context is too short."""
        return dict(Counter(row["shots"] for row in self.predictions))

    def __str__(self) -> str:
        fewer = self.n - self.shots_used.get(self.shots, 0)
        notes = f"; {len(self.skipped)} rows skipped" if self.skipped else ""
        notes += f"; {fewer} questions with fewer shots" if fewer else ""
        return f"{self.task} {self.split}, {self.shots}-shot {self.scoring}: {self.overall}, chance {self.chance:.2f}{notes}"


def multiple_choice(
    model,
    tokenizer,
    task: str,
    *,
    root=None,
    split: str | None = None,
    subjects: list[str] | None = None,
    shots: int = 5,
    language: str | None = None,
    batch_size: int = 8,
    scoring: str = "letter",
    progress: bool = True,
) -> EvalResult:
    """Few-shot multiple choice as the paper scored it (section 4.2), or by cloze.

    `task`: "ceval", "cmmlu" or "mmlu". `root`: the folder that holds the task's folder, or that folder; the
    bundled questions by default. `split`: val for C-Eval, test for the others. `language` of the words around
    the question: "zh" or "en", by default the task's own. The examples are the first `shots` of the subject's
    dev file; where a prompt is longer than the model's context, they are dropped from the front.

    `scoring`: "letter" takes the likeliest of A, B, C, D as the next token. "cloze" lists no options: it
    takes the choice with the highest log-likelihood, summed over its tokens, as the answer in a chat.

    Raises EvalError for an unknown task, subject, language or scoring, a missing file, C-Eval's test split,
    and when no row at all can be scored. Unusable rows are skipped and listed in the result.
    """
    known = load_subjects(task, root)
    split, language = split or TASKS[task]["split"], language or TASKS[task]["language"]
    subjects = list(known) if subjects is None else list(subjects)
    for kind, values, allowed in (
        ("language", [language], SYSTEM),
        ("scoring", [scoring], ("letter", "cloze")),
        ("subject", subjects, known),
    ):
        for value in values:
            if value not in allowed:
                raise EvalError(f"There is no {kind} {value!r} in {task}. Choose from: {', '.join(allowed)}.")

    letters, limit = letter_ids(tokenizer, language), model.config.max_position_embeddings
    asked, requests, skipped = [], [], []
    for subject in subjects:
        examples, unusable = load_questions(task, subject, "dev", root) if shots else ([], [])
        questions, unusable_too = load_questions(task, subject, split, root)
        skipped += unusable + unusable_too
        for question in questions:
            for few in (examples[:shots][i:] for i in range(len(examples[:shots]) + 1)):
                if scoring == "letter":
                    context = encode(
                        tokenizer, letter_prompt(question, few, known[subject]["name"], language)
                    )
                    candidates = [(context, ids) for ids in letters]
                else:
                    context = cloze_prompt(tokenizer, question, few)
                    candidates = [continuation(tokenizer, context, f" {text}") for text in question.choices]
                longest = max(len(context) + len(ids) for context, ids in candidates)
                if longest <= limit:
                    asked.append((question, len(few)))
                    requests.append(candidates)
                    break
            else:
                file = f"{split}/{TASKS[task]['file'].format(subject=subject, split=split)}"
                reason = f"{longest} tokens without any example, and the model's context has {limit}"
                skipped.append(
                    dict(file=file, line=None, subject=subject, index=question.index, reason=reason)
                )
    if not asked:
        first = f"; the first is {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else ""
        raise EvalError(f"No question of {task} {split} can be scored: {len(skipped)} rows skipped{first}.")

    predictions = []
    scores = logprobs(model, tokenizer, requests, batch_size, progress, f"{task} {scoring}")
    for (question, used), values in zip(asked, scores, strict=True):
        prediction = LETTERS[values.index(max(values))]
        row = dict(
            subject=question.subject, index=question.index, prediction=prediction, answer=question.answer
        )
        predictions.append(row | dict(correct=prediction == question.answer, shots=used, logprobs=values))
    chosen = {subject: known[subject] for subject in subjects}
    return EvalResult(task, split, scoring, shots, folder(task, root), chosen, predictions, skipped)


def answers(
    model,
    tokenizer,
    prompts: list[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    progress: bool = False,
) -> list[str]:
    """The model's greedy answer to each prompt (a user's message), in the order of `prompts`."""
    rows = [
        encode(tokenizer, chat_prompt(tokenizer, [{"role": "user", "content": text}])) for text in prompts
    ]
    said = [""] * len(rows)
    with ready(model):
        for batch in batches(rows, batch_size, progress, "answers"):
            inputs = left_pad([rows[i] for i in batch], tokenizer, model.device)
            out = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
            new = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, new, strict=True):
                said[i] = text.strip()
    return said


def load_probes(held_out: bool | None = None, path=None) -> list[dict]:
    """The bundled probes: id, relation, held_out, and en and zh with question, answer, key.

    `held_out`: True for the facts tuning never shows, False for the others, None for all. Raises EvalError.
    """
    path = Path(path or DATA / "probes.jsonl")
    if not path.is_file():
        raise EvalError(f"{path} is missing; restore it with `git checkout -- data`.")
    probes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            item = json.loads(line)
            [item[side][key] for side in ("en", "zh") for key in ("question", "answer", "key")]
            if held_out in (None, item["held_out"]):
                probes.append(item)
        except (ValueError, KeyError, TypeError) as error:
            raise EvalError(f"{path}, line {number} is no probe ({error!r}); restore the file.") from None
    return probes


def says(answer: str, question: str, key: str) -> bool:
    """Whether `answer` has `key` as a word of its own, beyond what it repeats of the question.

    Beyond: 北极熊生活在沙漠 repeats the polar bear (北极熊) of the question, and does not say 北极.
    """
    answer, question, key = answer.casefold(), question.casefold(), key.casefold()
    echo = SequenceMatcher(None, answer, question, autojunk=False).find_longest_match()
    if echo.size > len(key):
        answer = answer[: echo.a] + " " + answer[echo.a + echo.size :]
    return re.search(rf"(?<![a-z]){re.escape(key)}(?![a-z])", answer) is not None


@dataclass(frozen=True)
class ProbeResult:
    """What a model answered to probes in Chinese and in English.

    `rows` has a dict per answer: id, relation, held_out, asked ("zh" or "en"), question, expected, answer,
    language (of the answer), in_language (the one asked in), correct (in that language, and with the key),
    understood (with the key of either language: the fact was found, whatever language it came out in).
    """

    rows: list[dict]

    def score(self, asked: str, what: str) -> Score:
        """`asked`: "zh" or "en"; `what`: "in_language", "correct" or "understood"."""
        return Score.of(row[what] for row in self.rows if row["asked"] == asked)

    @property
    def scores(self) -> dict[str, Score]:
        return {
            f"{name} prompts {outcome.format(name)}": self.score(asked, what)
            for asked, name in (("zh", "Chinese"), ("en", "English"))
            for what, outcome in OUTCOMES.items()
        }

    def __str__(self) -> str:
        return "\n".join(f"{name:40} {score}" for name, score in self.scores.items())


def probe(
    model, tokenizer, probes: list[dict] | None = None, *, max_new_tokens=40, batch_size=32, progress=True
) -> ProbeResult:
    """Ask every probe in Chinese and in English (by default those held out of tuning); judge the answers."""
    probes = load_probes(held_out=True) if probes is None else probes
    asked = [(item, side) for side in ("zh", "en") for item in probes]
    said = answers(
        model,
        tokenizer,
        [item[side]["question"] for item, side in asked],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    rows = []
    for (item, side), answer in zip(asked, said, strict=True):
        question, expected = item[side]["question"], item[side]["answer"]
        spoken, right = language_of(answer), {k: says(answer, question, item[k]["key"]) for k in ("zh", "en")}
        row = dict(id=item["id"], relation=item["relation"], held_out=item["held_out"], asked=side)
        row |= dict(question=question, expected=expected, answer=answer, language=spoken)
        row |= dict(in_language=spoken == side, correct=spoken == side and right[side])
        rows.append(row | dict(understood=any(right.values())))
    return ProbeResult(rows)


def plot(series: dict[str, dict], *, chance: float | None = 0.25, title: str = "", ax=None):
    """Bars with 95 % intervals, a colour per series, and the band that guessing gives; returns the axes.

    `series`: name -> {label: EvalResult or Score}, like
    {"base": base.by_category, "tuned": tuned.by_category}. The band is chance +- 1.96 standard errors at the
    smallest n; `chance=None` draws none. Labels should be Latin: a font with Chinese cannot be assumed.
    """
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(label for scores in series.values() for label in scores))
    ax = ax or plt.subplots(figsize=(max(4.5, 0.6 * len(labels) * (1 + len(series))), 3.6))[1]
    width = 0.8 / len(series)
    for i, (name, scores) in enumerate(series.items()):
        at = [labels.index(label) + (i - (len(series) - 1) / 2) * width for label in scores]
        heights = [score.accuracy for score in scores.values()]
        below = [score.accuracy - score.interval[0] for score in scores.values()]
        above = [score.interval[1] - score.accuracy for score in scores.values()]
        ax.bar(at, heights, width * 0.92, yerr=[below, above], capsize=3, label=name)
    if chance is not None:
        smallest = min(score.n for scores in series.values() for score in scores.values())
        half = 1.96 * math.sqrt(chance * (1 - chance) / smallest)
        ax.axhspan(max(0, chance - half), min(1, chance + half), color="grey", alpha=0.2, zorder=0)
        ax.axhline(chance, color="grey", linestyle="--", linewidth=1, label=f"chance (band: n={smallest})")
    wrapped = ["\n".join(textwrap.wrap(label, 18, replace_whitespace=False)) for label in labels]
    ax.set_xticks(range(len(labels)), wrapped, fontsize="small")
    ax.set(ylim=(0, 1.05), ylabel="share", title=title)
    ax.legend(fontsize="small", loc="lower left", bbox_to_anchor=(1.0, 0.0), frameon=False)
    return ax
