"""QLoRA with TRL's `SFTTrainer`: the settings of the paper, three corrections today's libraries need, and a way to resume.

`python -m aurora_lib.training` runs from a terminal what notebook 04 runs step by step.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, set_seed
from trl import SFTConfig, SFTTrainer

from aurora_lib import nf4, paper, tokenizer
from aurora_lib.adapters import AdapterError, save_adapter
from aurora_lib.callbacks import ZeroGradientAlarm
from aurora_lib.checkpoints import checkpoint_to_resume
from aurora_lib.conversations import clean_conversations
from aurora_lib.scale import Scale, ScaleError, start
from aurora_lib.sources import DataError

SEED = 42

# PEFT and TRL still ask transformers by the old name; nobody here can act on it.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def lora_config(scale: Scale, **changes) -> LoraConfig:
    """The paper's adapter: rank 8 on q_proj and v_proj of every layer (repository, training command).

    `changes` override any field of `LoraConfig`.
    """
    settings = dict(
        task_type="CAUSAL_LM",
        r=int(paper.TRAINING["LoRA rank"].value),
        lora_alpha=int(paper.TRAINING["LoRA alpha"].value),
        lora_dropout=paper.TRAINING["LoRA dropout"].value,
        target_modules=list(paper.LORA_TARGETS),
    )
    return LoraConfig(**settings | changes)


def sft_config(scale: Scale, output_dir: Path | None = None, **changes) -> SFTConfig:
    """The paper's training settings (section 4.1) at `scale`; `changes` override any field of `SFTConfig`.

    Two values differ from the libraries' defaults on purpose: `router_aux_loss_coef=0`, since TRL would otherwise add the
    load-balancing loss that the paper's stack did not use, and `assistant_only_loss`, as in the paper's stack.
    """
    settings = dict(
        output_dir=str(output_dir or scale.runs / "checkpoints"),
        learning_rate=scale.learning_rate,
        lr_scheduler_type="cosine",
        num_train_epochs=scale.epochs,
        per_device_train_batch_size=scale.batch,
        gradient_accumulation_steps=scale.accumulation,
        max_length=scale.length,
        assistant_only_loss=True,
        router_aux_loss_coef=0.0,
        activation_checkpointing=scale.device == "cuda",
        bf16=scale.device == "cuda",
        use_cpu=scale.device == "cpu",
        save_steps=scale.save_steps,
        save_total_limit=2,
        logging_steps=10,
        seed=SEED,
        report_to="none",
        dataloader_pin_memory=scale.device == "cuda",
    )
    return SFTConfig(**settings | changes)


def adapters_in_fp32(model: PreTrainedModel) -> int:
    """Put every trainable parameter back to 32 bits, and return how many there are.

    TRL casts adapters of quantized models to bf16, where most updates at the paper's learning rate of 5e-5 round away.
    Call it after the trainer is built and before `train`.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return sum(p.numel() for p in trainable)


def build_trainer(
    model: PreTrainedModel,
    tokenizer,
    conversations: Dataset,
    scale: Scale,
    args: SFTConfig | None = None,
    lora: LoraConfig | None = None,
) -> SFTTrainer:
    """An `SFTTrainer` on `conversations` (column `messages`) with a new adapter (the paper's), its weights in 32 bits.

    `trainer.evaluate()` gives the loss on the first 64 of them, so that it can be compared before and after. Raises
    ValueError without conversations.
    """
    if len(conversations) == 0:
        raise ValueError(
            "There is no conversation to train on. Check AURORA_DATA, or run notebook 02 to see why."
        )
    args = args or sft_config(scale)
    set_seed(args.seed)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=conversations.select_columns(["messages"]),
        eval_dataset=conversations.select_columns(["messages"]).select(range(min(64, len(conversations)))),
        processing_class=tokenizer,
        peft_config=lora or lora_config(scale),
        callbacks=[ZeroGradientAlarm()],
    )
    adapters_in_fp32(trainer.model)
    return trainer


def main() -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--scale", choices=["tiny", "full"], help="overrides AURORA_SCALE")
    parser.add_argument("--out", type=Path, help="folder of the adapter (default: runs/<scale>/adapter)")
    options = parser.parse_args()
    if options.scale and os.environ.get("AURORA_SCALE") != options.scale:
        # again from the start, since the scale decides the number of threads when libraries are imported
        os.environ["AURORA_SCALE"] = options.scale
        os.execv(sys.executable, [sys.executable, "-m", "aurora_lib.training", *sys.argv[1:]])
    try:
        tune(start("04"), options.out)
    except (ScaleError, DataError, AdapterError, nf4.ModelFileError, nf4.ExpertPackingError) as error:
        parser.exit(1, f"{error}\n")


def tune(scale: Scale, out: Path | None = None) -> Path:
    """The whole of notebook 04's training at `scale`; returns the adapter's folder."""
    conversations = clean_conversations(scale)
    base = nf4.load(scale.base_model, **scale.loading)
    words = tokenizer.load(scale.base_model, revision=scale.revision)
    trainer = build_trainer(base, words, conversations, scale)
    run = trainer.train(resume_from_checkpoint=checkpoint_to_resume(trainer.args.output_dir))
    folder = save_adapter(trainer, scale, out)
    print(
        f"{trainer.state.global_step} steps in {run.metrics['train_runtime']:.0f} s; the adapter is in {folder}"
    )
    return folder


if __name__ == "__main__":
    main()
