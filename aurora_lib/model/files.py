"""Where a model lies, looked at before anything is loaded. What is then said is in `faults.toml`."""

import json
import tomllib
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from sentencepiece import SentencePieceProcessor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from aurora_lib.course import asking_hub

FAULTS = tomllib.loads(Path(__file__).with_name("faults.toml").read_text(encoding="utf-8"))
INDEX = "model.safetensors.index.json"
READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)


class ModelFileError(OSError):
    """A model that is missing, incomplete, damaged or of another kind; the message names file and remedy."""


def said(fault: str, **about) -> str:
    """The sentence of `faults.toml`."""
    return FAULTS[fault].format(**about)


def read_config(path_or_id: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model that can be loaded: in a local folder, no tensor is missing.

    Raises ModelFileError for one that cannot be, is quantized already, or is not to be had from the hub.
    """
    folder = local(path_or_id)
    if folder and not (folder / "config.json").is_file():
        raise _other_kind(folder, "config.json")
    with reaching(path_or_id, "config.json"):
        place = folder or Path(hf_hub_download(str(path_or_id), "config.json", revision=revision)).parent
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        quantized = getattr(config, "quantization_config", None)
        model = None if quantized else skeleton(config)
    except Exception as error:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelFileError(said("unknown", place=path_or_id, why=why)) from error
    if quantized:
        how = dict(quantized).get("quant_method", "bitsandbytes")
        raise ModelFileError(said("quantized", place=path_or_id, how=how))
    held = _tensors(folder) if folder else {name for name, _ in model.named_parameters()}
    held |= {f"{model.base_model_prefix}.{name}" for name in held}  # as a base without its head is saved
    rest = {name: p for name, p in model.named_parameters() if name not in held}
    if missing := [name for name in revert_weight_conversion(model, rest) if name not in held]:
        some = ", ".join([*missing[:3], *(["..."] if len(missing) > 3 else [])])
        raise ModelFileError(said("incomplete", place=folder, count=len(missing), tensors=some))
    return config


def local(path_or_id: str | Path) -> Path | None:
    """The folder that is meant, its JSON read through; None for a hub id. Raises ModelFileError."""
    folder = Path(path_or_id).expanduser()
    if not folder.is_dir() and (folder.is_file() or folder.is_absolute()):
        raise ModelFileError(said("a_file" if folder.is_file() else "nowhere", place=folder))
    for file in (folder / name for name in READ):
        if file.is_file():
            contents(file)
    return folder if folder.is_dir() else None


def reaching(path_or_id: str | Path, what: str) -> AbstractContextManager:
    """Around what may ask the hub: raises ModelFileError where that does not answer."""
    if Path(path_or_id).expanduser().is_dir():
        return nullcontext()
    return asking_hub(f"{path_or_id} is no folder here, and its {what}", "AURORA_MODEL", ModelFileError)


def skeleton(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model of shapes alone."""
    # PEFT and TRL, which come next, still ask transformers by the old name; nobody here can act on it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _tensors(folder: Path) -> set[str]:
    """The names of the tensors that loading would find."""
    files, index = {"model.safetensors"}, folder / INDEX
    if not (folder / "model.safetensors").is_file():
        if not index.is_file():
            raise _other_kind(folder, "model.safetensors")
        places = contents(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelFileError(said("no_places", place=index))
        files = set(map(str, places.values()))
    return set().union(*(contents(folder / file) for file in sorted(files)))


def contents(file: Path) -> dict | set[str] | SentencePieceProcessor:
    """What a *.json holds, the names in a *.safetensors, or a tokenizer.model. Raises ModelFileError."""
    try:
        if file.suffix == ".json":
            return dict(json.loads(file.read_text(encoding="utf-8")))
        if file.suffix != ".safetensors":
            return SentencePieceProcessor(model_file=str(file))
        with safe_open(file, "pt") as weights:
            return set(weights.keys())
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        begins = file.read_bytes()[:100].lower() if file.is_file() and file.stat().st_size < 1e7 else b""
        found = [what for sign, what in FAULTS["instead"].items() if sign.encode() in begins]
        why = found[0] if found else f"is missing, cut off or something else ({error})"
        raise ModelFileError(said("damaged", place=file, why=why)) from error


def _other_kind(folder: Path, missing: str) -> ModelFileError:
    for pattern, kind in FAULTS["other_kinds"].items():
        for file in sorted(folder.glob(pattern)):
            return ModelFileError(said("other_kind", place=folder, kind=kind.format(file=file.name)))
    return ModelFileError(said("no_model", place=folder, missing=missing))
