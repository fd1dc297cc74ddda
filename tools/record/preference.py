"""Record when a preference stage pays at `tiny`: `python -m tools.record.preference` (half an hour).

From two adapters, one tuned without English rows and the bundled one, go on with three losses: DPO, more
supervised tuning (SFT) on the same right answers, and both. The three differ in nothing but the loss. Each
has four learning rates and three seeds; the best rate is chosen at the first seed. Everything is written to
`results/tiny/preference.json` as it is made, and an interrupted recording goes on there.

`--adapter` makes `data/tiny_adapter_no_english` first, which everything else starts from.
"""

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from transformers import PrinterCallback

from aurora_lib.course import DATA, choose, results, scale, write_whole
from aurora_lib.data import clean_conversations, hold_out
from aurora_lib.evaluation import load_probes, probe
from aurora_lib.model import load_adapter, load_model, load_tokenizer, save_adapter
from aurora_lib.training import build_trainer, preference, sft_config
from tools.build.data import write_checksums
from tools.record import variants

RECORD = results.RECORDED / "tiny" / "preference.json"
SEEDS = (42, 43, 44)
STARTS = {"tuned without English": preference.DAMAGED, "the recipe": DATA / "tiny_adapter"}
ARMS = {"DPO": ["sigmoid"], "SFT": ["sft"], "DPO + SFT": ["sigmoid", "sft"]}
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
EPOCHS = 3
ABOUT = """
**What this one is for.** Notebook 07 repairs it. It was tuned as the one of notebook 04, for as many steps,
but without the English rows: about one English question in five is answered in Chinese or with another fact.
"""


def make_adapter(folder: Path, steps: int = 0) -> None:
    """Tune without English for as many steps as notebook 04 (or `steps`), and save into `folder`."""
    with tempfile.TemporaryDirectory() as runs:
        chosen = choose({"AURORA_RUNS": runs})
        rows, _ = hold_out(clean_conversations(chosen))
        steps = steps or int(-(-len(rows) // (chosen.batch * chosen.accumulation)) * chosen.epochs)
        args = sft_config(chosen, max_steps=steps, save_strategy="no", disable_tqdm=True)
        base = load_model(chosen.base_model, **chosen.loading)
        chinese = variants.mixed(rows, 0.0)
        trainer = build_trainer(base, load_tokenizer(chosen.base_model), chinese, args)
        trainer.train()
        save_adapter(trainer, chosen, folder)
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf-8").rstrip() + "\n" + ABOUT, encoding="utf-8")


class Start:
    """An adapter, what it says of training facts and of held-out ones, and the pairs made of that."""

    def __init__(self, chosen: scale.Scale, adapter: Path):
        self.scale, self.adapter = chosen, adapter
        self.tokenizer = load_tokenizer(chosen.base_model)
        model = self.model()
        self.held_out = self.asked(model, True)
        self.pairs = preference.mistakes(self.asked(model, False))
        self.measured = preference.mistakes(self.held_out)

    def model(self):
        return load_adapter(load_model(self.scale.base_model, **self.scale.loading), self.adapter)

    def asked(self, model, held_out: bool):
        how = dict(max_new_tokens=self.scale.max_new_tokens, progress=False)
        return probe(model, self.tokenizer, load_probes(held_out=held_out), **how)

    def stage(self, loss: list[str], rate: float, seed: int) -> dict:
        """A second stage from here: how the held-out questions are answered, and what the reward says."""
        with tempfile.TemporaryDirectory() as folder:
            given = dict(loss_type=loss, learning_rate=rate, seed=seed, num_train_epochs=EPOCHS)
            given |= dict(output_dir=folder, save_strategy="no", disable_tqdm=True)
            args = preference.dpo_config(self.scale, **given)
            both = self.pairs, self.measured
            trainer = preference.build_trainer(self.model(), self.tokenizer, *both, args)
            trainer.remove_callback(PrinterCallback)
            batches = trainer.get_eval_dataloader()
            before = preference.logps(trainer.model, batches)
            seconds = trainer.train().metrics["train_runtime"]
            moved = preference.logps(trainer.model, batches) - before
            row = shares(self.asked(trainer.model.eval(), True)) | dict(steps=trainer.state.global_step)
        row["reward accuracy"] = round((moved[:, 0] > moved[:, 1]).float().mean().item(), 4)
        row["chosen, change of log p"] = round(moved[:, 0].mean().item(), 3)
        return row | dict(seconds=round(seconds, 1))


def shares(said) -> dict[str, float]:
    """Of the questions in each language: answered in it, and right in it."""
    return {
        f"{asked}_{short}": round(said.score(asked, what).accuracy, 4)
        for asked in ("en", "zh")
        for short, what in ((f"in_{asked}", "in_language"), ("right", "correct"))
    }


def best(rows: list[dict], start: str, arm: str) -> float:
    """The learning rate with the most right answers, of both languages, at the first seed."""
    mine = [row for row in rows if (row["start"], row["arm"], row["seed"]) == (start, arm, SEEDS[0])]
    return max(mine, key=lambda row: row["en_right"] + row["zh_right"])["learning rate"]


def record(chosen: scale.Scale, out: Path, starts=STARTS, arms=ARMS, rates=RATES, seeds=SEEDS) -> dict:
    """All runs that `out` does not hold yet, each written there at once."""
    made = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    about = dict(versions={library: version(library) for library in variants.LIBRARIES})
    about["adapters"] = {name: digest(path / "adapter_model.safetensors") for name, path in starts.items()}
    if any(made.get(key) != value for key, value in about.items()):
        made = {}  # of other libraries or adapters: not to be mixed
    made |= about | dict(
        what="second stages at tiny, measured on held-out facts",
        scale="tiny", device="cpu", date=time.strftime("%Y-%m-%d"), python=platform.python_version(),
        threads=torch.get_num_threads(), seeds=list(seeds), epochs=EPOCHS,
    )  # fmt: skip
    rows = made.setdefault("rows", [])
    for name, adapter in starts.items():
        start = Start(chosen, adapter)
        kinds = dict(sorted(Counter(start.pairs["kind"]).items()))
        found = shares(start.held_out) | dict(pairs=len(start.pairs), kinds=kinds)
        made.setdefault("starts", {})[name] = found
        print(name, found, flush=True)

        for seed, arm, rate in product(seeds, arms, rates):
            run = {"start": name, "arm": arm, "learning rate": rate, "seed": seed}
            if not any(run.items() <= row.items() for row in rows):
                rows.append(run | start.stage(arms[arm], rate, seed))
                print(rows[-1], flush=True)
                write_whole(out, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
        made.setdefault("chosen", {})[name] = {arm: best(rows, name, arm) for arm in arms}
    write_whole(out, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return made


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", action="store_true", help="tune without English anew, first")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    if options.adapter:
        make_adapter(preference.DAMAGED)
        write_checksums()
    record(choose({}), options.out)


if __name__ == "__main__":
    main()
