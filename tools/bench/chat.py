"""How fast the tiny model talks: first token and tokens per second, by turn and number of threads.

    .venv/bin/python -m tools.bench.chat [--turns 30] [--runs 3] [--threads 1 2]

Prints the median over runs of the first and the last turn of a conversation. Ends with 1 where the first
token takes over 0.3 s or less than 30 tokens come per second, in any way but the slow one that the others are
compared with. Each number of threads has a process of its own. A CPU replays no CUDA graph: the step is
called.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import torch
from tqdm.auto import tqdm

from aurora_lib.chat import ChatSession
from aurora_lib.course import DATA
from aurora_lib.evaluation import load_probes
from aurora_lib.model import load_adapter, load_model, load_tokenizer

FIRST_TOKEN, PER_SECOND = 0.3, 30  # the limits: seconds, tokens
EVERYTHING_ANEW = "everything anew every turn"


def talk(session: ChatSession, questions: list[str], anew: bool) -> list[tuple[float, float, int]]:
    """Seconds to the first token, tokens per second and prompt tokens of every turn of one conversation."""
    session.reset()
    figures = []
    for question in questions:
        if anew:
            session.decoder.release()
        session.say(question)
        stats = session.stats
        figures.append((stats.first_token, stats.tokens_per_second, stats.prompt_tokens))
    return figures


def measure(turns: int, runs: int) -> list[dict]:
    """One row per way of decoding, in this process."""
    tokenizer, questions = load_tokenizer(DATA / "tiny"), questions_of(turns)
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    model = load_adapter(base, DATA / "tiny_adapter")
    ways = {  # adapter, everything anew
        "tuned": (True, False),
        EVERYTHING_ANEW: (True, True),
        "base (adapter off)": (False, False),
    }
    rows = []
    for way, (adapter, anew) in tqdm(ways.items(), disable=not sys.stderr.isatty()):
        session = ChatSession(model, tokenizer, adapter=adapter)
        talk(session, questions[:2], anew)  # warm
        talks = [talk(session, questions, anew) for _ in range(runs)]
        for turn in (0, turns - 1):
            first, speed, tokens = (statistics.median(t[turn][i] for t in talks) for i in range(3))
            row = dict(way=way, turn=turn + 1, prompt=int(tokens), first=first, speed=speed)
            rows.append(row | dict(threads=torch.get_num_threads(), load=os.getloadavg()[0]))
    return rows


def questions_of(count: int) -> list[str]:
    facts = load_probes(held_out=True)
    return [facts[i % len(facts)][("zh", "en")[i % 2]]["question"] for i in range(count)]


def main() -> int:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.turns, options.runs)))
        return 0
    print(
        f"{'way':<28}{'threads':>8}{'turn':>6}{'prompt':>8}{'first token [s]':>17}{'tokens/s':>10}{'load':>7}"
    )
    missed = []
    for threads in options.threads:
        command = [sys.executable, "-m", "tools.bench.chat", "--measure"]
        command += [f"--turns={options.turns}", f"--runs={options.runs}"]
        # bitsandbytes has a pool of its own, which only the environment reaches
        environ = dict(os.environ, OMP_NUM_THREADS=str(threads))
        ran = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(ran.stdout.splitlines()[-1]):
            print(
                f"{row['way']:<28}{row['threads']:>8}{row['turn']:>6}{row['prompt']:>8}{row['first']:>17.3f}"
                f"{row['speed']:>10.0f}{row['load']:>7.1f}"
            )
            if row["way"] != EVERYTHING_ANEW and (row["first"] > FIRST_TOKEN or row["speed"] < PER_SECOND):
                missed.append(f"{row['way']}, {row['threads']} threads, turn {row['turn']}")
    kept = f"missed by {'; '.join(missed)}" if missed else "held"
    print(f"limits, {FIRST_TOKEN} s and {PER_SECOND} tokens/s: {kept}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
