"""Fill the tables and the picture of the READMEs from `results/`; `make notebooks` calls this."""

import re
import sys
from pathlib import Path

from aurora_lib.course import results

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "results" / "tiny" / "before_after.png"
LEARN = {
    "00_start_here": (
        "see the habit the paper cures, and what the cure costs",
        "看到论文要解决的问题，以及代价是什么",
    ),
    "01_moe_routing": (
        "write a sparse Mixture-of-Experts block, watch experts die, and keep them alive",
        "手写稀疏混合专家层，看专家如何“饿死”，又如何救活",
    ),
    "02_chinese_data": (
        "clean three datasets without losing a row in silence",
        "清洗三个数据集，每一行都有交代",
    ),
    "03_qlora_memory": (
        "quantize to NF4 by hand, write a memory budget, find the paper's 45 GiB",
        "手算 NF4 量化，逐行写出显存账，找出论文的 45 GiB 用在哪里",
    ),
    "04_finetune": (
        "tune with `SFTTrainer`, QLoRA and the paper's recipe",
        "用 `SFTTrainer` 按论文的配方做 QLoRA 微调",
    ),
    "05_evaluate": (
        "score C-Eval, MMLU and CMMLU with honest intervals",
        "评测 C-Eval、MMLU、CMMLU，并给出区间",
    ),
    "06_chat": ("talk to base and tuned model side by side", "与微调前后的模型对话"),
    "07_preference": (
        "optional: tune on pairs of a better and a worse answer (DPO)",
        "选修：用好坏成对的回答再微调一次（DPO）",
    ),
}
ASKED = {
    "Chinese prompts answered in Chinese": ("Chinese questions answered in Chinese", "中文提问，用中文回答"),
    "Chinese prompts right in Chinese": ("... and correctly", "……并且答对"),
    "English prompts right in English": (
        "English questions still answered correctly in English",
        "英文提问，仍用英文答对",
    ),
}
WORDS = {"README.md": ("base", "tuned"), "README.zh.md": ("微调前", "微调后")}


def filled(name: str) -> str:
    """The text of a README with its marked tables written anew."""
    language = int(name.endswith("zh.md"))
    values = results.recorded("04", "tiny")
    n = values["held-out prompts per language"]
    about = (f"facts never seen in tuning, n = {n} a language", f"微调中从未出现的事实，每种语言 n = {n}")[
        language
    ]
    table = [f"| {about} | {' | '.join(WORDS[name])} |", "|---|---|---|"]
    for label, asked in ASKED.items():
        base, tuned = (values[f"{label}, {which} [share]"] for which in ("base", "tuned"))
        table.append(f"| {asked[language]} | {base:.0%} | {tuned:.0%} |")
    picture = PICTURE.relative_to(ROOT).as_posix()
    result = "\n".join([f"![{' / '.join(WORDS[name])}]({picture})", "", *table])
    folder = ("notebooks", "notebooks/zh")[language]
    rows = [
        f"| [{stem}]({folder}/{stem}.ipynb) | {learn[language]} | "
        f"{results.cost(stem[:2], 'tiny')} | {results.cost(stem[:2], 'h100')} |"
        for stem, learn in LEARN.items()
    ]
    if language:
        rows = [row.replace("not measured", "未实测") for row in rows]
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"(<!-- result -->\n).*?(<!-- result -->)", rf"\g<1>{result}\n\g<2>", text, flags=re.S)
    # a comment inside a Markdown table would end it, so the rows are found by what they link to
    text = re.sub(r"(\|---\|---\|---\|---\|\n)(?:\| \[0.*\n)+", rf"\g<1>{chr(10).join(rows)}\n", text)
    return text


def draw() -> None:
    """Base and tuned, as bars."""
    import matplotlib.pyplot as plt

    values = results.recorded("04", "tiny")
    figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
    for i, which in enumerate(("base", "tuned")):
        heights = [values[f"{label}, {which} [share]"] for label in ASKED]
        places = [y - 0.2 + 0.4 * i for y in range(len(ASKED))]
        bars = axes.barh(places, heights, 0.36, label=which)
        axes.bar_label(bars, [f" {height:.0%}" for height in heights])
    axes.set_yticks(range(len(ASKED)), ASKED)
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1.12),
        xticks=[],
        title=f"Held-out facts, {values['training time [s]']:.0f} s of QLoRA on two cores",
    )
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.02), frameon=False, ncols=2)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def main() -> None:
    for name in WORDS:
        (ROOT / name).write_text(filled(name), encoding="utf-8", newline="\n")
    draw()


if __name__ == "__main__":
    sys.exit(main())
