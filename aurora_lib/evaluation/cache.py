"""Scores of questions, kept on disk as they are made: an interrupted evaluation goes on where it stopped.

A JSON line per question, in a file per model. What a question is called does not matter: its key is a digest of the
very ids the model reads, and the file's name one of the model's weights, so that
nothing stale is taken for fresh (of each weight 256 elements are looked at).
"""

import json
import os
from array import array
from pathlib import Path

import torch
import xxhash
from peft.tuners.tuners_utils import BaseTunerLayer

from aurora_lib.evaluation.fewshot import Candidate, Group

SAMPLE = 256  # elements of each weight that identify it


def model_key(model) -> str:
    """16 hex digits for a model: its configuration, weights (a sample of each) and the state of its adapters."""
    digest = xxhash.xxh3_64()
    settings = model.config.to_dict()
    for passing in ("use_cache", "output_router_logits", "_name_or_path", "transformers_version"):
        settings.pop(passing, None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        if not weight.is_meta:
            flat = weight.detach().flatten()
            at = torch.linspace(0, len(flat) - 1, min(SAMPLE, len(flat)), dtype=torch.float64).long()
            digest.update(flat[at.to(flat.device)].cpu().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):  # an adapter that is switched off still has its weights
            state = module.disable_adapters, module.active_adapters, module.merged_adapters
            state += (getattr(module, "scaling", None),)
            digest.update(f"{name} {state}".encode())
    return digest.hexdigest()


def question_keys(group: Group) -> list[str]:
    """32 hex digits for each question of a group: the ids of its prompt and of what is scored after it."""
    start = array("i", group.prefix).tobytes()

    def key(four: list[Candidate]) -> str:
        parts = [start + array("i", [*context, -1, *ids, -1]).tobytes() for context, ids in four]
        return xxhash.xxh3_128_hexdigest(b"".join(parts))

    return [key(four) for four in group.rest]


class ScoreCache:
    """The kept scores of one model; without a folder, it knows nothing and keeps nothing."""

    def __init__(self, folder, label: str, model, rank: int):
        """Files `label`-model.rank.jsonl in `folder`: all ranks' are read, each rank adds to its own."""
        self.path, self.scores, self.keys = None, {}, {}
        if folder is None:
            return
        name = f"{label.replace(' ', '-')}-{model_key(model)}"
        self.path = Path(folder) / f"{name}.{rank}.jsonl"
        for path in sorted(self.path.parent.glob(f"{name}.*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    self.scores[row["key"]] = row["logprobs"]
                except (ValueError, KeyError, TypeError):
                    continue  # a line that was cut off when the process ended does not count

    def known(self, group: Group) -> list[list[float] | None]:
        """For each question of the group its kept log-probabilities, or None."""
        if self.path is None:
            return [None] * len(group.questions)
        self.keys[id(group)] = question_keys(group)
        return [self.scores.get(key) for key in self.keys[id(group)]]

    def add(self, group: Group, places: list[int], values: list[list[float]]) -> None:
        """Keep a batch in a single write: killed at any moment, the file holds a line whole or can tell it does not."""
        if self.path is None:
            return
        text = ""
        for i, logprobs in zip(places, values, strict=True):
            row = dict(subject=group.subject, index=group.questions[i].index, key=self.keys[id(group)][i])
            text += json.dumps(row | dict(logprobs=logprobs)) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                text = "\n" + text  # a line cut off earlier must not swallow this one
            file.write(text.encode())
