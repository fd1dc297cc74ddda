"""What watches a training run."""

from transformers import TrainerCallback


class ZeroGradientAlarm(TrainerCallback):
    """Stops a run whose gradient is exactly zero: a repacked or frozen layer learns nothing, however the loss looks."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and logs.get("grad_norm") == 0:
            raise RuntimeError(
                f"The gradient norm is 0 at step {state.global_step}: nothing is being learned. Load the base with "
                f"aurora_lib.nf4.load, which keeps the layers trainable on CPUs with AVX512_BF16."
            )
