"""Checkpoints: which one to go on from."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


def checkpoint_to_resume(output_dir: str | Path) -> Path | None:
    """The newest checkpoint in `output_dir` that was written completely; damaged ones are named and passed over."""
    found = sorted(
        Path(output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True
    )
    for checkpoint in found:
        try:
            step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
            with safe_open(checkpoint / "adapter_model.safetensors", "pt") as weights:
                weights.keys()
            torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError) as error:
            print(
                f"{checkpoint.name} was not written completely ({type(error).__name__}); trying the one before it."
            )
            continue
        print(f"Resuming from {checkpoint.name}, step {step}.")
        return checkpoint
    return None
