"""Five-shot multiple choice on C-Eval, CMMLU and MMLU: from a released file to a score.

A score here always comes with its n, its 95 % interval and the chance line, and with the rows it left out.
The mechanism is in `fewshot`, the files are in `benchmarks`, the statistics in `scores`; free answers are in `probes`
and `skills`.
"""

import math
import os
from functools import lru_cache

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from aurora_lib.evaluation.benchmarks import LETTERS, TASKS, EvalError, folder, load_questions, load_subjects
from aurora_lib.evaluation.cache import ScoreCache
from aurora_lib.evaluation.fewshot import SYSTEM, Group, candidates, logprobs, read
from aurora_lib.evaluation.scores import EvalResult
from aurora_lib.model.batching import padding, ready


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
    cache=None,
    progress: bool = True,
) -> EvalResult:
    """Few-shot multiple choice as the paper scored it (section 4.2), or by cloze.

    `task`: "ceval", "cmmlu" or "mmlu". `root`: the folder that holds the task's folder, or that folder, or "hub"
    for a download; the bundled questions by default. `split`: val for C-Eval, whose test answers are not public, test
    for the others. `language` of the words around the question: "zh" or "en", by default the task's own. The examples
    are the first `shots` of the subject's dev file; where a prompt is longer than the model's context, they are
    dropped from the front. (LLaMA-Factory, which the paper used, shuffles the examples anew for every question.)

    `scoring`: "letter" takes the likeliest of A, B, C, D as the next token. "cloze" lists no options: it
    takes the choice with the highest log-likelihood, summed over its tokens, as the answer in a chat.

    `cache`: a folder for the scores as they are made; run again after an interruption, only what is missing is
    scored. Under `accelerate launch` the subjects are shared out, and every process returns the whole result.

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

    where, template = folder(task, root), tokenizer.chat_template if scoring == "cloze" else None
    sources = sorted([*where.glob("mapping.json"), *where.glob("*/*.csv")])
    files = tuple((str(path), path.stat().st_mtime_ns) for path in sources)
    limit = model.config.max_position_embeddings
    groups, skipped = _prompts(
        tokenizer, template, files, task, where, split, tuple(subjects), shots, language, scoring, limit
    )
    if not groups:
        first = f"; the first is {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else ""
        raise EvalError(f"No question of {task} {split} can be scored: {len(skipped)} rows skipped{first}.")

    predictions = {}
    scores = _scores(model, tokenizer, groups, batch_size, cache, f"{task} {scoring}", progress)
    for group, asked in zip(groups, scores, strict=True):
        for question, values in zip(group.questions, asked, strict=True):
            prediction = LETTERS[values.index(max(values))]
            row = dict(subject=question.subject, index=question.index, prediction=prediction)
            row |= dict(answer=question.answer, correct=prediction == question.answer, shots=group.shots)
            predictions[question.subject, question.index] = row | dict(logprobs=values)
    place = {subject: i for i, subject in enumerate(subjects)}
    ordered = [predictions[key] for key in sorted(predictions, key=lambda key: (place[key[0]], key[1]))]
    chosen = {subject: known[subject] for subject in subjects}
    return EvalResult(task, split, scoring, shots, where, chosen, ordered, [dict(row) for row in skipped])


@lru_cache(maxsize=4)  # base and tuned model, one after the other, read the same prompts
def _prompts(
    tokenizer, template, files, task, where, split, subjects, shots, language, scoring, limit
) -> tuple[list[Group], list[dict]]:
    """All questions as groups with a common prefix, and the rows that cannot be asked.

    `template` and `files` (names and times) only tell apart what was built from others.
    """
    names, groups, skipped = load_subjects(task, where), [], []
    for subject in subjects:
        examples, unusable = load_questions(task, subject, "dev", where) if shots else ([], [])
        questions, unusable_too = load_questions(task, subject, split, where)
        skipped += unusable + unusable_too
        few = examples[:shots]
        file = f"{split}/{TASKS[task]['file'].format(subject=subject, split=split)}"
        while questions:
            four = candidates(tokenizer, questions, few, names[subject]["name"], language, scoring)
            lengths = [max(len(context) + len(ids) for context, ids in each) for each in four]
            measured = list(zip(questions, four, lengths, strict=True))
            if asked := [(question, each) for question, each, length in measured if length <= limit]:
                groups.append(Group.of(subject, len(few), asked))
            too_long = [(question, length) for question, _, length in measured if length > limit]
            if not few:
                reason = f"tokens without any example, and the model's context has {limit}"
                for question, length in too_long:
                    row = dict(file=file, line=None, subject=subject, index=question.index)
                    skipped.append(row | dict(reason=f"{length} {reason}"))
                break
            questions, few = [question for question, _ in too_long], few[1:]
    return groups, skipped


def _scores(model, tokenizer, groups, batch_size, folder, label, progress) -> list[list[list[float]]]:
    """Per group and question, the log-probabilities of its four candidates."""
    rank, processes = _process()
    share = _share(groups, rank, processes)
    store = ScoreCache(folder, label, model, rank)
    found = [store.known(group) for group in groups]
    total, done = sum(len(found[g]) for g in share), sum(four is not None for g in share for four in found[g])
    bar = tqdm(total=total, initial=done, desc=label, unit="question", disable=not progress or rank > 0)
    with ready(model), bar:
        for g in share:
            group, cache = groups[g], None
            for batch in group.batches(batch_size):
                batch = [i for i in batch if found[g][i] is None]
                if not batch:
                    continue
                cache = cache or read(model, group.prefix)
                values = logprobs(model, cache, [group.rest[i] for i in batch], padding(tokenizer))
                if any(math.isnan(value) for four in values for value in four):
                    where = f"{label}, {group.subject}: the model's output"
                    raise EvalError(f"{where} is not a number; load the model in bfloat16 or float32.")
                store.add(group, batch, values)
                for i, four in zip(batch, values, strict=True):
                    found[g][i] = four
                bar.update(len(batch))
    if processes > 1:
        for g, scored in gather_object([(g, found[g]) for g in share]):
            found[g] = scored
    return found


def _process() -> tuple[int, int]:
    """This process's rank, and how many there are: one, unless `accelerate launch` or torchrun started several."""
    state = PartialState() if int(os.environ.get("WORLD_SIZE") or 1) > 1 else None
    return (state.process_index, state.num_processes) if state else (0, 1)


def _share(groups: list[Group], rank: int, processes: int) -> list[int]:
    """Which groups this process scores, those with the longest prompts first: too little memory shows at once.

    Whole groups, so that no prefix is read twice: each in turn, the largest first, to the process with least to do.
    """
    cost = [len(g.prefix) + sum(len(context) for four in g.rest for context, _ in four) for g in groups]
    load, shares = [0] * processes, [[] for _ in range(processes)]
    for g in sorted(range(len(groups)), key=lambda g: -cost[g]):
        least = load.index(min(load))
        shares[least].append(g)
        load[least] += cost[g]
    return sorted(shares[rank], key=lambda g: -len(groups[g].prefix))
