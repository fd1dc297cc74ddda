"""What tracing costs: the bundled model reads the same texts untraced, recorded, traced and counted, in alternation.

    .venv/bin/python -m tools.bench.routing [--tokens 10000] [--runs 9] [--threads 1]

Prints medians, and the peak memory of a process that only counts, for more and more tokens.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import cycle, islice

import torch
from tqdm.auto import tqdm

from aurora_lib import routing
from aurora_lib.course.scale import DATA
from aurora_lib.evaluation import probes
from aurora_lib.model import load_model, load_tokenizer
from aurora_lib.routing.tracing import BATCH_TOKENS, batches, encode, padded, read

# how much more than reading alone each of them may cost
LIMIT = 1.3


def endless_texts():
    """The bundled facts in both languages, ten to a text, over and over."""
    said = [fact[side]["answer"] for fact in probes.load_probes() for side in ("zh", "en")]
    said = [" ".join(said[i : i + 10]) for i in range(0, len(said), 10)]
    return cycle(said)


def texts_of(tokenizer, tokens: int) -> list[str]:
    """Texts of about so many tokens together."""
    chosen, total = [], 0
    for text in endless_texts():
        chosen.append(text)
        total += len(tokenizer(text, add_special_tokens=False).input_ids) + 1
        if total >= tokens:
            return chosen


def load():
    model = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    return model, load_tokenizer(DATA / "tiny")


def times(tokens: int, runs: int) -> None:
    model, tokenizer = load()
    texts = texts_of(tokenizer, tokens)
    rows = encode(model, tokenizer, texts)
    inputs = [padded(model, tokenizer, [rows[i] for i in batch])[0] for batch in batches(rows, BATCH_TOKENS)]

    def forward():
        with torch.no_grad():
            for each in inputs:
                model(**each, use_cache=False)

    def without_head():
        for each in inputs:
            read(model, each)

    def recorded():
        with routing.recording(model):
            forward()

    cases = {
        "forward": forward,
        "forward, logits of one position": without_head,
        "forward inside routing.recording": recorded,
        "routing.trace_many": lambda: routing.trace_many(model, tokenizer, texts),
        "routing.count": lambda: routing.count(model, tokenizer, texts),
    }
    seconds = {name: [] for name in cases}
    names = list(cases)
    for turn in tqdm(range(runs + 1), desc="rounds"):
        # another one first in every round: what runs behind whom changes what memory is warm
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - start)
    medians = {
        name: statistics.median(each[1:]) for name, each in seconds.items()
    }  # the first round warms up
    print(
        f"\n{sum(map(len, rows)):,} tokens in {len(texts)} texts, {len(inputs)} batches, medians of {runs} runs"
    )
    print(f"{'':34} {'seconds':>8} {'x forward':>10} {'x without head':>15}")
    for name, median in medians.items():
        ratios = (median / medians["forward"], median / medians["forward, logits of one position"])
        print(f"{name:34} {median:8.3f} {ratios[0]:10.2f} {ratios[1]:15.2f}")
    worst = max(medians[name] / medians["forward"] for name in names[2:])
    print(
        f"most expensive tracing: {worst:.2f}x the untraced forward ({'within' if worst <= LIMIT else 'OVER'} {LIMIT}x)"
    )


def memory(tokens: int) -> None:
    """In a process of its own, as peaks never go down: count so many tokens and print the peak in MiB."""
    model, tokenizer = load()
    per_text = len(tokenizer(next(endless_texts())).input_ids) + 1
    routing.count(model, tokenizer, islice(endless_texts(), 2000 // per_text))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = routing.count(model, tokenizer, islice(endless_texts(), tokens // per_text))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(dict(tokens=counts.tokens, loaded=before / 1024, peak=after / 1024)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        memory(options.memory_of)
        return
    times(options.tokens, options.runs)
    print("\npeak memory of a process that only counts [MiB]")
    for factor in (1, 4, 16):
        command = [
            sys.executable,
            __file__,
            "--memory-of",
            str(factor * options.tokens),
            "--threads",
            str(options.threads),
        ]
        said = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
        )
        print(
            f"{said['tokens']:>10,} tokens: {said['peak']:.0f} (model loaded and warm: {said['loaded']:.0f})"
        )


if __name__ == "__main__":
    main()
