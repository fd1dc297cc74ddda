"""Time the cleaning at the size of the paper's data: `python -m tools.bench.cleaning`.

Builds 176,678 rows in the three released layouts by recombining sentences, with the dirt such rows have and
planted duplicates; reads and cleans them on two cores, and says what was found. `--against data-juicer`
cleans the same rows with py-data-juicer, in an environment of its own, and prints the ratio.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import orjson
import psutil

from tools.bench.corpus import LAYOUTS, MEGABYTES, ROWS, Corpus, identity

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parents[1]
CORES = 2
CONFIGURATION = TOOLS / "data_juicer.yaml"
# 1.6.1 imports aiohttp and ray whatever it is asked to do.
DATA_JUICER = ("py-data-juicer==1.6.1", "aiohttp", "ray[data]>=2.51,<3", "ftfy", "scipy")
# Its operators in CONFIGURATION, and the steps of ours they come nearest to.
COUNTERPARTS = {
    "fix_unicode_mapper": ("mojibake", "html_entities"),
    "whitespace_normalization_mapper": ("invisible",),
    "remove_specific_chars_mapper": ("invisible",),
    "text_length_filter": ("empty",),
    "special_characters_filter": ("empty",),
    "character_repetition_filter": ("repetition",),
    "document_deduplicator": ("duplicate",),
    "document_minhash_deduplicator": ("near_duplicate",),
}
HEAD = f"\n{'stage':<24}{'seconds':>9}{'CPU s':>9}{'rows/s':>10}{'peak RSS':>10}{'peak PSS':>10}  GiB, all"
DUPLICATE_STEPS = ("duplicate", "near_duplicate")


def work(folder: Path) -> None:
    """In the measured process: read and clean `folder`; leave times and outcome there as JSON."""
    marks = [("start", psutil.Process().create_time())]
    mark = lambda stage: marks.append((stage, time.time()))  # noqa: E731
    from aurora_lib.data import clean, cleaning, sources, split

    mark("read")
    rows = sources.read(folder).conversations
    mark("clean")
    result = clean(rows, processes=CORES)
    mark("split")
    from aurora_lib.model import load_tokenizer  # here: torch comes with it, which cleaning does not need

    parts = split(result.kept, load_tokenizer(), 1024)
    mark("")
    reasons = zip(result.dropped["step"], result.dropped["reason"], strict=True)
    dropped = dict(zip(result.dropped["id"], reasons, strict=True))
    outcome = {
        "marks": marks,
        "read": len(rows),
        "kept": len(result.kept),
        "parts": len(parts),
        "dropped": dropped,
        "steps": [step for step in cleaning.steps() if step != "contamination"],
    }
    (folder / "outcome.json").write_bytes(orjson.dumps(outcome))


def write_texts(folder: Path) -> None:
    """In a process of its own: the same conversations as JSON Lines of `id` and `text`, for Data-Juicer."""
    from aurora_lib.data import sources

    with (folder / "texts.jsonl").open("wb") as out:
        for row in sources.read(folder).conversations:
            text = "\n".join(message["content"] for message in row["messages"])
            out.write(orjson.dumps({"id": row["id"], "text": text}) + b"\n")


def in_this_environment(function: str, folder: Path) -> list[str]:
    """The command that calls `work` or `write_texts` in a process of its own."""
    return [
        sys.executable,
        "-c",
        f"from tools.bench import cleaning as b; b.{function}(b.Path({str(folder)!r}))",
    ]


@dataclass
class Sample:
    """What a process and all below it have used: `cpu` seconds so far, bytes of memory at `time`.

    RSS counts a page once for each process that maps it, PSS once in all; PSS is taken every second, on
    Linux.
    """

    time: float
    cpu: float
    rss: int
    pss: int


def watched(command: list[str], log: Path, **variables: str) -> list[Sample]:
    """Run on CORES cores, sampled five times a second. Raises SystemExit with the end of the log where it
    fails."""
    samples, cpu, measured = [], {}, 0.0
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env={**os.environ, **variables})
        top = psutil.Process(process.pid)
        if hasattr(top, "cpu_affinity"):
            top.cpu_affinity(top.cpu_affinity()[:CORES])
        while process.poll() is None:
            now, rss, pss = time.time(), 0, 0
            shared = now - measured > 1  # PSS walks over all pages: not at every sample
            measured = now if shared else measured
            for one in _tree(top):
                try:
                    memory = one.memory_full_info() if shared else one.memory_info()
                    used = one.cpu_times()
                except psutil.Error:  # it has just ended
                    continue
                rss, pss = rss + memory.rss, pss + getattr(memory, "pss", 0)
                cpu[one.pid] = used.user + used.system
            samples.append(Sample(now, sum(cpu.values()), rss, pss))
            time.sleep(0.2)
    if process.returncode:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{end}\n{command[0]} failed ({process.returncode}); its whole output is in {log}.")
    return samples


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _row(name: str, samples: list[Sample], begin: float, end: float, rows: int = 0) -> str:
    """A line of the table: what was used between two times."""
    within = [sample for sample in samples if begin <= sample.time <= end] or samples[-1:]
    rss, pss = (max(getattr(sample, kind) for sample in within) / 2**30 for kind in ("rss", "pss"))
    pace = f"{rows / (end - begin):,.0f}" if rows else ""
    cpu, pss = cpu_seconds(samples, begin, end), f"{pss:.2f}" if pss else ""
    return f"{name:<24}{end - begin:>9.1f}{cpu:>9.1f}{pace:>10}{rss:>10.2f}{pss:>10}"


def cpu_seconds(samples: list[Sample], begin: float, end: float) -> float:
    """Processor time used between two times: what others run on the same cores hardly changes it."""
    until = [max((s.cpu for s in samples if s.time <= moment), default=0.0) for moment in (begin, end)]
    return until[1] - until[0]


def judge(planted: list[dict], dropped: dict[str, tuple[str, str]]) -> Counter:
    """What became of the planted copies, given {id: (step, reason)} of every dropped row.

    Returns for each kind `reached` (pairs that no step before took apart), `found` (those of which one row
    was dropped as a duplicate of the other), and `unplanted`: duplicates dropped beyond one a pair.
    """
    score, partners = Counter(), set()
    for pair in planted:
        copy, original = identity(*pair["copy"]), identity(*pair["original"])
        steps = [dropped[row][0] for row in (copy, original) if row in dropped]
        if any(step not in DUPLICATE_STEPS for step in steps):
            score[pair["kind"], "lost before"] += 1
            continue
        score[pair["kind"], "reached"] += 1
        named = [
            a for a, b in ((copy, original), (original, copy)) if a in dropped and _names(dropped[a][1], b)
        ]
        if named:
            score[pair["kind"], "found"] += 1
            partners.add(named[0])
    duplicates = {row for row, (step, _) in dropped.items() if step in DUPLICATE_STEPS}
    score["unplanted"] = len(duplicates - partners)
    return score


def _names(reason: str, row: str) -> bool:
    return re.search(re.escape(row) + r"(?!\d)", reason) is not None


def ours(folder: Path) -> tuple[float, float, dict]:
    """Clean the corpus in `folder`, print the table; seconds and CPU seconds of all but the splitting,
    outcome."""
    samples = watched(in_this_environment("work", folder), folder / "ours.log")
    outcome = orjson.loads((folder / "outcome.json").read_bytes())
    marks, read, parts = outcome["marks"], outcome["read"], outcome["parts"]
    print(HEAD)
    rows = {"read": read, "clean": read}
    for (name, begin), (_, end) in pairwise(marks[:4]):
        print(_row(name, samples, begin, end, rows.get(name, 0)))
    begin, end = marks[0][1], marks[3][1]
    print(_row("start + read + clean", samples, begin, end, read))
    print(_row("split", samples, end, marks[4][1], outcome["kept"]))
    print(f"\nread {read:,}, kept {outcome['kept']:,}, dropped {len(outcome['dropped']):,}; {parts:,} parts")
    steps = Counter(step for step, _ in outcome["dropped"].values())
    print("dropped by step: " + ", ".join(f"{step} {n:,}" for step, n in steps.most_common()))
    return end - begin, cpu_seconds(samples, begin, end), outcome


def report(score: Counter) -> None:
    """Print what `judge` found."""
    for kind in ("exact", "near"):
        reached, found, lost = (score[kind, what] for what in ("reached", "found", "lost before"))
        share = f"{found / reached:.2%}" if reached else "none"
        print(f"planted {kind} duplicates found: {share} ({found:,} of {reached:,}; {lost:,} dropped before)")
    print(f"unplanted rows dropped as duplicates: {score['unplanted']:,}")


def environment(folder: Path) -> Path:
    """The folder of programs of an environment with Data-Juicer; made in `folder` where there is none.

    This environment's packages are visible in it behind its own: torch is there, and not downloaded again.
    """
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    if not (programs / "dj-process").exists():
        print(f"setting up {' '.join(DATA_JUICER)} in {folder} (once; --environment {folder} uses it again)")
        venv.create(folder, with_pip=True)
        python = str(programs / "python")
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(
            subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        )
        (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *DATA_JUICER], check=True)
    return programs


def data_juicer(folder: Path, programs: Path) -> tuple[float, float, set[str]]:
    """Clean the corpus in `folder` with Data-Juicer, print its table; seconds, CPU seconds, ids it kept."""
    watched(in_this_environment("write_texts", folder), folder / "texts.log")
    log, out = folder / "data-juicer.log", folder / "data-juicer" / "kept.jsonl"
    command = [str(programs / "dj-process"), "--config", str(CONFIGURATION), "--np", str(CORES)]
    command += ["--dataset_path", str(folder / "texts.jsonl"), "--export_path", str(out)]
    # Without the network: it would install or download while the clock runs.
    offline = dict(PIP_NO_INDEX="1", UV_OFFLINE="1", HF_HUB_OFFLINE="1")
    homes = dict(DATA_JUICER_CACHE_HOME=str(folder / "cache"), HF_HOME=str(folder / "cache"))
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    begin = time.time()
    samples = watched(command, log, PATH=path, **offline, **homes)
    end = time.time()
    print(f"\n{'Data-Juicer operator':<40}{'seconds':>9}{'rows left':>11}")
    done = re.findall(r"OP \[(\w+)\] Done in ([\d.]+)s. Left (\d+)", log.read_text(encoding="utf-8"))
    for operator, spent, left in done:
        print(f"{operator:<40}{float(spent):>9.1f}{int(left):>11,}")
    print(HEAD)
    with (folder / "texts.jsonl").open("rb") as file:
        print(_row("Data-Juicer", samples, begin, end, sum(1 for _ in file)))
    with out.open("rb") as file:
        return end - begin, cpu_seconds(samples, begin, end), {orjson.loads(line)["id"] for line in file}


def report_other(planted: list[dict], kept: set[str], steps: list[str]) -> None:
    """Print what Data-Juicer found of the planted, and the steps it has no operator for."""
    for kind in ("exact", "near"):
        pairs = [
            [identity(*pair[s]) for s in ("copy", "original")] for pair in planted if pair["kind"] == kind
        ]
        found = sum(not kept.issuperset(pair) for pair in pairs) / max(1, len(pairs))
        print(f"planted {kind} pairs of which at most one row is left: {found:.2%}")
    there = {step for nearest in COUNTERPARTS.values() for step in nearest}
    missing = ", ".join(step for step in steps if step not in there)
    print(f"it has no operator for these of our steps, and does less work by them: {missing}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="rows in all (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=MEGABYTES, help="size at the full number of rows")
    parser.add_argument(
        "--rows-from", type=Path, metavar="FOLDER", help="recombine the sentences of these rows"
    )
    parser.add_argument("--folder", type=Path, help="keep corpus and logs here (default: a temporary folder)")
    parser.add_argument("--against", choices=["data-juicer"], help="clean the same rows with it, too")
    parser.add_argument(
        "--environment", type=Path, metavar="DIR", help="its environment, to make or use again"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-cleaning-") as temporary:
        folder = (args.folder or Path(temporary) / "corpus").resolve()
        corpus = Corpus(args.rows, args.rows_from, args.megabytes)
        begin = time.time()
        corpus.write(folder)
        size = sum((folder / file).stat().st_size for file, *_ in LAYOUTS.values()) / 1e6
        kinds = Counter(pair["kind"] for pair in corpus.planted)
        print(
            f"corpus: {sum(n for _, n, *_ in corpus.layouts.values()):,} rows, {size:.0f} MB, planted "
            f"{kinds['exact']:,} exact, {kinds['near']:,} near copies; built in {time.time() - begin:.0f} s"
        )
        print(f"load of this machine before: {psutil.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        seconds, cpu, outcome = ours(folder)
        report(judge(corpus.planted, outcome["dropped"]))
        if args.against:
            programs = environment((args.environment or Path(temporary) / "environment").resolve())
            print(f"load of this machine before: {psutil.getloadavg()[0]:.1f}")
            other, other_cpu, kept = data_juicer(folder, programs)
            report_other(corpus.planted, kept, outcome["steps"])
            print(
                f"\nread and clean: Data-Juicer {other:.0f} s, ours {seconds:.0f} s: {other / seconds:.1f} x"
            )
            print(f"in CPU seconds: {other_cpu:.0f}, ours {cpu:.0f}: {other_cpu / cpu:.1f} x")


if __name__ == "__main__":
    main()
