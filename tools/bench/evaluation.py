"""Questions per second and peak memory of `multiple_choice` beside lm-evaluation-harness, in one run.

    python -m tools.bench.evaluation --root /folder/with/cmmlu

Same model, same prompts (token for token), same batch, CPU; nothing is downloaded but the harness itself,
which goes into an environment of its own (`--harness`) that borrows this one's torch and transformers. Each
side runs alone in a fresh process, chat prompts first, then plain ones. Timed are, for ours, everything from
CSV files to the result; for the harness, only its `evaluate`, with the model and the task's prompts already
loaded. Two models: the course's tiny one, and a random Mixtral of about 47 million parameters with the real
tokenizer, where arithmetic and not overhead takes the time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HARNESS = "lm-eval[hf]==0.4.13"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT / "data" / "benchmarks", help="released CSV files")
    parser.add_argument("--task", choices=["cmmlu", "ceval", "mmlu"], default="cmmlu")
    parser.add_argument("--subjects", nargs="+", help="default: four, evenly from the list of all")
    parser.add_argument("--models", nargs="+", choices=["tiny", "random"], default=["random", "tiny"])
    parser.add_argument("--prompt", nargs="+", choices=["chat", "plain"], default=["chat", "plain"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--harness", type=Path, default=ROOT / "runs" / "bench" / "harness")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # what the two processes are told
    options = parser.parse_args()
    if options.side:
        sys.exit(globals()[options.side](json.loads(sys.stdin.read())))
    python = environment(options.harness)
    for name in options.models:
        work = options.harness.parent / name
        model = prepare(name, work)
        job = dict(model=str(model), root=str(options.root), subjects=options.subjects, batch=options.batch)
        job |= dict(work=str(work), threads=options.threads, task=options.task)
        for prompt in options.prompt:
            sides = [(sys.executable, "ours"), (python, "theirs")]
            report(name, prompt, options, *(run(*side, job | dict(prompt=prompt)) for side in sides))


def environment(folder: Path) -> Path:
    """The harness's own environment, which sees this one's packages at their versions; returns its Python."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        venv.create(folder, with_pip=True, clear=True)
        mine = sysconfig.get_paths()["purelib"]
        inside = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        )
        (Path(inside.decode().strip()) / "course.pth").write_text(mine + "\n")
        install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", HARNESS]
        subprocess.run(install, check=True)
        (folder / "ready").touch()
    return python


def prepare(name: str, work: Path) -> Path:
    """The folder of the model to measure: the bundled one, or a random one with the real tokenizer."""
    if name == "tiny":
        return ROOT / "data" / "tiny"
    from transformers import MixtralConfig, MixtralForCausalLM, set_seed

    sys.path.insert(0, str(ROOT))
    from aurora_lib.model import load_tokenizer

    tokenizer = load_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.1,  # so that predictions do not hang on rounding
    )
    set_seed(0)
    model = MixtralForCausalLM(config)
    print(f"random: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters")
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    return work / "model"


def run(python: Path | str, side: str, job: dict) -> dict:
    """One side in a process of its own; its answer is the last line it prints."""
    settings = dict(
        OMP_NUM_THREADS=str(job["threads"]),
        OMP_WAIT_POLICY="PASSIVE",  # or threads that wait count as CPU time, and slow down whatever else runs
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="true" if job["threads"] > 1 else "false",
    )
    done = subprocess.run(
        [python, __file__, "--side", side],
        input=json.dumps(job),
        env=os.environ | settings,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        sys.exit(f"{done.stderr}\n{side} ended with status {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def load(job: dict):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(job["model"])


def memory() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def ours(job: dict) -> None:
    sys.path.insert(0, str(ROOT))
    from aurora_lib.evaluation import benchmarks, multiple_choice
    from tools.bench import harness

    model, tokenizer = load(job)
    task, known = job["task"], benchmarks.load_subjects(job["task"], job["root"])
    subjects = job["subjects"] or list(known)[:: max(1, len(known) // 4)][:4]
    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    settings = dict(root=job["root"], subjects=subjects, batch_size=job["batch"], prompt=job["prompt"])
    result = multiple_choice(model, tokenizer, task, **settings)
    seconds, cpu, peak = time.perf_counter() - start, time.process_time() - cpu, memory()

    harness.export(result, tokenizer, job["work"])  # after the clock has stopped
    said = [row["prediction"] for row in result.predictions]
    answer(seconds, cpu, before, peak, said, result.overall.accuracy)


def theirs(job: dict) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = load(job)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job["batch"], device="cpu")
    name = f"aurora_{job['task']}_{job['prompt']}"
    task = TaskManager(include_path=job["work"], include_defaults=False).load([name])["tasks"]
    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    found = evaluator.evaluate(lm, task, bootstrap_iters=0, log_samples=True)
    seconds, cpu, peak = time.perf_counter() - start, time.process_time() - cpu, memory()
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    scores = [[reply[0] for reply in sample["filtered_resps"]] for sample in samples]
    said = ["ABCD"[values.index(max(values))] for values in scores]
    answer(seconds, cpu, before, peak, said, found["results"][name]["acc,none"])


def answer(seconds, cpu, before, peak, predictions: list[str], accuracy: float) -> None:
    measured = dict(seconds=seconds, cpu=cpu, before=before, peak=peak)
    print(json.dumps(measured | dict(said="".join(predictions), accuracy=accuracy)))


def report(name: str, prompt: str, options, ours: dict, theirs: dict) -> None:
    n = len(ours["said"])
    same = sum(a == b for a, b in zip(ours["said"], theirs["said"], strict=True))
    print(
        f"{name}, {prompt}: {n} questions of {options.task}, 5-shot, batch {options.batch}, "
        f"{options.threads} threads, fp32"
    )
    print(
        f"{'':24}{'seconds':>9}{'questions/s':>13}{'CPU s':>8}{'peak MiB':>10}{'of it loaded':>14}"
        f"{'accuracy':>10}"
    )
    for side, made in (("aurora_lib", ours), ("lm-evaluation-harness", theirs)):
        print(
            f"{side:24}{made['seconds']:9.1f}{n / made['seconds']:13.1f}{made['cpu']:8.1f}"
            f"{made['peak']:10.0f}{made['before']:14.0f}{made['accuracy']:10.4f}"
        )
    print(
        f"speed x{theirs['seconds'] / ours['seconds']:.1f} (by CPU time, which other work on the machine "
        f"disturbs less, x{theirs['cpu'] / ours['cpu']:.1f}), memory x{ours['peak'] / theirs['peak']:.2f}, "
        f"same prediction {same} of {n}\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
