"""Preference tuning: TRL's `DPOTrainer` (DPO, arXiv 2305.18290) on top of the adapter of notebook 04.

A pair is a question with a better and a worse answer. The loss raises how much more the model prefers the
better one than a frozen *reference* does; that reference has to be the adapter training starts from.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from aurora_lib.course import DATA, Scale, rows
from aurora_lib.evaluation import load_probes
from aurora_lib.model import batching
from aurora_lib.training.callbacks import ZeroGradientAlarm
from aurora_lib.training.recipe import shared_settings

BUNDLED = DATA / "preferences.jsonl"
COLUMNS = ["prompt", "chosen", "rejected"]
KINDS = ("another fact", "English to a Chinese question", "Chinese to an English question")


class Pairs(NamedTuple):
    """`kept`: columns kind, prompt, chosen, rejected (messages). `dropped`: {line, reason} of other rows."""

    kept: Dataset
    dropped: list[dict]


def load_pairs(path: str | Path | None = None) -> Pairs:
    """The pairs of a JSON or JSON Lines file with text columns prompt, chosen, rejected, and perhaps kind.

    `path`: by default AURORA_PREFERENCES, else the bundled file. A row that is no pair is dropped with its
    reason. Raises DataError for a file that is missing, empty or without any pair.
    """
    path = Path(path or os.environ.get("AURORA_PREFERENCES") or BUNDLED).expanduser()
    if not path.is_file():
        raise rows.DataError(f"{path} does not exist. Check AURORA_PREFERENCES, or unset it.")
    kept, dropped = [], []
    for line, _, row in rows.read_rows(path):
        if reason := _trouble(row):
            dropped.append(dict(line=line, reason=reason))
        else:
            kept.append(_pair(row.get("kind", ""), *(row[name].strip() for name in COLUMNS)))
    if not kept:
        first = "line {line}: {reason}".format(**dropped[0]) if dropped else "it is empty"
        raise rows.DataError(f"{path} holds no pair ({first}). Check AURORA_PREFERENCES.")
    return Pairs(Dataset.from_list(kept), dropped)


def held_out_pairs() -> Dataset:
    """Pairs about the probes' held-out facts, one of each kind a fact: to measure on, never to train on."""
    probes, found = load_probes(held_out=True), []
    for zh, en in ((probe["zh"], probe["en"]) for probe in probes):
        # a model that errs begins right and slides, so the wrong answer to fear is the one that begins alike
        others = [other["zh"]["answer"] for other in probes if other["zh"]["key"] != zh["key"]]
        wrong = max(others, key=lambda other, right=zh["answer"]: batching.shared_length([other, right]))
        found.append(_pair(KINDS[0], zh["question"], zh["answer"], wrong))
        found.append(_pair(KINDS[1], zh["question"], zh["answer"], en["answer"]))
        found.append(_pair(KINDS[2], en["question"], en["answer"], zh["answer"]))
    return Dataset.from_list(found)


def _pair(kind: str, prompt: str, chosen: str, rejected: str) -> dict:
    texts = dict(prompt=("user", prompt), chosen=("assistant", chosen), rejected=("assistant", rejected))
    messages = {name: [dict(role=role, content=text)] for name, (role, text) in texts.items()}
    return dict(kind=str(kind)) | messages


def _trouble(row) -> str | None:
    """Why `row` is no pair, or None."""
    if isinstance(row, rows.Unreadable):
        return str(row)
    if not isinstance(row, dict):
        return f"a {type(row).__name__} where an object with prompt, chosen and rejected is wanted"
    for name in COLUMNS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"{name} is not text" if row.get(name) else f"{name} is missing or empty"
    return "chosen and rejected are the same" if row["chosen"].strip() == row["rejected"].strip() else None


def dpo_config(scale: Scale, **changes) -> DPOConfig:
    """Settings of the second stage at `scale`; `changes` override any field of `DPOConfig`.

    The step is smaller than the first stage's: the model is to be corrected, not taught anew. A batch holds
    chosen *and* rejected answers: twice as many sequences as pairs.
    """
    settings = dict(learning_rate=scale.learning_rate / 10, num_train_epochs=1, beta=0.1, logging_steps=5)
    settings |= dict(output_dir=str(scale.runs / "preference_checkpoints"))
    settings |= dict(per_device_eval_batch_size=8 * scale.batch)
    return DPOConfig(**shared_settings(scale) | settings | changes)


def build_trainer(
    model: PeftModel, tokenizer, pairs: Dataset, held_out: Dataset, args: DPOConfig
) -> DPOTrainer:
    """A `DPOTrainer` that goes on with the adapter of `model`; a frozen copy of it, "ref", is the reference.

    `trainer.evaluate()` measures on `held_out`. TRL makes the copy, but rounds the adapter itself to bf16
    (the base is quantized), so that training would not start at its reference: both get the exact weights, in
    32 bits.
    """
    model.set_adapter("default")  # loaded for inference, it was frozen
    # checkpoints look this base up; the bare name that an adapter records would be asked of the hub
    model.peft_config["default"].base_model_name_or_path = model.config.name_or_path
    start = {name: p.detach().float().clone() for name, p in model.named_parameters() if ".default." in name}
    rows = dict(train_dataset=pairs.select_columns(COLUMNS), eval_dataset=held_out.select_columns(COLUMNS))
    others = dict(processing_class=tokenizer, callbacks=[ZeroGradientAlarm()])
    trainer = DPOTrainer(model=model, args=args, **rows, **others)
    for name, parameter in trainer.model.named_parameters():
        if (own := name.replace(".ref.", ".default.")) in start:
            parameter.data = start[own].clone()
    return trainer


@torch.no_grad()
def logps(model, batches) -> torch.Tensor:
    """log p(answer | question) of each pair, [pairs, 2]: chosen, rejected.

    `batches`: such as `trainer.get_eval_dataloader()`.
    """
    model.eval()
    found = []
    for batch in batches:
        ids, answer = batch["input_ids"], batch["completion_mask"][:, 1:]
        logits = model(ids, attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
        each = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        found.append((each * answer).sum(-1).view(2, -1).T.cpu())
    return torch.cat(found)
