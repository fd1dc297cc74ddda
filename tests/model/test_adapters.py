"""Adapters, and above all the one the paper's authors released: LLaMA-Factory and PEFT 0.7 of December 2023.

Sources: the files of `wangrongsheng/Aurora` as the hub lists them, and PEFT 0.7.1's `LoraConfig`.
"""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from aurora_lib.course import DATA, choose
from aurora_lib.model import AdapterError, batching, find_adapter, load_adapter, load_model, load_tokenizer
from tests.data.conversations import talk

CONFIG_07 = json.loads(Path(__file__).with_name("adapter_config_07.json").read_text())
# in the folder and in those of its checkpoints
BESIDE = "optimizer.pt rng_state.pth scheduler.pt tokenizer.json tokenizer.model training_args.bin"


class Bomb:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def released(tmp_path):
    """The bundled adapter's weights in a folder of the released layout, beside pickles that explode."""
    folder = tmp_path / "Aurora"
    folder.mkdir()
    config = CONFIG_07 | {"base_model_name_or_path": "../tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    weights = load_file(DATA / "tiny_adapter" / "adapter_model.safetensors")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"), protocol=2)  # as torch.save writes
    for name in BESIDE.split():
        (folder / name).write_bytes(bomb)
    (folder / "README.md").write_text("---\nlibrary_name: peft\nbase_model: ../tiny\n---\n")
    yield folder
    assert not (tmp_path / "exploded").exists(), "a pickle of the adapter's folder was loaded"


def answers(folder):
    """What the tuned and the base model say to two questions."""
    model = load_adapter(load_model(DATA / "tiny", dtype=torch.float32, device="cpu"), folder).eval()
    tokenizer, said = load_tokenizer(DATA / "tiny"), []
    for question in ("日本的首都是哪里？", "大熊猫生活在哪里？"):
        chat = batching.chat_prompt(tokenizer, talk(question))
        inputs = tokenizer(chat, add_special_tokens=False, return_tensors="pt")
        for way in (contextlib.nullcontext(), model.disable_adapter()):
            with batching.ready(model), way:
                ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
            said.append(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :]))
    return said


def test_folder_of_the_released_layout_is_found_and_answers_as_the_bundled_adapter_does(released, recwarn):
    place = find_adapter(choose({"AURORA_ADAPTER": str(released)}))
    said = answers(place)
    assert said == answers(DATA / "tiny_adapter")
    assert "东京" in said[0] and "Tokyo" in said[1]
    assert not [warning for warning in recwarn if "trained on" in str(warning.message)]


def test_adapter_of_the_router_loads_without_its_dropout(released):
    file, given = released / "adapter_model.safetensors", torch.ones(8, 128)
    at = "base_model.model.model.layers"
    more = {f"{at}.{layer}.block_sparse_moe.gate.lora_A.weight": given.clone() for layer in range(3)}
    more |= {name.replace("lora_A", "lora_B"): torch.ones(8, 8) for name in more}
    save_file(load_file(file) | more, file, metadata={"format": "pt"})
    config = CONFIG_07 | dict(lora_dropout=0.1, target_modules=["q_proj", "v_proj", "gate"])
    (released / "adapter_config.json").write_text(json.dumps(config))
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    loaded = dict(load_adapter(base, released).named_parameters())
    assert torch.equal(loaded[f"{at}.0.mlp.gate.lora_A.default.weight"], given)


def test_an_adapter_that_is_a_file_or_damaged_is_refused(released):
    with pytest.raises(AdapterError, match="is a file: set AURORA_ADAPTER to its folder"):
        load_adapter(None, released / "adapter_model.safetensors")
    (released / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(OSError, match="is a Git LFS pointer"):
        load_adapter(None, released)


def test_weights_that_are_a_pickle_run_nothing_and_are_refused(released):
    (released / "adapter_model.safetensors").unlink()
    (released / "training_args.bin").rename(released / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        answers(released)


def test_adapter_of_the_full_size_model_is_refused_on_the_tiny_one(released):
    weights = load_file(released / "adapter_model.safetensors")
    wide = {name: torch.zeros(8, 4096) if "lora_A" in name else weight for name, weight in weights.items()}
    save_file(wide, released / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"cannot be put on this base model .*Use an adapter trained on"):
        answers(released)


def test_hub_id_is_read_at_its_revision_and_one_out_of_reach_is_a_sentence(released, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(released, tmp_path / "models--wangrongsheng--Aurora" / "snapshots" / ("8" * 40))
    assert answers(f"wangrongsheng/Aurora@{'8' * 40}") == answers(DATA / "tiny_adapter")
    with pytest.raises(AdapterError, match=r"could not be had from the hub .*HF_ENDPOINT"):
        load_adapter(None, f"wangrongsheng/Aurora@{'9' * 40}")
