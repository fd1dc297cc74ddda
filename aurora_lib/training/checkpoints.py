"""Checkpoints: which one to go on from, and whether it belongs to this run."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError, safe_open

# What transformers writes into a checkpoint: one file or folder of each group must be there, and those there whole.
PARTS = {
    "adapter": ("adapter_model.safetensors", "pytorch_model_fsdp*"),
    "optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_0"),
    "learning rate schedule": ("scheduler.pt",),
    "random numbers": ("rng_state*.pth",),
    "trainer state": ("trainer_state.json",),
}
# Settings that decide what the run computes; a checkpoint made with others is another run's.
SETTINGS = [
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "max_length",
    "packing",
    "seed",
    "optim",
    "weight_decay",
    "warmup_steps",
    "bf16",
]
LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules")


def checkpoint_to_resume(output_dir: str | Path) -> Path | None:
    """The newest checkpoint in `output_dir` that was written completely; damaged ones are named and passed over."""
    for checkpoint in _newest_first(output_dir):
        if reason := damage(checkpoint):
            print(f"{checkpoint.name} was not written completely ({reason}); trying the one before it.")
            continue
        print(f"Resuming from {checkpoint.name}, step {step_of(checkpoint)}.")
        return checkpoint
    return None


def _newest_first(output_dir: str | Path) -> list[Path]:
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if p.is_dir()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint folder names."""
    return int(checkpoint.name.split("-")[1])


def newest_whole(output_dir: str | Path) -> Path | None:
    """As `checkpoint_to_resume`, without a word."""
    return next((checkpoint for checkpoint in _newest_first(output_dir) if not damage(checkpoint)), None)


def damage(checkpoint: Path) -> str | None:
    """What is missing or cut off in a checkpoint folder, in a few words; None if it is whole."""
    for part, names in PARTS.items():
        files = [file for name in names for file in sorted(checkpoint.glob(name))]
        if not files:
            return f"its {part} is missing"
        for file in files:
            if not _whole(file):
                return f"{file.name} is cut off"
    return None


def _whole(file: Path) -> bool:
    """Whether a file holds all that its own format says it holds; nothing in it is executed."""
    try:
        if file.is_dir():  # a sharded state; torch writes the index last
            return (file / ".metadata").stat().st_size > 0
        if file.suffix == ".json":
            return json.loads(file.read_bytes())["global_step"] == step_of(file.parent)
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                return bool(weights.keys())
        with zipfile.ZipFile(file) as archive:  # what `torch.save` writes, with a checksum for every record
            return archive.testzip() is None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile):
        return False


def fingerprint(trainer) -> dict:
    """What decides the outcome of a run: base, data (row count and a hash of the tokens), settings of SFT and LoRA."""
    rows, digest = trainer.train_dataset, hashlib.sha256()
    for part in rows.with_format("arrow").iter(1000):
        for name in (n for n in sorted(part.column_names) if _holds_ids(part.schema.field(n).type)):
            lists = part[name].combine_chunks()
            digest.update(name.encode() + lists.value_lengths().to_numpy().tobytes())
            digest.update(lists.flatten().to_numpy(zero_copy_only=False).tobytes())
    args, lora = trainer.args, trainer.model.peft_config["default"]
    made = {"base": Path(trainer.model.config.name_or_path).name}
    made |= {"conversations": len(rows), "hash of the data": digest.hexdigest()[:16]}
    made |= {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    made |= {name: getattr(lora, name) for name in LORA_SETTINGS}
    return json.loads(json.dumps(made, default=lambda value: sorted(map(str, value))))


def _holds_ids(kind: pa.DataType) -> bool:
    return hasattr(kind, "value_type") and pa.types.is_integer(kind.value_type)


def claim(output_dir: str | Path, run: dict) -> Path | None:
    """Take `output_dir` for `run` (a `fingerprint`) and return the checkpoint to go on from, if there is one.

    Checkpoints of another run are not resumed, nor deleted: their folder is renamed, and a sentence says why. Damaged
    ones are renamed too, so that they do not count among those `save_total_limit` keeps.
    """
    folder = Path(output_dir)
    reason = _other_run(folder, run)
    if reason and _newest_first(folder):
        aside = _free_name(folder.with_name(f"{folder.name}-other"))
        folder.rename(aside)
        print(
            f"The checkpoints in {folder.name} are another run's ({reason}): they are now in {aside.name}, this run starts anew."
        )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "run.json.part"
    unfinished.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / "run.json")
    found = checkpoint_to_resume(folder)
    for checkpoint in _newest_first(folder):
        if found and step_of(checkpoint) <= step_of(found):
            break
        checkpoint.rename(_free_name(folder / f"damaged-{checkpoint.name}"))
    return found


def _other_run(folder: Path, run: dict) -> str | None:
    """Where the run that `folder` belongs to differs from `run`, in a few words; None if it is the same."""
    try:
        theirs = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return "run.json, which would say whose they are, is missing"
    differing = [name for name in run if theirs.get(name) != run[name]]
    return ", ".join(f"{name}: {theirs.get(name)}, now {run[name]}" for name in differing) or None


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")
