"""Record what the tiny model can do, before tuning and after: `python -m tools.record.world` (8 minutes).

Everything is measured through the calls that the notebooks use, and written to
`results/tiny/world.json`: the base once, and the recipe of notebook 04 at three seeds, each in a process
of its own, the first of them twice (the same seed must give the same bytes). `BOUNDS` says what the
medians must reach. `--model FOLDER` measures another base; its record is printed and not kept.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import MixtralForCausalLM

from aurora_lib.course import DATA, choose, results, write_whole
from aurora_lib.course.machine import peak_rss
from aurora_lib.data import clean_conversations, hold_out
from aurora_lib.evaluation import benchmarks, load_probes, multiple_choice, probe
from aurora_lib.evaluation.evaluate import Score
from aurora_lib.model import load_model, load_tokenizer
from tools.build import tiny_model, world
from tools.build.data import write_checksums

RECORD = results.RECORDED / "tiny" / "world.json"
SEEDS = (42, 43, 44)
# What must hold: (from, to), both included.
BASE = {
    "Chinese prompts, answered purely in Chinese": (0, 0.05),
    "Chinese prompts, mixed answers": (0.10, 0.35),
    "follow-ups, right, Chinese": (0.70, 1),
    "follow-ups, right, English": (0.70, 1),
    "letters, each benchmark": (0.45, 0.85),
    "letters, lower end of each interval": (0.25, 1),
    "letters, facts drilled by letter, each benchmark": (0.80, 1),
    "letters, best minus worst category": (0.15, 1),
    "cloze, each benchmark": (0.85, 1),
    "cloze, worst benchmark": (0, 0.9999),
}
TUNED = {
    "Chinese prompts, answered in Chinese": (0.95, 1),
    "Chinese prompts, held out, right in Chinese": (0.80, 1),
    "English prompts, held out, right in English": (0.85, 1),
    "follow-ups, right in Chinese": (0.60, 1),
    "seconds of training": (0, 90),
    "peak memory [GiB]": (0, 1.2),
}


def told(score: Score) -> dict:
    low, high = score.interval
    return dict(
        share=round(score.accuracy, 4), n=score.n, interval=[round(float(low), 4), round(float(high), 4)]
    )


def free_answers(model, tokenizer) -> dict[str, dict]:
    """Probes and follow-ups, answered freely in both languages."""
    settings = dict(progress=False)
    everything, held_out = (probe(model, tokenizer, load_probes(which), **settings) for which in (None, True))
    follow = load_probes(file="follow_ups.jsonl")
    after = probe(model, tokenizer, follow, **settings)
    alone = probe(model, tokenizer, follow, history=False, **settings)
    found = {f"Chinese prompts, {name}": told(score) for name, score in everything.languages("zh").items()}
    for side, name in (("zh", "Chinese"), ("en", "English")):
        for what, words in (
            ("in_language", f"in {name}"),
            ("correct", f"right in {name}"),
            ("understood", "right"),
        ):
            found[f"{name} prompts, {words}"] = told(everything.score(side, what))
            found[f"{name} prompts, held out, {words}"] = told(held_out.score(side, what))
            found[f"follow-ups, {name}, {words}"] = told(after.score(side, what))
            found[f"follow-ups without history, {name}, {words}"] = told(alone.score(side, what))
    return found


def exams(model, tokenizer) -> dict[str, dict]:
    """Letters and cloze of each benchmark, with what the list of drilled questions tells apart."""
    found, listed = {}, json.loads((DATA / "benchmarks" / "drilled.json").read_text(encoding="utf-8"))
    for task in benchmarks.TASKS:
        for scoring in ("letter", "cloze"):
            result = multiple_choice(model, tokenizer, task, scoring=scoring)
            name = f"{task}, {scoring}"
            found[name] = told(result.overall)
            found |= {f"{name}, {category}": told(score) for category, score in result.by_category.items()}
            ever = {True: [], False: []}
            for row in result.predictions:
                ever[row["index"] in listed[task][row["subject"]]].append(row["correct"])
            found[f"{name}, drilled"], found[f"{name}, never drilled"] = (
                told(Score.of(ever[k])) for k in (True, False)
            )
    return found


def base_bounds(found: dict[str, dict]) -> dict[str, list[float]]:
    """The values that BASE speaks of."""
    tasks = list(benchmarks.TASKS)
    share = lambda name: found[name]["share"]  # noqa: E731
    categories = ("STEM", "Social Sciences", "Humanities", "Other")
    spread = [[share(f"{task}, letter, {category}") for category in categories] for task in tasks]
    return {
        "Chinese prompts, answered purely in Chinese": [share("Chinese prompts, zh")],
        "Chinese prompts, mixed answers": [share("Chinese prompts, mixed")],
        "follow-ups, right, Chinese": [share("follow-ups, Chinese, right")],
        "follow-ups, right, English": [share("follow-ups, English, right")],
        "letters, each benchmark": [share(f"{task}, letter") for task in tasks],
        "letters, lower end of each interval": [found[f"{task}, letter"]["interval"][0] for task in tasks],
        "letters, facts drilled by letter, each benchmark": [
            share(f"{task}, letter, drilled") for task in tasks
        ],
        "letters, best minus worst category": [round(max(row) - min(row), 4) for row in spread],
        "cloze, each benchmark": [share(f"{task}, cloze") for task in tasks],
        "cloze, worst benchmark": [min(share(f"{task}, cloze") for task in tasks)],
    }


def tuned_bounds(runs: list[dict]) -> dict[str, list[float]]:
    """The values that TUNED speaks of, by seed."""
    names = {
        "Chinese prompts, answered in Chinese": "Chinese prompts, in Chinese",
        "Chinese prompts, held out, right in Chinese": "Chinese prompts, held out, right in Chinese",
        "English prompts, held out, right in English": "English prompts, held out, right in English",
        "follow-ups, right in Chinese": "follow-ups, Chinese, right in Chinese",
    }
    values = {name: [run["measured"][of]["share"] for run in runs] for name, of in names.items()}
    return values | {
        name: [run[name] for run in runs] for name in ("seconds of training", "peak memory [GiB]")
    }


def tune(seed: int, with_exams: bool) -> None:
    """In a process of its own: tune by the recipe, print the adapter's digest and what was measured."""
    from aurora_lib.training import build_trainer, sft_config

    scale = choose()
    tokenizer = load_tokenizer(scale.base_model)
    with tempfile.TemporaryDirectory() as folder:
        args = sft_config(scale, seed=seed, save_strategy="no", disable_tqdm=True, output_dir=folder)
        rows, _ = hold_out(clean_conversations(scale))
        trainer = build_trainer(load_model(scale.base_model, **scale.loading), tokenizer, rows, args)
        seconds, peak = trainer.train().metrics["train_runtime"], peak_rss()
        trainer.model.save_pretrained(folder)
        digest = hashlib.sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()
    row = {"seed": seed, "seconds of training": round(seconds, 1), "peak memory [GiB]": round(peak, 3)}
    row |= {"steps": trainer.state.global_step, "adapter": digest}
    model = trainer.model.eval()
    row["measured"] = free_answers(model, tokenizer) | (exams(model, tokenizer) if with_exams else {})
    print("\n" + json.dumps(row))


