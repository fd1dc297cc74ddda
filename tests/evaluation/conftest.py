"""A small random Mixtral, a benchmark of one subject, a reference that shares no code with the library."""

import csv
import json
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from aurora_lib.course import DATA
from aurora_lib.evaluation import evaluate
from aurora_lib.evaluation.benchmarks import Question

EXAMPLES = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))
BUNDLED, GEOGRAPHY = DATA / "benchmarks", "high_school_geography"  # a subject of all three
WORDS = {
    "en": ("The following are multiple choice questions (with answers) about {}.\n\n", "\nAnswer: "),
    "zh": ("以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n", "\n答案："),
}


def foreseen(model, ids: list[int], start: int) -> list[float]:
    """The log-probability of each id from `start` on; one forward, no cache."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [table[i - 1, ids[i]].item() for i in range(start, len(ids))]


def random_model(context: int = 2048, seed: int = 2, vocab: int = 6400) -> MixtralForCausalLM:
    torch.manual_seed(seed)
    sizes = EXAMPLES["random_model"] | dict(vocab_size=vocab, max_position_embeddings=context)
    return MixtralForCausalLM(MixtralConfig(**sizes)).eval()


@pytest.fixture
def write_task(tmp_path):
    def write(task: str, **splits: bytes) -> Path:
        """A benchmark whose only subject is x: split -> content of its file; returns the root."""
        folder = tmp_path / "root" / task
        for split, content in splits.items():
            (folder / split).mkdir(parents=True)
            (folder / split / ("x.csv" if task == "cmmlu" else f"x_{split}.csv")).write_bytes(content)
        (folder / "mapping.json").write_text(json.dumps({"x": {"name": "x", "category": "STEM"}}))
        return folder.parent

    return write


def cells(task: str, split: str, subject: str, root: Path = BUNDLED) -> list[list[str]]:
    """The rows of a file as question, A, B, C, D, answer; read with nothing of the library's."""
    name = f"{subject}.csv" if task == "cmmlu" else f"{subject}_{split}.csv"
    with (root / task / split / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [row[:6] for row in rows] if task == "mmlu" else [row[1:7] for row in rows[1:]]


def plain_letters(model, encode, task, subject, form=("chat", "en"), root=BUNDLED, every=1, shuffle=0):
    """(index, likeliest letter, right letter, log-probabilities): one forward a question, no cache."""
    intro, tail = WORDS[form[1]]
    split, gap = "val" if task == "ceval" else "test", "" if form == ("plain", "zh") else " "
    name = json.loads((root / task / "mapping.json").read_text(encoding="utf-8"))[subject]["name"]
    letters = [encode(f"\n{gap}{letter}")[-1] for letter in "ABCD"]
    dev, found = cells(task, "dev", subject, root), []
    for index, row in list(enumerate(cells(task, split, subject, root)))[::every]:
        draw = Question(subject, index, "", (), "")
        shots = evaluate.shown(dev, 5, shuffle, draw) if shuffle else dev[:5]
        texts = ["{}\nA. {}\nB. {}\nC. {}\nD. {}".format(*each) + tail for each in (*shots, row)]
        texts = [intro.format(name) + texts[0], *texts[1:-1], texts[-1].strip()]
        if form[0] == "plain":
            said = [f"{text}{each[5]}\n\n" for text, each in zip(texts, shots, strict=False)]
            ids = [1, *encode("".join(said) + texts[-1])]
        else:  # every turn is encoded apart, as the authors' stack did
            turns = [encode(f"[INST] {text} [/INST]") for text in texts]
            said = [[1, *turn, *encode(each[5]), 2] for turn, each in zip(turns, shots, strict=False)]
            ids = [*chain(*said), 1, *turns[-1]]
        with torch.no_grad():
            values = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].log_softmax(-1)[letters]
        found.append((index, "ABCD"[values.argmax()], row[5], values.tolist()))
    return found
