"""QLoRA with TRL's `SFTTrainer`: the settings of the paper, and three corrections that today's libraries need.

1. Adapters of a quantized model go back to 32 bits (`adapters_in_fp32`). 2. The router's load-balancing loss, which
the paper's stack did not use, is off (`sft_config`). 3. A gradient of zero stops the run (`ZeroGradientAlarm`).
"""

import shutil
import time
import warnings
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedModel, set_seed
from trl import SFTConfig, SFTTrainer

from aurora_lib.course import Scale, paper
from aurora_lib.data.conversations import clean_conversations
from aurora_lib.model import load_model, load_tokenizer, nf4, save_adapter
from aurora_lib.training.callbacks import Meter, ZeroGradientAlarm
from aurora_lib.training.planning import NOTHING, preflight
from aurora_lib.training.running import run, say

SEED = 42


def lora_config(**changes) -> LoraConfig:
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

    As in the paper's stack, the loss is taken on the assistant's tokens only, and without the router's load-balancing
    loss, which TRL would add.
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
        # under FSDP2 accelerate would cast the packed bytes too
        bf16=scale.device == "cuda" and not scale.sharding,
        use_cpu=scale.device == "cpu",
        save_steps=scale.save_steps,
        save_total_limit=2,
        logging_steps=10,
        include_num_input_tokens_seen="non_padding",
        seed=SEED,
        report_to="none",
        ddp_find_unused_parameters=False,
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
    args: SFTConfig,
    lora: LoraConfig | None = None,
) -> SFTTrainer:
    """An `SFTTrainer` on `conversations` (column `messages`) with a new adapter (the paper's), its weights in 32 bits.

    Conversations without an answer, or with none left before the cutoff, are left out; how many is printed.
    `trainer.evaluate()` gives the loss on the first 64 rows, so that it can be compared before and after. Raises
    ValueError where nothing is left to train on.
    """
    asked = conversations.select_columns(["messages"])
    answered = asked.filter(lambda row: any(message["role"] == "assistant" for message in row["messages"]))
    if len(answered) < len(asked):
        missing = len(asked) - len(answered)
        say(args, f"{missing:,} conversations hold no answer by the assistant and are left out.")
    if len(answered) == 0:
        raise ValueError(NOTHING)
    set_seed(args.seed)
    with warnings.catch_warnings():
        # PEFT still asks transformers by an old name; nobody here can act on it
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=answered,
            processing_class=tokenizer,
            peft_config=lora or lora_config(),
            callbacks=[ZeroGradientAlarm(), Meter()],
        )
    if not args.packing:
        _report_cut(trainer, len(answered))
    trainer.eval_dataset = trainer.train_dataset.select(range(min(64, len(trainer.train_dataset))))
    trainer.floating_point_ops = lambda inputs: (
        0
    )  # nobody reads it, and it counts all parameters for every batch
    adapters_in_fp32(trainer.model)
    return trainer


def _report_cut(trainer: SFTTrainer, given: int) -> None:
    """Say how many of `given` conversations the cutoff shortened, and how many TRL left out: no answer was left."""
    length, end = trainer.args.max_length, trainer.processing_class.eos_token_id
    ids = trainer.train_dataset.with_format("numpy")["input_ids"] if len(trainer.train_dataset) else []
    cut = sum(len(row) == length and row[-1] != end for row in ids)
    dropped = given - len(trainer.train_dataset)
    if dropped == given:
        raise ValueError(
            f"No conversation has an answer before the cutoff of {length:,} tokens. Raise max_length, or split the "
            f"conversations as notebook 02 does."
        )
    if cut or dropped:
        say(
            trainer.args,
            f"{cut + dropped:,} conversations are longer than the cutoff of {length:,} tokens: {cut:,} lose part of "
            f"their answer, {dropped:,} have nothing left to learn and are left out.",
        )


def tune(
    scale: Scale,
    out: Path | None = None,
    minutes: float | None = None,
    price_per_hour: float | None = None,
    **changes,
) -> Path:
    """The whole of notebook 04's training at `scale`; returns the adapter's folder (`out`, or one under `scale.runs`).

    `changes` override any field of `SFTConfig`. An adapter that was in the folder before is kept beside it. Raises
    `memory.DoesNotFit` before anything is loaded, ValueError where there is nothing to train on, Stopped and
    TrainingError while training, and AdapterError where the adapter cannot be saved.
    """
    args = sft_config(scale, **changes)
    with args.main_process_first():
        conversations = clean_conversations(scale)
    config = AutoConfig.from_pretrained(scale.base_model, revision=scale.revision)
    say(args, f"\n{preflight(config, conversations, scale, args, price_per_hour)}\n")
    loading = scale.loading | {"device": str(args.device)} | (nf4.SHARDED if scale.sharding else {})
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    trainer = build_trainer(load_model(scale.base_model, **loading), tokenizer, conversations, args)
    output = run(trainer, minutes)
    folder = Path(out or scale.runs / "adapter").resolve()
    if args.process_index == 0 and folder.is_dir():
        kept = folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")
        shutil.copytree(folder, kept)
        print(f"The adapter that was in {folder.name} is kept as {kept.name}.")
    save_adapter(trainer, scale, folder)
    seconds = output.metrics["train_runtime"]
    say(args, f"{trainer.state.global_step} steps, {seconds:.0f} s here; the adapter is in {folder}")
    return folder
