"""Adapters as folders: saved with a model card, found, and put on a base model."""

import shutil
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel
from trl import SFTTrainer

from aurora_lib.scale import DATA, Scale


class AdapterError(RuntimeError):
    """An adapter that is missing, damaged or made for another base; the message says what to do."""


def save_adapter(trainer: SFTTrainer, scale: Scale, folder: Path | None = None) -> Path:
    """Save the adapter as a stock PEFT folder and remove the checkpoints that led to it."""
    folder = Path(folder or scale.runs / "adapter")
    for config in trainer.model.peft_config.values():
        # a path of this machine would mean nothing to whoever loads the adapter elsewhere
        config.base_model_name_or_path = base_name(scale)
    trainer.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").write_text(_card(trainer, scale), encoding="utf-8")
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    return folder


def _card(trainer: SFTTrainer, scale: Scale) -> str:
    """A model card with this run's own settings; PEFT's would hold a path of this machine."""
    args, lora = trainer.args, trainer.model.peft_config["default"]
    return f"""---
base_model: {base_name(scale)}
library_name: peft
language: [zh, en]
---
# A Chinese chat adapter, after Aurora (arXiv 2312.14557)

LoRA of rank {lora.r} (alpha {lora.lora_alpha}, dropout {lora.lora_dropout}) on {", ".join(sorted(lora.target_modules))} of an NF4 base,
trained by `aurora_lib.training` on {len(trainer.train_dataset):,} conversations: {trainer.state.global_step} steps, {args.num_train_epochs:g} epochs,
learning rate {args.learning_rate:g} ({args.lr_scheduler_type.value}), batch {args.per_device_train_batch_size} x {args.gradient_accumulation_steps},
cutoff {args.max_length} tokens, seed {args.seed}. Loss on the assistant's tokens only.

Load it on that base: `adapters.load_adapter(nf4.load("folder or hub id of the base"), "this folder")`, or with stock PEFT.
"""


def base_name(scale: Scale) -> str:
    """The name an adapter records for its base: the hub id, or the last part of a local folder's path."""
    return Path(scale.base_model).name if Path(scale.base_model).exists() else scale.base_model


def find_adapter(scale: Scale) -> str:
    """Where the tuned adapter is: AURORA_ADAPTER, else notebook 04's, else (at tiny) the one in `data/`.

    Prints which one in a line. Raises AdapterError if there is none.
    """
    if scale.adapter:
        place, why = scale.adapter, "AURORA_ADAPTER"
    elif (scale.runs / "adapter" / "adapter_config.json").is_file():
        place, why = scale.runs / "adapter", "made by notebook 04"
    elif scale.name == "tiny":
        place, why = DATA / "tiny_adapter", "shipped with the course, since notebook 04 has not run here"
    else:
        raise AdapterError(
            "There is no adapter yet: run notebook 04, or set AURORA_ADAPTER to a PEFT folder or hub id."
        )
    print(f"adapter: {Path(place).name} ({why})")
    return str(place)


def load_adapter(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """Put `adapter` (PEFT folder or hub id) on `model`, ready for inference.

    Raises AdapterError when it is missing, damaged, or has other shapes than this base.
    """
    local = Path(adapter).expanduser()
    if local.is_absolute() and not (local / "adapter_config.json").is_file():
        raise AdapterError(f"{local} holds no adapter: adapter_config.json is missing. Check AURORA_ADAPTER.")
    try:
        return PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise AdapterError(
            f"The adapter in {adapter} cannot be put on this base model ({reason}). Use an adapter trained on the same "
            f"base, or unset AURORA_ADAPTER."
        ) from error
