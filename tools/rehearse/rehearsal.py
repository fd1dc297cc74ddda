"""One notebook, unmodified, in a fresh kernel that reaches no hub but ours."""

import base64
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "http://127.0.0.1:9"
BAR = re.compile(r"\d+%\||\dit/s|^\s*$")
WARNS = re.compile(r"\w*Warning\b")


@dataclass
class Rehearsal:
    """What came of a notebook: cells count from 0."""

    notebook: str
    scale: str
    edition: str
    seconds: float = 0
    warnings: list[tuple[int, str]] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)


def environment(url: str, scale: str, folder: Path, minutes: float = 1, device="cpu") -> dict[str, str]:
    """Of this process, without its own settings of the course and the hub."""
    kept = {key: of for key, of in os.environ.items() if not key.startswith(("AURORA_", "HF_"))}
    kept |= dict(AURORA_SCALE=scale, AURORA_MINUTES=str(minutes))
    if device == "cpu":  # else the course takes the GPU
        kept |= dict(AURORA_DEVICE="cpu", OMP_NUM_THREADS="1")
    kept |= dict(AURORA_RUNS=str(folder / "runs"), HF_HOME=str(folder / "home"), HF_ENDPOINT=url)
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOBODY)
    return kept | proxies | dict(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")


def in_order(paths: list[Path], *how) -> list[Rehearsal]:
    """One after the other, as a reader goes: 05 to 07 take the adapter that 04 has made."""
    return [rehearse(path, *how) for path in paths]


def rehearse(path: Path, env: dict[str, str], into: Path, go_on: bool = False) -> Rehearsal:
    """Execute cell by cell, and write the notebook into `into` after each; stops at an error by default."""
    edition = "zh" if path.parent.name == "zh" else "en"
    made = Rehearsal(path.stem, env["AURORA_SCALE"], edition)
    notebook = nbformat.read(path, as_version=4)
    where, quiet = {"metadata": {"path": str(path.parent)}}, ["--log-level=ERROR"]
    about = dict(timeout=3600, coalesce_streams=True, kernel_name="python3")
    client = NotebookClient(notebook, resources=where, extra_arguments=quiet, **about)
    into.mkdir(parents=True, exist_ok=True)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # what is committed is of `tiny`
    with client.setup_kernel(env=env):
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            began, failed = time.monotonic(), ""
            try:
                client.execute_cell(cell, number)
            except (CellControlSignal, DeadKernelError) as error:
                failed = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
                made.errors.append((number, failed))
            seconds = time.monotonic() - began
            made.seconds += seconds
            made.warnings += [(number, line) for line in warnings(cell)]
            if seconds > 5 or failed:
                place = f"{path.stem[:2]} {made.scale} {edition} [{number}] {seconds:.1f} s"
                print(f"{place}  {first_line(cell.source)}  {failed}".rstrip(), flush=True)
            nbformat.write(notebook, into / path.name)
            if made.errors and not go_on:
                break
    return made


def warnings(cell) -> list[str]:
    """What a reader would see in red: its first line for each output."""
    found = []
    for output in cell.outputs:
        lines = re.split("[\r\n]", output.get("text", ""))
        red = output.get("name") == "stderr"
        lines = [line for line in lines if not BAR.search(line) and (red or WARNS.search(line))]
        found += [line.strip()[:300] for line in lines[:1]]
    return found


def first_line(source: str) -> str:
    lines = [line for line in source.splitlines() if line and not line.startswith(("import", "from", "#"))]
    return lines[0][:60] if lines else ""


def show(path: Path) -> None:
    """An executed notebook's outputs as text; its pictures go beside it, into a folder of its name."""
    pictures = path.with_suffix("")
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type != "code":
            continue
        print(f"--- [{number}] {first_line(cell.source)}")
        for place, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                pictures.mkdir(exist_ok=True)
                file = pictures / f"{number:02d}_{place}.png"
                file.write_bytes(base64.b64decode(data["image/png"]))
                print(f"picture: {file}")
            elif output.output_type == "error":
                print(f"ERROR {output.ename}: {output.evalue}")
            elif "text/html" in data and "<table" not in data["text/html"]:
                print(re.sub(r"<style.*?</style>|<[^>]+>", " ", data["text/html"], flags=re.S))
            else:
                print((output.get("text") or data.get("text/plain", ""))[:3000])
