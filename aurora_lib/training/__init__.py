"""QLoRA as the paper did it."""

from aurora_lib.training.planning import preflight
from aurora_lib.training.recipe import SEED, adapters_in_fp32, build_trainer, lora_config, sft_config, tune
from aurora_lib.training.running import run

__all__ = [
    "SEED",
    "adapters_in_fp32",
    "build_trainer",
    "lora_config",
    "preflight",
    "run",
    "sft_config",
    "tune",
]
