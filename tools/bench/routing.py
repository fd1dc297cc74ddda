"""What tracing costs: the bundled model reads the same texts untraced, recorded and traced, in alternation.

    .venv/bin/python -m tools.bench.routing [--tokens 10000] [--runs 9] [--threads 1]

Prints medians.
"""

import argparse
import statistics
import time
from itertools import cycle

import torch
from tqdm.auto import tqdm

from aurora_lib import routing
from aurora_lib.course import DATA
from aurora_lib.evaluation import load_probes
from aurora_lib.model import load_model, load_tokenizer

# how much more than reading alone each of them may cost
LIMIT = 1.3


def texts_of(tokenizer, tokens: int) -> list[str]:
    """Texts of about so many tokens together: the bundled facts, ten to a text, over and over."""
    said = [fact[side]["answer"] for fact in load_probes() for side in ("zh", "en")]
    chosen, total = [], 0
    for text in cycle([" ".join(said[i : i + 10]) for i in range(0, len(said), 10)]):
        chosen.append(text)
        total += len(tokenizer(text, add_special_tokens=False).input_ids) + 1
        if total >= tokens:
            return chosen


def batches_of(model, tokenizer, texts: list[str]) -> list[dict]:
    """What `trace_many` passes to the model for these texts, batch by batch."""
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    routing.trace_many(model, tokenizer, texts)
    handle.remove()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    tokenizer = load_tokenizer(DATA / "tiny")
    texts = texts_of(tokenizer, options.tokens)
    batches = batches_of(model, tokenizer, texts)

    @torch.inference_mode()
    def forward(**head):
        for given in batches:
            model(**given | head)

    def recorded():
        with routing.recording(model):
            forward(logits_to_keep=0)

    cases = {
        "forward": lambda: forward(logits_to_keep=0),
        "forward, logits of one position": forward,
        "forward inside routing.recording": recorded,
        "routing.trace_many": lambda: routing.trace_many(model, tokenizer, texts),
    }
    seconds = {name: [] for name in cases}
    names = list(cases)
    for turn in tqdm(range(options.runs + 1), desc="rounds"):
        # another one first in every round: what runs behind whom changes what memory is warm
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - start)
    # the first round warms up
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    tokens = sum(int(given["attention_mask"].sum()) for given in batches)
    print(f"\n{tokens:,} tokens in {len(texts)} texts, {len(batches)} batches; medians of {options.runs}")
    print(f"{'':34} {'seconds':>8} {'x forward':>10} {'x without head':>15}")
    for name, median in medians.items():
        ratios = (median / medians["forward"], median / medians["forward, logits of one position"])
        print(f"{name:34} {median:8.3f} {ratios[0]:10.2f} {ratios[1]:15.2f}")
    worst = max(medians[name] / medians["forward"] for name in names[2:])
    verdict = "within" if worst <= LIMIT else "OVER"
    print(f"most expensive tracing: {worst:.2f}x the untraced forward ({verdict} {LIMIT}x)")


if __name__ == "__main__":
    main()
