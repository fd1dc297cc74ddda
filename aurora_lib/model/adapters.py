"""Adapters as folders: saved with a model card, found, and put on a base model."""

import copy
import os
import re
import shutil
import warnings
from pathlib import Path

from huggingface_hub import hf_hub_download
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import _find_minimal_target_modules
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from aurora_lib.course import Scale, asking_hub
from aurora_lib.model.expert_lora import on_packed_experts
from aurora_lib.model.files import contents, said, skeleton

FILES = ("adapter_config.json", "adapter_model.safetensors")
ALL_LINEAR = r".*\.layers\.(?!.*\.experts\.).*"


class AdapterError(RuntimeError):
    """An adapter that is missing, damaged, made for another base or cannot be saved, and what to do."""


def save_adapter(trainer, scale: Scale, folder: Path | None = None) -> Path:
    """Save the adapter of a TRL trainer as a stock PEFT folder; remove the checkpoints of a finished run.

    Everything is written beside `folder` first. Raises AdapterError where that fails, a full disk for one.
    What was saved before and the checkpoints then stay.
    """
    folder = Path(folder or scale.runs / "adapter")
    # a hub id stays; a path of this machine would mean nothing to whoever loads the adapter elsewhere
    base = Path(scale.base_model)
    for config in trainer.model.peft_config.values():
        config.base_model_name_or_path = _model_name(base) or base.name if base.exists() else scale.base_model
        for names in ("target_modules", "target_parameters"):
            if isinstance(getattr(config, names), set):  # it would be written in any order
                setattr(config, names, sorted(getattr(config, names)))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        trainer.model.save_pretrained(unfinished, save_embedding_layers=False)
        (unfinished / "README.md").write_text(_card(trainer, scale), encoding="utf-8")
        with safe_open(unfinished / "adapter_model.safetensors", "pt") as weights:
            weights.keys()
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(unfinished.iterdir()):
            os.replace(file, folder / file.name)
        unfinished.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        about = dict(place=folder, why=error, checkpoints=trainer.args.output_dir)
        raise AdapterError(said("adapter_unsaved", **about)) from error
    if trainer.state.global_step >= trainer.state.max_steps:
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    return folder


def _card(trainer, scale: Scale) -> str:
    """`card.md` with this run's own settings; PEFT's card would hold a path of this machine."""
    args, state, lora = trainer.args, trainer.state, trainer.model.peft_config["default"]
    losses = [f"{entry['loss']:.3f}" for entry in state.log_history if "loss" in entry]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    known = dict(args=args, state=state, lora=lora, rows=len(trainer.train_dataset), batch=batch)
    known |= dict(epochs=state.epoch or 0, losses=" to ".join(losses[:1] + losses[-1:]))
    known["targets"] = ", ".join([*lora.target_modules, *(lora.target_parameters or ())])
    known["revision"] = f", revision `{scale.revision}`" if scale.revision else ""
    known["data"] = f"the local folder `{Path(scale.data).name}`" if scale.data else "the released datasets"
    if "chosen_ids" in trainer.train_dataset.column_names:
        known["data"] = "preference pairs (DPO), on top of another adapter"
    known["planned"] = "" if state.global_step >= state.max_steps else f" of {state.max_steps} planned"
    return Path(__file__).with_name("card.md").read_text(encoding="utf-8").format(**known)


def find_adapter(scale: Scale) -> str:
    """Where the tuned adapter is: AURORA_ADAPTER, else notebook 04's, else the one that `scale` has for all.

    At tiny that is in `data/`, at full the authors' own; AURORA_ADAPTER=released takes it in any case. Prints
    which one. Raises AdapterError if there is none.
    """
    place, why = scale.adapter, "AURORA_ADAPTER"
    if not place and (scale.runs / "adapter" / "adapter_config.json").is_file():
        place, why = scale.runs / "adapter", "made by notebook 04"
    elif not place and scale.shipped:
        whose = "shipped with the course" if scale.name == "tiny" else "the authors' own, released"
        place, why = scale.shipped, f"{whose}, since notebook 04 has not run here"
    if not place:
        raise AdapterError(said("adapter_none"))
    print(f"adapter: {Path(place).name} ({why})")
    return str(place)


