"""Every notebook at `full` and `mid`, without a GPU and the hub: `python -m tools.rehearse`.

Small stand-ins take the models' and datasets' places (`standin.py`), served by an imitation of the hub
(`hub.py`); the notebooks themselves run unmodified (`rehearsal.py`). What only a GPU does is not rehearsed;
with `--device cuda` it is rehearsed too.
"""

import argparse
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from tools.rehearse import standin
from tools.rehearse.hub import Hub
from tools.rehearse.rehearsal import ROOT, environment, in_order, show

FOLDER = ROOT / "runs" / "rehearsal"
EDITIONS = {"en": ROOT / "notebooks", "zh": ROOT / "notebooks" / "zh"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.rehearse", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=["full", "mid", "both"], default="both")
    parser.add_argument("--edition", choices=[*EDITIONS, "both"], default="en")
    parser.add_argument("--notebooks", nargs="+", default=[""], metavar="NN", help="these alone")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the kernels (cpu)")
    parser.add_argument("--minutes", type=float, default=1, help="of training in notebook 04 (1)")
    parser.add_argument("--layers", type=int, default=4, help="of the stand-ins (4)")
    parser.add_argument("--jobs", type=int, default=1, help="scales and editions at a time (1)")
    parser.add_argument("--go-on", action="store_true", help="go on after an error")
    parser.add_argument(
        "--show", type=Path, metavar="NOTEBOOK", help="print an executed one's outputs, no more"
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.show:
        show(args.show)
        return 0
    torch.set_num_threads(1)  # on a busy machine more cost much
    standin.build(FOLDER / "hub", args.layers)
    for edition in EDITIONS:  # what was downloaded is of older stand-ins
        shutil.rmtree(FOLDER / edition / "home", ignore_errors=True)
    hub, running = Hub(FOLDER / "hub"), []
    scales = ("full", "mid") if args.scale == "both" else (args.scale,)
    editions = EDITIONS if args.edition == "both" else (args.edition,)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for scale, edition in product(scales, editions):
            env = environment(hub.url, scale, FOLDER / edition, args.minutes, args.device)
            if args.notebooks == [""]:
                shutil.rmtree(Path(env["AURORA_RUNS"]) / scale, ignore_errors=True)
            found = sorted(EDITIONS[edition].glob("[0-9][0-9]_*.ipynb"))
            paths = [path for path in found if path.stem.startswith(tuple(args.notebooks))]
            into = FOLDER / "executed" / scale / edition
            running.append(pool.submit(in_order, paths, env, into, args.go_on))
        made = [one for future in running for one in future.result()]
    print()
    for kind in ("warnings", "errors"):
        for one in made:
            for cell, line in getattr(one, kind):
                print(f"{kind[:-1]}: {one.notebook[:2]} {one.scale} {one.edition} [{cell}] {line}")
    rows = [(m.notebook, m.scale, m.edition, m.seconds, len(m.warnings), not m.errors) for m in made]
    table = pd.DataFrame(rows, columns=["notebook", "scale", "edition", "seconds", "warnings", "ok"])
    print("\n" + table.round(1).to_string(index=False))
    return int(not table.ok.all() or table.empty)


if __name__ == "__main__":
    sys.exit(main())
