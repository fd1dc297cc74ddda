"""Record how many experts starve with other seeds than notebook 01's: `python -m tools.record.starving`.

It runs the notebook's own cells up to `train`, then trains each of its models from five seeds (some minutes
on one core). `results/tiny/starving.json`; the sentence of notebook 01 about other seeds rests on it.
"""

import json
import os
import statistics

import jupytext

from aurora_lib.course import results, write_whole
from aurora_lib.course.scale import ROOT

RECORD = results.RECORDED / "tiny" / "starving.json"
SEEDS = range(5)


def main() -> None:
    os.chdir(ROOT / "notebooks")
    cells = [
        cell.source for cell in jupytext.read("text/01_moe_routing.py").cells if cell.cell_type == "code"
    ]
    last = next(i for i, source in enumerate(cells) if "def train(" in source)
    adjust = next(source for source in cells if "def adjust(" in source).partition("\n\n\n")[0]
    notebook = {}
    for source in [*cells[: last + 1], adjust]:
        exec(source, notebook)
    ways = {name: dict(balance=balance) for name, balance in notebook["LOSSES"].items()}
    ways["bias"] = dict(balance=notebook["LOSSES"]["no balance loss"], adjust=notebook["adjust"])
    found = {}
    for name, how in ways.items():
        runs = [notebook["train"](**how, seed=seed) for seed in SEEDS]
        starved = [int((load[-20:].mean(0) < 0.2 / 8).sum()) for load, _ in runs]
        found[name] = {"starving of 32": starved, "text loss": [round(loss, 3) for _, loss in runs]}
        print(name, found[name], statistics.mean(starved))
    write_whole(RECORD, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
