"""Record what the book's living pages do: `make book`, then `python -m tools.record.live`.

The scripts of `book/live` are asked under Node.js, and compared with PyTorch in fp32 on the same weights:
logits, routers, and the greedy answers of base and tuned to every held-out question. Then headless Chromium
opens the built book, on one core and from a server on this machine, and is timed. Writes
`results/tiny/live.json`; docs/publish.md prints it.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from aurora_lib.course import write_whole
from aurora_lib.course.scale import DATA, ROOT
from aurora_lib.model import batching, load_adapter, load_model, load_tokenizer
from tools.pages.serve import served

BOOK, RECORD = ROOT / "book" / "_build" / "html", ROOT / "results" / "tiny" / "live.json"
PAGE = ROOT / "docs" / "publish.md"
ROUNDS = 5  # of everything timed; medians are kept
# presses a question, and notes when the first word of an answer stands on the page
PRESS = """
const log = document.querySelector(".live .aurora-chat-log"), began = performance.now();
const said = () => [...log.querySelectorAll(".aurora-chat-turn:last-child .aurora-chat-text")].slice(-2);
new MutationObserver(() => {
  const answers = said().length > 1 && said().map((text) => text.textContent);
  if (answers && answers.some((text) => text && text !== "…")) window.first ??= performance.now() - began;
}).observe(log, { childList: true, characterData: true, subtree: true });
document.querySelector(".live .aurora-chat-question").click();
"""
DONE = """
return !document.querySelector(".live .aurora-chat-ask").disabled &&
  document.querySelector(".live .aurora-chat-status").textContent;
"""


def node(kind: str, asked: list) -> list:
    """What the scripts of book/live answer, one for each thing asked; `kind` is a name in live.mjs."""
    with tempfile.TemporaryDirectory() as folder:
        for script in (ROOT / "book" / "live").glob("*.js"):
            shutil.copy(script, folder)
        (Path(folder) / "package.json").write_text('{"type": "module"}')
        command = ["node", ROOT / "tools" / "record" / "live.mjs", folder, DATA]
        request = json.dumps([kind, asked])
        ran = subprocess.run(command, input=request, capture_output=True, text=True, encoding="utf-8")
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    return json.loads(ran.stdout)


def reference() -> tuple[PeftModel, object]:
    """The bundled model in fp32 with its adapter, by transformers and PEFT; and the tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(DATA / "tiny", dtype=torch.float32)
    return PeftModel.from_pretrained(base, DATA / "tiny_adapter").eval(), load_tokenizer(DATA / "tiny")


@torch.no_grad()
def logits(model: PeftModel, ids: list[int]) -> list[torch.Tensor]:
    """The logits after `ids`, of base and tuned."""
    tuned = model(torch.tensor([ids])).logits[0, -1]
    with model.disable_adapter():
        return [model(torch.tensor([ids])).logits[0, -1], tuned]


