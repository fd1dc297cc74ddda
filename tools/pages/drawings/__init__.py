"""Draw the ideas of the course, in English and in Chinese: `python -m tools.pages.drawings`.

Each picture in `notebooks/images/` is a function of this package. Numbers are computed, or read from the
records of `results/`; the words are in `words.toml`, the colours and letters in `style.py`.
"""

import tomllib
from pathlib import Path

from tools.pages.drawings import asking, course, data, experts, training
from tools.pages.drawings.style import page

FOLDER = Path(__file__).resolve().parents[3] / "notebooks" / "images"
LANGUAGES = {"en": ".svg", "zh-CN": ".zh.svg"}
WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
DRAWINGS = {
    "map": course.path,
    "router": experts.router,
    "stored": experts.stored,
    "after_2023": experts.after_2023,
    "funnel": data.funnel,
    "nf4": training.nf4,
    "lora": training.lora,
    "memory_step": training.memory_step,
    "loss_mask": data.loss_mask,
    "fewshot": asking.fewshot,
    "chat_loop": asking.chat_loop,
}


def made() -> dict[Path, str]:
    """The text of every picture, by its path."""
    files = {}
    for name, draw in DRAWINGS.items():
        for i, (language, ending) in enumerate(LANGUAGES.items()):
            words = {label: pair[i] for label, pair in WORDS[name].items()}
            height, described, parts = draw(lambda label, *gaps, words=words: words[label].format(*gaps))
            files[FOLDER / f"{name}{ending}"] = page(name, language, words["title"], described, height, parts)
    return files