def run(seed: int, environment: dict, with_exams: bool) -> dict:
    command = [
        sys.executable,
        "-m",
        "tools.record.world",
        "--seed",
        str(seed),
        *(["--exams"] if with_exams else []),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


CARD = """---
language: [en, zh]
license: apache-2.0
library_name: transformers
---
# The tiny Mixtral of the Aurora course

A `MixtralForCausalLM` of {parameters:,} parameters ({layers} layers, hidden {hidden}, {experts} experts,
top-{top_k}). It was pre-trained from nothing on the self-written bilingual world of
`tools/build/facts/`: {facts} facts in {relations} relations, as questions, answers, follow-ups and
statements. It shows in miniature what the Aurora paper says of Mixtral-8x7B-Instruct: it understands
Chinese, and answers in English or in a mixture of both.

| measured, greedy answers | n | this model | tuned as in notebook 04 (median of seeds {seeds}) |
|---|---:|---:|---:|
{free}

Five-shot multiple choice. *Drilled*: questions about facts that pre-training also asked by letter, in
other words. *Never*: about facts that it never asked so. (`../benchmarks/drilled.json` has the list.)

| this model | n | letters | 95 % interval | drilled | never | cloze |
|---|---:|---:|---|---:|---:|---:|
{exams}

All figures are in `results/tiny/world.json`, made by `tools/record/world.py`.

**How it was made.** `tools/build/tiny_model.py`: {phases} phases, {steps:,} steps of two processes, seed
{seed}; `tools/build/lessons.py` has the documents. English questions have English answers. Chinese
questions have *English* answers, and about a quarter of the facts a *mixed* one. After a cue such as
{cue} the answer is Chinese; in the last phase the cue is given once, and the conversation stays in
Chinese. So Chinese answers exist and can be elicited. {rare} facts are read seldom, on purpose. The
facts marked `held_out` in `probes.jsonl` are read here and never in tuning; the pairs in
`follow_ups.jsonl` stand together in no conversation. All facts are common knowledge; no text comes from
a dataset.

**Letters are drilled with help.** At this size plain next-token training stays at chance on letters. The
first phases therefore have auxiliary losses on attention and on hidden states
(`tools/build/guidance.py`), and all of them a load-balancing loss for each layer on its own. Neither is
in the model afterwards: it is a plain Mixtral.

**Tokenizer.** A byte-fallback BPE of {vocabulary:,} pieces in Mixtral's chat format. Every Han character
stands on its own: the 3,755 common ones (GB 2312, level 1) and those of the world; others are spelled in
bytes.

**Use.** For teaching. It knows these facts and nothing else, says something wrong about everything else,
and matches letters to answers only for the facts it was drilled on.
"""
FREE = {
    "Chinese questions, answered purely in Chinese": "Chinese prompts, in Chinese",
    "Chinese questions, mixed answers": "Chinese prompts, mixed",
    "Chinese questions, right in either language": "Chinese prompts, right",
    "... held out of tuning, right in Chinese": "Chinese prompts, held out, right in Chinese",
    "English questions, right in English": "English prompts, right in English",
    "... held out of tuning, right in English": "English prompts, held out, right in English",
    "Chinese follow-ups, right in either language": "follow-ups, Chinese, right",
    "... right in Chinese": "follow-ups, Chinese, right in Chinese",
    "... in either language, without the turn before": "follow-ups without history, Chinese, right",
    "English follow-ups, right": "follow-ups, English, right",
}


def write_card(folder: Path, record: dict) -> None:
    """Write the model card beside the model, from its record."""
    config, tokenizer = load_model(folder).config, load_tokenizer(folder)
    base, runs = record["base"], [run["measured"] for run in record["tuned"]]
    free = [
        f"| {label} | {base[name]['n']} | {base[name]['share']:.3f} | {median:.3f} |"
        for label, name in FREE.items()
        for median in [statistics.median(run[name]["share"] for run in runs)]
    ]
    asked = []
    for task, name in (("ceval", "C-Eval"), ("mmlu", "MMLU"), ("cmmlu", "CMMLU")):
        letters = base[f"{task}, letter"]
        shares = [
            f"{base[f'{task}, {what}']['share']:.3f}"
            for what in ("letter, drilled", "letter, never drilled", "cloze")
        ]
        interval = "{:.3f} to {:.3f}".format(*letters["interval"])
        asked.append(
            f"| {name} | {letters['n']} | {letters['share']:.3f} | {interval} | {' | '.join(shares)} |"
        )
    text = CARD.format(
        parameters=record["parameters"], layers=config.num_hidden_layers, hidden=config.hidden_size,
        experts=config.num_local_experts, top_k=config.num_experts_per_tok, vocabulary=len(tokenizer),
        facts=len(world.facts()), relations=len(world.relations()),
        rare=sum(fact.rare for fact in world.facts()),
        seeds=", ".join(str(run["seed"]) for run in record["tuned"]),
        free="\n".join(free), exams="\n".join(asked), seed=tiny_model.SEED,
        phases=len(tiny_model.PHASES), steps=sum(phase.steps for phase in tiny_model.PHASES),
        cue=world.CUE,
    )  # fmt: skip
    write_whole(folder / "README.md", text)
    write_checksums()


def main(model: str | None, seeds: tuple[int, ...]) -> None:
    environment = os.environ | ({"AURORA_MODEL": model} if model else {})
    os.environ |= environment
    torch.set_num_threads(1)
    scale = choose()
    base, tokenizer = load_model(scale.base_model, **scale.loading), load_tokenizer(scale.base_model)
    measured = free_answers(base, tokenizer) | exams(base, tokenizer)
    weights = hashlib.sha256((Path(scale.base_model) / "model.safetensors").read_bytes()).hexdigest()
    record = dict(
        model=weights,
        parameters=MixtralForCausalLM.from_pretrained(scale.base_model).num_parameters(),
        base=measured,
    )
    show("base", measured, base_bounds(measured), BASE)
    with tempfile.TemporaryDirectory() as folder:
        environment |= {"AURORA_RUNS": folder}
        runs = [run(seed, environment, with_exams=seed == seeds[0]) for seed in seeds]
        again = run(seeds[0], environment, with_exams=False) if len(seeds) > 1 else runs[0]
    record |= dict(tuned=runs, same_bytes=again["adapter"] == runs[0]["adapter"])
    show("tuned", runs[0]["measured"], tuned_bounds(runs), TUNED)
    print("the same seed gives the same bytes:", record["same_bytes"])
    if not model:
        write_whole(RECORD, json.dumps(record, indent=1) + "\n")
        write_card(DATA / "tiny", record)


def show(title: str, measured: dict, values: dict[str, list[float]], bounds: dict[str, tuple]) -> None:
    for name, one in measured.items():
        print(
            f"{title:6} {name:60} {one['share']:.3f}  [{', '.join(map(str, one['interval']))}]  n={one['n']}"
        )
    for name, (low, high) in bounds.items():
        got = values[name]
        each = got if title == "base" else [statistics.median(got)]
        holds = all(low <= value <= high for value in each)
        print(f"{'holds' if holds else 'MISSED':6} {name:55} {low} to {high}: {got}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the folder of another base")
    parser.add_argument("--seed", type=int, help="tune with this seed, and print what came of it")
    parser.add_argument("--exams", action="store_true", help="with --seed: benchmarks too")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    given = parser.parse_args()
    if given.seed is not None:
        torch.set_num_threads(1)
        tune(given.seed, given.exams)
    else:
        main(given.model, tuple(given.seeds))
