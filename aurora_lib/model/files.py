"""Is a local model folder whole? Asked before minutes are spent on loading it."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open


class ModelFileError(OSError):
    """A model folder that is missing, incomplete or damaged; the message names the file and the remedy."""


def check(folder: Path) -> None:
    """Refuse a local model folder whose files are missing or cut off, before minutes are spent on loading.

    Raises ModelFileError.
    """
    if not (folder / "config.json").is_file():
        raise ModelFileError(
            f"{folder} holds no model: config.json is missing. Check the path (AURORA_MODEL)."
        )
    index = folder / "model.safetensors.index.json"
    names = (
        set(json.loads(index.read_text())["weight_map"].values())
        if index.is_file()
        else {"model.safetensors"}
    )
    for file in (folder / name for name in sorted(names)):
        try:
            with safe_open(file, "pt") as weights:
                weights.keys()
        except (OSError, SafetensorError) as error:
            raise ModelFileError(
                f"{file} is missing or cut off ({error}). Download that file again."
            ) from error
