"""Preference tuning: TRL's `DPOTrainer` (DPO, arXiv 2305.18290) on top of the adapter of notebook 04.

A pair is a question with a better and a worse answer. The loss raises how much more the model prefers the better one than
a frozen *reference* does; that reference has to be the adapter training starts from.
"""

import warnings
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from aurora_lib.course.scale import Scale
from aurora_lib.model.adapters import save_adapter
from aurora_lib.training.callbacks import ZeroGradientAlarm
from aurora_lib.training.pairs import BUNDLED, COLUMNS, KINDS, Pairs, held_out_pairs, load_pairs

__all__ = [
    "BUNDLED",
    "COLUMNS",
    "KINDS",
    "Pairs",
    "build_trainer",
    "dpo_config",
    "held_out_pairs",
    "load_pairs",
    "logps",
    "save_preference_adapter",
]

# PEFT and TRL still ask transformers by the old name; nobody here can act on it.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def dpo_config(scale: Scale, output_dir: Path | None = None, **changes) -> DPOConfig:
    """Settings of the second stage at `scale`; `changes` override any field of `DPOConfig`.

    The step is smaller than the first stage's: the model is to be corrected, not taught anew. The load-balancing loss is
    off, as there. A batch holds chosen *and* rejected answers: twice as many sequences as pairs.
    """
    settings = dict(
        output_dir=str(output_dir or scale.runs / "preference_checkpoints"),
        learning_rate=scale.learning_rate / 10,
        lr_scheduler_type="cosine",
        num_train_epochs=1,
        per_device_train_batch_size=scale.batch,
        gradient_accumulation_steps=scale.accumulation,
        per_device_eval_batch_size=8 * scale.batch,
        max_length=scale.length,
        beta=0.1,
        router_aux_loss_coef=0.0,
        activation_checkpointing=scale.device == "cuda",
        bf16=scale.device == "cuda" and not scale.sharding,
        use_cpu=scale.device == "cpu",
        save_steps=scale.save_steps,
        logging_steps=5,
        seed=42,
        report_to="none",
        dataloader_pin_memory=scale.device == "cuda",
    )
    return DPOConfig(**settings | changes)


def build_trainer(
    model: PeftModel,
    tokenizer,
    pairs: Dataset,
    held_out: Dataset,
    scale: Scale,
    args: DPOConfig | None = None,
) -> DPOTrainer:
    """A `DPOTrainer` that goes on with the adapter of `model`; a frozen copy of it, "ref", is the reference.

    `trainer.evaluate()` measures on `held_out`. TRL makes the copy, but rounds the adapter itself to bf16 (the base is
    quantized), so that training would not start at its reference: both get the exact weights, in 32 bits.
    """
    model.set_adapter("default")  # loaded for inference, it was frozen
    model.peft_config[
        "default"
    ].base_model_name_or_path = scale.base_model  # else checkpoints ask the hub for its name
    start = {name: p.detach().float().clone() for name, p in model.named_parameters() if ".default." in name}
    trainer = DPOTrainer(
        model=model,
        args=args or dpo_config(scale),
        train_dataset=pairs.select_columns(COLUMNS),
        eval_dataset=held_out.select_columns(COLUMNS),
        processing_class=tokenizer,
        callbacks=[ZeroGradientAlarm()],
    )
    for name, parameter in trainer.model.named_parameters():
        if (own := name.replace(".ref.", ".default.")) in start:
            parameter.data = start[own].clone()
    return trainer


@torch.no_grad()
def logps(model, batches) -> torch.Tensor:
    """log p(answer | question) of each pair, [pairs, 2]: chosen, rejected. `batches`: such as `trainer.get_eval_dataloader()`."""
    model.eval()
    found = []
    for batch in batches:
        ids, answer = batch["input_ids"], batch["completion_mask"][:, 1:]
        logits = model(ids, attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
        each = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        found.append((each * answer).sum(-1).view(2, -1).T.cpu())
    return torch.cat(found)


def save_preference_adapter(trainer: DPOTrainer, scale: Scale) -> Path:
    """Save the adapter as a stock PEFT folder, `preference_adapter`, without its reference; remove the checkpoints."""
    trainer.model.delete_adapter("ref")
    folder = save_adapter(trainer, scale, scale.runs / "preference_adapter")
    card, args = folder / "README.md", trainer.args
    head = card.read_text(encoding="utf-8").partition("\n# ")[0]
    about = f"{len(trainer.train_dataset):,} pairs: {trainer.state.global_step} steps, beta {args.beta:g}, seed {args.seed}"
    text = f"{head}\n# A Chinese chat adapter, preference-tuned\n\nThe adapter of notebook 04 after DPO on {about}.\n"
    card.write_text(text, encoding="utf-8")
    return folder
