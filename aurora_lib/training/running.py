"""`trainer.train` that can be stopped, killed and gone on with, and that says so in a sentence."""

import errno
from pathlib import Path

from accelerate.utils import broadcast_object_list
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import TrainerState, set_seed
from transformers.trainer_utils import TrainOutput
from trl import SFTConfig, SFTTrainer

from aurora_lib.training import checkpoints
from aurora_lib.training.callbacks import NoGradient, StopBetweenSteps, require_gradient


class Stopped(KeyboardInterrupt):
    """A run stopped on request; the message says after which step and how to go on. Like Ctrl-C, it ends a notebook's run."""


class SaveError(RuntimeError):
    """A checkpoint that could not be written; the message says which one is left and what to do."""


def say(args: SFTConfig, sentence: str) -> None:
    """Print, in the main process only."""
    if args.process_index == 0:
        print(sentence, flush=True)


def run(trainer: SFTTrainer, minutes: float | None = None) -> TrainOutput:
    """Train, from the last whole checkpoint of this very run if there is one; notebook and terminal both call this.

    Ctrl-C finishes the step in flight, writes a checkpoint and raises Stopped; a second one stops at once. After
    `minutes` it stops in the same way and returns. `metrics` of what it returns holds `resumed_from_step` and
    `tokens_here`. Raises SaveError where a checkpoint cannot be written, NoGradient where nothing is learned.
    """
    folder, args = Path(trainer.args.output_dir), trainer.args
    stop = StopBetweenSteps(minutes)
    trainer.add_callback(stop)
    state = TrainerState()
    try:
        found = (
            checkpoints.claim(folder, checkpoints.fingerprint(trainer)) if args.process_index == 0 else None
        )
        found = broadcast_object_list([found])[0]
        if found:
            state = TrainerState.load_from_json(str(found / "trainer_state.json"))
        set_seed(args.seed)  # so that evaluating before training, or not, makes no difference
        if found and state.global_step >= state.max_steps:
            output = _take_up(trainer, found, state)
        else:
            say(args, f"Training from step {state.global_step}.")
            with stop:
                output = trainer.train(resume_from_checkpoint=str(found) if found else None)
    except KeyboardInterrupt:
        last = checkpoints.newest_whole(folder)
        raise Stopped(
            f"Stopped at once in step {trainer.state.global_step + 1}. Run the same again: it goes on from "
            f"{last.name if last else 'the beginning'}."
        ) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, NoGradient) or not _while_saving(trainer, error):
            raise
        last = checkpoints.newest_whole(folder)
        raise SaveError(
            f"The checkpoint of step {trainer.state.global_step} could not be written to {folder} ({error}). "
            f"{f'{last.name} is whole' if last else 'There is none before it'}: make room and run the same again. In a "
            f"notebook the trained weights are still in memory, and adapters.save_adapter can save them elsewhere."
        ) from error
    finally:
        trainer.remove_callback(stop)
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if stop.why:
        sentence = (
            f"step {step} of {steps}; checkpoint-{step} is saved. Run the same again to go on from there."
        )
        if stop.why == "signal":
            raise Stopped(f"Stopped after {sentence}")
        say(args, f"The {minutes:g} minutes are over after {sentence}")
    require_gradient(trainer.state.log_history)
    output.metrics["resumed_from_step"] = state.global_step
    output.metrics["tokens_here"] = trainer.state.num_input_tokens_seen - state.num_input_tokens_seen
    return output


def _while_saving(trainer: SFTTrainer, error: Exception) -> bool:
    """Whether it was a checkpoint that failed: the disk says so, or a half-written one is there."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    half = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    return half.is_dir() and checkpoints.damage(half) is not None


def _take_up(trainer: SFTTrainer, checkpoint: Path, state: TrainerState) -> TrainOutput:
    """The result of a run that had made all its steps; `train` would make one more where an epoch is not over."""
    set_peft_model_state_dict(trainer.model, load_peft_weights(str(checkpoint), device="cpu"))
    trainer.state = state
    loss = [entry["loss"] for entry in state.log_history if "loss" in entry][-1]
    return TrainOutput(state.global_step, loss, {"train_runtime": 0.0, "train_loss": loss})
