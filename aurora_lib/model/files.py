"""Where a model lies, looked at before anything is loaded: what is missing, damaged or of another kind."""

import json
import tomllib
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from aurora_lib.course import hub_remedy

OTHER_KINDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
INDEX = "model.safetensors.index.json"
READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)


class ModelFileError(OSError):
    """A model that is missing, incomplete, damaged or of another kind; the message names file and remedy."""


def read_config(path_or_id: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model that can be loaded: in a local folder, no tensor is missing.

    Raises ModelFileError for one that cannot be, is quantized already, or is not to be had from the hub.
    """
    folder = local(path_or_id)
    if folder and not (folder / "config.json").is_file():
        raise _other_kind(folder, "config.json")
    try:
        if not folder:
            hf_hub_download(str(path_or_id), "config.json", revision=revision)
    except Exception as error:  # of many kinds, and not all are an OSError
        raise out_of_reach(path_or_id, "config.json", error) from error
    try:
        config = AutoConfig.from_pretrained(folder or path_or_id, revision=revision, trust_remote_code=False)
        quantized = getattr(config, "quantization_config", None)
        model = None if quantized else skeleton(config)
    except Exception as error:
        raise ModelFileError(
            f"{path_or_id} is of no kind that can be loaded here ({_first(error)})."
        ) from error
    if quantized:
        how = dict(quantized).get("quant_method", "bitsandbytes")
        remedy = "Experts are packed from 16-bit weights: set AURORA_MODEL to the 16-bit original."
        raise ModelFileError(f"{path_or_id} is quantized already ({how}). {remedy}")
    if folder:
        held = _tensors(folder)
        held |= {f"{model.base_model_prefix}.{name}" for name in held}  # a base saved without its head
        rest = {name: p for name, p in model.named_parameters() if name not in held}
        if missing := [name for name in revert_weight_conversion(model, rest) if name not in held]:
            some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ModelFileError(f"The *.safetensors in {folder} lack {some}. Download them again.")
    return config


def local(path_or_id: str | Path) -> Path | None:
    """The folder that is meant, its JSON read through; None for a hub id. Raises ModelFileError."""
    folder = Path(path_or_id).expanduser()
    if folder.is_file():
        wanted = "a folder with config.json, tokenizer.json and 16-bit *.safetensors, or to a hub id"
        raise ModelFileError(f"{folder} is a file: set AURORA_MODEL to {wanted}.")
    if folder.is_absolute() and not folder.is_dir():
        raise ModelFileError(f"{folder} does not exist. Check AURORA_MODEL.")
    for file in (folder / name for name in READ):
        if file.is_file():
            read_json(file)
    return folder if folder.is_dir() else None


def skeleton(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model of shapes alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _tensors(folder: Path) -> set[str]:
    """The names of the tensors that loading would find."""
    if (single := folder / "model.safetensors").is_file():
        return tensor_names(single)
    if not (index := folder / INDEX).is_file():
        raise _other_kind(folder, single.name)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelFileError(f"{index} names no file of weights. Download it again.")
    return set().union(*(tensor_names(folder / str(file)) for file in set(places.values())))


def tensor_names(file: Path) -> set[str]:
    """The names in a *.safetensors. Raises ModelFileError where it is missing, cut off or something else."""
    try:
        with safe_open(file, "pt") as weights:
            return set(weights.keys())
    except (OSError, SafetensorError) as error:
        raise damaged(file, f"is missing or cut off ({error})") from error


def read_json(file: Path) -> dict:
    """The object in `file`. Raises ModelFileError where it holds none."""
    try:
        if isinstance(value := json.loads(file.read_text(encoding="utf-8")), dict):
            return value
    except ValueError:
        pass
    raise damaged(file, "holds no whole JSON object")


def damaged(file: Path, reason: str) -> ModelFileError:
    """What to raise for `file`, whose beginning may know a better reason."""
    head = file.read_bytes()[:100].lstrip().lower() if file.is_file() and file.stat().st_size < 1e7 else b""
    if head.startswith(b"version https://git-lfs"):
        reason = "is a Git LFS pointer, not the file itself (`git lfs pull` fetches that)"
    elif head.startswith((b"<!doctype", b"<html")):
        reason = "is a web page"
    return ModelFileError(f"{file} {reason}. Download it again.")


def out_of_reach(name: str | Path, what: str, error: Exception) -> ModelFileError:
    """What to raise where the hub did not give `what` of the model `name`."""
    why = _first(error) if type(error) is OSError else type(error).__name__
    failed = f"{name} is no folder here, and its {what} could not be had from the hub ({why})."
    return ModelFileError(f"{failed} {hub_remedy()}, or set AURORA_MODEL to a local folder.")


def _other_kind(folder: Path, missing: str) -> ModelFileError:
    for pattern, kind in OTHER_KINDS.items():
        if found := sorted(folder.glob(pattern)):
            return ModelFileError(f"{folder} holds no model that can be loaded, but {found[0].name}: {kind}.")
    return ModelFileError(f"{folder} holds no model: {missing} is missing. Check AURORA_MODEL.")


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
