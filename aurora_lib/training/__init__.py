"""QLoRA as the paper did it (section 4.1), and preference tuning on top.

Read in this order:

- `recipe`: the paper's settings, and `build_trainer`, which fits TRL's `SFTTrainer` to a 4-bit base.
- `running`: within `resumable` a training can be stopped, killed and resumed, and end in given minutes.
- `callbacks`: the alarm for a zero gradient, the meter, held-out questions, the bar, the live picture.
- `planning`: `preflight` tells what a run will take, before anything is loaded.
- `preference`: a second stage, DPO (notebook 07).

`recipe.tune` is notebook 04's training in one call, `python -m aurora_lib.training` that from a terminal.
"""

from aurora_lib.training import callbacks, preference
from aurora_lib.training.callbacks import TrainingError
from aurora_lib.training.planning import preflight
from aurora_lib.training.recipe import SEED, adapters_in_fp32, build_trainer, lora_config, sft_config
from aurora_lib.training.running import resumable, run