def load_adapter(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """Put `adapter` on `model`, ready for inference: a PEFT folder, or a hub id with or without "@revision".

    Raises AdapterError when it is missing, a pickle, or of other shapes than this base, and ModelFileError
    when it is damaged. Warns where the shapes fit but it names another base.
    """
    folder = _place(adapter)
    weights = [contents(folder / file) for file in FILES][1]
    tuned = {name.partition(".lora_")[0] for name in weights}
    try:
        config = PeftConfig.from_pretrained(folder)
        if any(re.search(r"\.(gate|router|experts(\..+)?)$", name) for name in tuned):
            config.lora_dropout = 0.0  # PEFT has none for parameters, as routers are, and answers need none
        tuned = PeftModel.from_pretrained(model, folder, config=on_packed_experts(config)).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = str(error).strip().splitlines()[-1].strip()
        raise AdapterError(said("adapter_shapes", place=adapter, why=why)) from error
    named = tuned.peft_config["default"].base_model_name_or_path, model.config.name_or_path
    trained_on, here = map(_model_name, named)
    if trained_on and here and trained_on.lower() != here.lower():
        about = dict(place=Path(adapter).name, theirs=trained_on, here=here)
        warnings.warn(said("adapter_base", **about), stacklevel=2)
    return tuned


def _model_name(base: str | Path | None) -> str:
    """The last part of a folder or hub id, since the rest is where it lies; empty for a bare hash.

    Also of a snapshot in the hub's cache, of a path of Windows, and as ModelScope writes it ("v0___1").
    """
    path = str(base or "").replace("\\", "/").replace("___", ".").rstrip("/")
    name = re.sub(r"(.*/)?models--(.+--)?(.+)/snapshots/.*", r"\3", path).rpartition("/")[2]
    return "" if re.fullmatch("[0-9a-f]{40}", name) else name


def _place(adapter: str | Path) -> Path:
    """Its folder, in the hub's cache for a hub id. Raises AdapterError for what is none or out of reach."""
    local = Path(adapter).expanduser()
    if local.is_file():
        raise AdapterError(said("adapter_file", place=local))
    if local.is_dir() or local.is_absolute():
        if missing := [name for name in FILES if not (local / name).is_file()]:
            raise AdapterError(said("no_adapter", place=local, missing=missing[0]))
        return local
    name, _, revision = str(adapter).partition("@")
    with asking_hub(f"{adapter} is no folder here, and this adapter", "AURORA_ADAPTER", AdapterError):
        *_, file = [Path(hf_hub_download(name, file, revision=revision or None)) for file in FILES]
    return file.parent


def resolve_targets(config: PreTrainedConfig, lora: LoraConfig) -> tuple[LoraConfig, int, bool]:
    """`lora` with its targets as names, the parameters it trains, and whether experts are among them.

    Nothing is allocated. "all-linear" are those of the decoder's layers; PEFT itself would go on to experts
    and router. Experts are asked for by their released names, of which PEFT makes their stacks. Raises
    ValueError for targets that match no layer or not all experts, and for experts with dropout.
    """
    model = skeleton(config)
    head, modules = model.get_output_embeddings(), dict(model.named_modules())
    layers = [n for n, m in modules.items() if isinstance(m, nn.Linear | nn.Embedding) and m is not head]
    released = revert_weight_conversion(model, dict(model.named_parameters()))
    experts = [name.removesuffix(".weight") for name in released if ".experts." in name]
    own = [f".{name}" for name, _ in model.named_parameters()]
    found = {each: [n for n in own if n.endswith(f".{each}")] for each in lora.target_parameters or ()}
    refused = [each for each, places in found.items() if not places]
    stacks = {each for each, places in found.items() if any(".experts." in place for place in places)}
    patterns = {*lora.rank_pattern, *lora.alpha_pattern}  # those that match nothing, PEFT leaves out
    refused += [p for p in patterns if not any(re.fullmatch(rf"(.*\.)?({p})", n) for n in [*modules, *own])]
    asked, names, leaf = lora.target_modules or [], [], lambda name: name.rpartition(".")[2]
    patterns = {each: rf"(.*\.)?{re.escape(each)}" for each in asked}
    if isinstance(asked, str):
        patterns = {asked: ALL_LINEAR if asked.lower() == "all-linear" else asked}
    for target, pattern in patterns.items():
        hit = [name for name in layers if re.fullmatch(pattern, name)]
        tuned = [name for name in experts if re.fullmatch(pattern, name)]
        kinds = set(map(leaf, tuned))
        if not hit + tuned or len(tuned) < sum(leaf(name) in kinds for name in experts):
            refused.append(target)
        names, stacks = names + hit, stacks | kinds
    if refused:
        known = {leaf(name) for name in layers if re.fullmatch(ALL_LINEAR, name)} | set(map(leaf, experts))
        routers = [n for n in own if n.endswith((".gate.weight", ".router.weight"))] or [".mlp.gate.weight"]
        about = dict(names=", ".join(sorted(refused)), known=", ".join(sorted(known)))
        raise ValueError(said("targets", router=".".join(routers[0].split(".")[-3:]), **about))
    if stacks and lora.lora_dropout:
        raise ValueError(said("no_dropout", names=", ".join(sorted(stacks))))
    lora = copy.deepcopy(lora)
    names = _find_minimal_target_modules(names, [n for n in modules if n not in names]) if names else ()
    lora.target_modules = sorted({*names, *(stacks - found.keys())})
    trained = get_peft_model(model, copy.deepcopy(lora))
    number = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    return on_packed_experts(lora), number, bool(stacks)
