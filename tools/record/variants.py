"""What if you change a value of the recipe? `run` tunes and probes a fresh base, and keeps what it found."""

import gc
import json
import random
import time
from collections.abc import Mapping
from importlib.metadata import version

from datasets import Dataset
from datasets.fingerprint import Hasher
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTConfig

from aurora_lib.course import Scale, write_whole
from aurora_lib.data import language
from aurora_lib.evaluation import probe
from aurora_lib.model import load_model, load_tokenizer
from aurora_lib.training import SEED, build_trainer, lora_config, sft_config

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def is_english(row: Mapping) -> bool:
    """Whether a conversation's last answer is in English."""
    return language(row["messages"][-1]["content"]) == "en"


def mixed(conversations: Dataset, share: float) -> Dataset:
    """`conversations` with `share` (0 to 1) of them English: of one language all rows, of the other a sample.

    No row is repeated. Raises ValueError for a share that the rows cannot give.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"english_share={share} is no share: give a number from 0 to 1.")
    other, english = [], []
    for number, row in enumerate(conversations):
        (english if is_english(row) else other).append(number)
    parts = (english, share), (other, 1 - share)
    size = min(len(side) / part for side, part in parts if part)  # of the mix
    if size == 0:
        given = f"Of these {len(conversations)} conversations {len(english)} are English"
        raise ValueError(f"{given}: no mix has {share:.0%}.")
    draw = random.Random(SEED)
    kept = [number for side, part in parts for number in draw.sample(side, round(size * part))]
    return conversations.select(sorted(kept))


def run(scale, conversations, validation, *, lora=None, settings=None, english_share=None) -> dict:
    """Tune a fresh 4-bit base with the recipe and these changes, and probe it on facts tuning never shows.

    `conversations` and `validation` are as of `hold_out`.

    `lora` changes fields of `LoraConfig`, `settings` of `SFTConfig`. `english_share` makes a mix of the rows
    (see `mixed`) and trains on it for as many steps as all rows would take, so that only the mix differs.

    The row returned: seed; conversations, and english (how many of them); steps; zh_in_zh, zh_right,
    en_in_en, en_right (shares: the answers to Chinese and English prompts that came in that language, and
    that were also right); loss (on `validation`, after); seconds, cpu_seconds (does not grow on a busy
    machine); trainable (parameters). It is kept on disk, and asking for the same again reads it.

    At `full` a run takes hours: `settings={"max_steps": 50}` makes it short. Raises ValueError for a mix that
    the rows cannot give, TrainingError where the gradient is zero.
    """
    # eval_packing: the loss is compared on the same batches, whatever the training does
    given = {"save_strategy": "no", "disable_tqdm": True, "packing": False, "eval_packing": False}
    settings = given | dict(settings or {})
    if english_share is not None:
        per_step = scale.batch * scale.accumulation
        settings = {"max_steps": int(-(-len(conversations) // per_step) * scale.epochs)} | settings
        conversations = mixed(conversations, english_share)
    adapter, args = lora_config(**(lora or {})), sft_config(scale, **settings)
    decides = [scale.base_model, scale.revision, adapter.to_dict(), args.to_dict(), *map(version, LIBRARIES)]
    key = Hasher.hash([*decides, *conversations["messages"], *validation["messages"]])
    file = scale.runs / "experiments" / f"{key}.json"
    if not file.is_file():
        write_whole(file, json.dumps(_tune(scale, conversations, validation, adapter, args), indent=1) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def _tune(scale: Scale, conversations, validation, adapter: LoraConfig, args: SFTConfig) -> dict:
    gc.collect()  # a model that the caller has let go of may still be there
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    base = load_model(scale.base_model, **scale.loading)
    trainer = build_trainer(base, tokenizer, conversations, args, adapter)
    trainer.remove_callback(PrinterCallback)
    began = time.process_time()
    seconds = trainer.train().metrics["train_runtime"]
    busy = time.process_time() - began
    loss = trainer.evaluate(validation.select_columns(["messages"]))["eval_loss"]
    probed = probe(trainer.model.eval(), tokenizer, max_new_tokens=scale.max_new_tokens, progress=False)
    share = {
        f"{asked}_{short}": round(probed.score(asked, what).accuracy, 4)
        for asked in ("zh", "en")
        for short, what in ((f"in_{asked}", "in_language"), ("right", "correct"))
    }
    row = dict(seed=args.seed, conversations=len(conversations), english=sum(map(is_english, conversations)))
    row |= dict(steps=trainer.state.global_step) | share | dict(loss=round(loss, 4))
    row |= dict(seconds=round(seconds, 1), cpu_seconds=round(busy, 1))
    row["trainable"] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return row