@torch.no_grad()
def answers(model: PeftModel, tokenizer, questions: list[str], size: int = 64) -> list[list[str]]:
    """Greedy answers of base and tuned to each question, by `generate` in batches."""
    prompts = [batching.chat_prompt(tokenizer, [dict(role="user", content=text)]) for text in questions]

    def said(prompts: list[str]) -> list[str]:
        how = dict(add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        made = model.generate(**(read := tokenizer(prompts, **how)), max_new_tokens=64, do_sample=False)
        new = made[:, read.input_ids.shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    def all_said() -> list[str]:
        return [text for i in range(0, len(prompts), size) for text in said(prompts[i : i + size])]

    tuned = all_said()
    with model.disable_adapter():
        return list(map(list, zip(all_said(), tuned, strict=True)))


def held_out() -> list[str]:
    """Every held-out question, in both languages."""
    lines = (DATA / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        one[asked]["question"] for one in map(json.loads, lines) if one["held_out"] for asked in ("en", "zh")
    ]


def proofs(model: PeftModel, tokenizer) -> dict[str, float]:
    """How far the scripts are from PyTorch, over all held-out questions."""
    questions = held_out()
    prompts = [[dict(role="user", content=text)] for text in questions]
    ids = [batching.encode(tokenizer, batching.chat_prompt(tokenizer, prompt)) for prompt in prompts]
    assert node("prompt", prompts) == ids
    some = ids[:: len(ids) // 50]
    pairs = zip([logits(model, one) for one in some], node("logits", some), strict=True)
    gaps = [
        (ours - torch.tensor(theirs)).abs().max()
        for pair in pairs
        for ours, theirs in zip(*pair, strict=True)
    ]
    said = [[text.strip() for [text] in both] for both in node("talk", [[text] for text in questions])]
    packed = load_adapter(
        load_model(DATA / "tiny", dtype=torch.float32, device="cpu"), DATA / "tiny_adapter"
    ).eval()

    def same(model: PeftModel) -> int:
        pairs = zip(answers(model, tokenizer, questions), said, strict=True)
        return sum(a == b for pair in pairs for a, b in zip(*pair, strict=True))

    return {
        f"largest difference of a logit to PyTorch's, {len(some)} prompts": float(max(gaps)),
        "greedy answers to the held-out questions, base and tuned": 2 * len(said),
        "identical to PyTorch's on the same 16-bit weights": same(model),
        "identical to the notebooks', whose experts have 4 bits": same(packed),
    }


def driver(folder: Path):
    """Headless Chromium, all of it on one core."""
    from selenium import webdriver

    sys.path.insert(0, str(ROOT))
    from tests import lab

    options = webdriver.ChromeOptions()
    options.binary_location = lab.chromium()
    for flag in (*lab.FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # a child keeps it
    try:
        return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    finally:
        os.sched_setaffinity(0, before)


def timed(address: str) -> dict[str, float]:
    """One visit of notebook 06's page with an empty cache: opened, loaded, asked."""
    from selenium.webdriver.support.wait import WebDriverWait

    with tempfile.TemporaryDirectory() as folder:
        browser = driver(Path(folder))
        try:
            browser.get(f"{address}/notebooks/06_chat.html")
            fetched = browser.execute_script(
                "return performance.getEntries().reduce((sum, one) => sum + (one.encodedBodySize || 0), 0)"
            )
            button = browser.find_element("css selector", ".live button")
            began = time.perf_counter()
            browser.execute_script("arguments[0].click()", button)
            wait = WebDriverWait(browser, 60, 0.02)
            wait.until(lambda b: b.find_elements("css selector", ".live .aurora-chat-question"))
            loading = time.perf_counter() - began
            browser.execute_script(PRESS)
            said = wait.until(lambda b: b.execute_script(DONE))
            first = browser.execute_script("return window.first")
        finally:
            browser.quit()
    lines = [line.split(" · ") for line in said.splitlines()]
    speeds = [float(part.split()[0]) for line in lines for part in line if part.endswith("tokens/s")]
    return {
        "page before the model is asked for [MB]": fetched / 1e6,
        "loading the model [s]": loading,
        "from the press to the first word on the page [s]": first / 1000,
        "tokens a second, base and tuned together": len(speeds) / sum(1 / speed for speed in speeds),
    }


def filled(text: str) -> str:
    """The page of PAGE with the table of the record."""
    values = json.loads(RECORD.read_text(encoding="utf-8"))["values"]
    rows = [f"| {label} | {value:.3g} |" for label, value in values.items()]
    table = "\n".join(["| | |", "|---|---:|", *rows])
    return re.sub(r"(<!-- live -->\n).*?(<!-- live -->)", rf"\g<1>{table}\n\g<2>", text, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--book", type=Path, default=BOOK, help="folder of the built book")
    parser.add_argument("--no-proofs", action="store_true", help="time only, print only")
    options = parser.parse_args()
    if not (options.book / "_static" / "live" / "worker.js").is_file():
        parser.error(f"there is no book in {options.book}: make book")
    torch.set_num_threads(1)
    values = {} if options.no_proofs else proofs(*reference())
    with served(options.book) as address:
        visits = [timed(address) for _ in range(ROUNDS)]
    values |= {label: statistics.median(visit[label] for visit in visits) for label in visits[0]}
    sizes = {path: path.stat().st_size for path in options.book.rglob("*") if path.is_file()}
    live = {path: size for path, size in sizes.items() if "live" in path.relative_to(options.book).parts}
    values |= {
        "model and scripts [MB]": sum(live.values()) / 1e6,
        "whole book [MB]": sum(sizes.values()) / 1e6,
    }
    for label, value in values.items():
        print(f"{label:<50} {value:>12.6g}")
    if not options.no_proofs:
        texts = json.loads((ROOT / "book" / "live" / "texts.json").read_text(encoding="utf-8"))
        question = texts["question"][0]
        [[[base], [tuned]]] = node("talk", [[question]])
        record = dict(date=time.strftime("%Y-%m-%d"), device=f"one core, {platform.machine()}", values=values)
        record["said"] = [("You · 你", question), ("base", base), ("tuned", tuned)]
        write_whole(RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_whole(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
