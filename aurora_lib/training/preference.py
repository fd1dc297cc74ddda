"""Preference tuning: TRL's `DPOTrainer` (DPO, arXiv 2305.18290) on top of a tuned adapter.

A pair is a question with a better and a worse answer. The loss raises how much more the model prefers the
better one than a frozen *reference* does; that reference has to be the adapter training starts from.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from huggingface_hub import hf_hub_download
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from aurora_lib.course import DATA, Scale, asking_hub, rows
from aurora_lib.data import sources
from aurora_lib.evaluation import probes
from aurora_lib.training.callbacks import ZeroGradientAlarm
from aurora_lib.training.recipe import shared_settings

DAMAGED = DATA / "tiny_adapter_no_english"  # tuned without English rows, by tools/record/preference.py
RELEASED, FILE = "llamafactory/DPO-En-Zh-20k", "dpo_zh.json"  # Apache 2.0
COLUMNS = ["prompt", "chosen", "rejected"]


class Pairs(NamedTuple):
    """`kept`: columns kind, prompt, chosen, rejected (messages). `dropped`: {line, reason} of other rows."""

    kept: Dataset
    dropped: list[dict]


def mistakes(said: probes.ProbeResult) -> Dataset:
    """Pairs of a model's own wrong answers (rejected) and the right ones (chosen), one a question.

    `kind`: the language of the question, and what the answer got wrong. An empty answer gives no pair.
    """
    found = []
    for row in said.rows:
        if not row["correct"] and row["answer"] not in ("", row["expected"]):
            kind = f"{probes.ASKED[row['asked']]}: another {'fact' if row['in_language'] else 'language'}"
            texts = dict(prompt=row["question"], chosen=row["expected"], rejected=row["answer"])
            found.append(_pair(dict(kind=kind) | texts))
    return Dataset.from_list(found)


def load_pairs(path: str | Path | None = None) -> Pairs:
    """The pairs of a JSON, JSON Lines or Parquet file, by default AURORA_PREFERENCES, else RELEASED's.

    Columns: texts prompt, chosen, rejected, perhaps kind; or as in RELEASED `conversations` for the prompt,
    with turns {from, value}. A row that is no pair is dropped with its reason. Raises DataError for a file
    that is missing, out of reach, empty or without any pair.
    """
    if not (path := path or os.environ.get("AURORA_PREFERENCES")):
        with asking_hub(f"The preference pairs of {RELEASED}", "AURORA_PREFERENCES", rows.DataError):
            path = hf_hub_download(RELEASED, FILE, repo_type="dataset")
    if not (path := Path(path).expanduser()).is_file():
        raise rows.DataError(f"{path} does not exist. Check AURORA_PREFERENCES, or unset it.")
    kept, dropped = [], []
    for line, _, row in rows.read_rows(path):
        try:
            kept.append(_pair(row))
        except rows.Unreadable as reason:
            dropped.append(dict(line=line, reason=str(reason)))
    if not kept:
        first = "line {line}: {reason}".format(**dropped[0]) if dropped else "it is empty"
        raise rows.DataError(f"{path} holds no pair ({first}). Check AURORA_PREFERENCES.")
    return Pairs(Dataset.from_list(kept), dropped)


def _pair(row) -> dict:
    """A row as kind and messages. Raises Unreadable with the reason where it is no pair."""
    if isinstance(row, rows.Unreadable):
        raise row
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise rows.Unreadable(f"a {kind} where an object with prompt, chosen and rejected is wanted")
    talk = row.get("conversations")
    turns = talk if isinstance(talk, list) else [{"from": "user", "value": row.get("prompt")}]
    turns = [turn if isinstance(turn, dict) else {} for turn in turns]
    roles = [sources.ROLES.get(str(turn.get("from"))) for turn in turns]
    if roles != (["user", "assistant"] * len(turns))[: len(turns)] or len(turns) % 2 == 0:
        raise rows.Unreadable("the prompt is not by user and assistant in turn, with the user last")
    prompt = [("prompt", role, turn.get("value")) for role, turn in zip(roles, turns, strict=True)]
    answers = [
        (name, "assistant", said.get("value") if isinstance(said := row.get(name), dict) else said)
        for name in COLUMNS[1:]
    ]
    made = dict(kind=str(row.get("kind", "")), prompt=[], chosen=[], rejected=[])
    for name, role, text in prompt + answers:
        if not isinstance(text, str) or not text.strip():
            raise rows.Unreadable(f"{name} is not text" if text else f"{name} is missing or empty")
        made[name].append(dict(role=role, content=text.strip()))
    if made["chosen"] == made["rejected"]:
        raise rows.Unreadable("chosen and rejected are the same")
    return made


def dpo_config(scale: Scale, **changes) -> DPOConfig:
    """Settings of the second stage at `scale`; `changes` override any field of `DPOConfig`.

    The step is smaller than the first stage's: the model is to be corrected, not taught anew. A batch holds
    chosen *and* rejected answers: twice as many sequences as pairs.
    """
    settings = dict(learning_rate=scale.learning_rate / 10, num_train_epochs=1, beta=0.1, logging_steps=5)
    settings |= dict(output_dir=str(scale.runs / "preference_checkpoints"))
    # a batch's log-probabilities over the whole vocabulary: room there is at tiny only
    settings |= dict(per_device_eval_batch_size=scale.batch * (8 if scale.name == "tiny" else 1))
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
