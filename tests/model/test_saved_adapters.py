"""Adapters that this course trains: saved as stock folders, found in order, refused or warned about on
another base."""

import dataclasses
import json
import shutil

import pytest
from datasets import Dataset

from aurora_lib import training
from aurora_lib.course.scale import DATA, ROOT
from aurora_lib.model import AdapterError, find_adapter, load_adapter, load_model, save_adapter
from tests.data.conversations import talk


def test_saved_adapter_is_a_stock_folder_without_a_path_of_this_machine(tiny, tokenizer, recwarn):
    rows = Dataset.from_dict({"messages": [talk("法国的首都是哪里？", "法国的首都是巴黎。")] * 8})
    args = training.sft_config(tiny, max_steps=1)
    made = training.build_trainer(load_model(tiny.base_model, **tiny.loading), tokenizer, rows, args)
    training.run(made)
    folder = save_adapter(made, tiny)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert str(ROOT) not in (folder / "README.md").read_text()
    assert not (tiny.runs / "checkpoints").exists()
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(file.name for file in folder.iterdir()) == names
    load_adapter(load_model(tiny.base_model, **tiny.loading), folder)
    assert not [each for each in recwarn if each.category is UserWarning]


def test_adapter_is_found_in_order_override_own_shipped(tiny):
    assert find_adapter(tiny) == str(DATA / "tiny_adapter")
    own = tiny.runs / "adapter"
    own.mkdir(parents=True)
    (own / "adapter_config.json").write_text("{}")
    assert find_adapter(tiny) == str(own)
    assert find_adapter(dataclasses.replace(tiny, adapter="elsewhere")) == "elsewhere"
    with pytest.raises(AdapterError, match="run notebook 04"):
        find_adapter(dataclasses.replace(tiny, shipped=None, runs=tiny.runs / "none"))


def test_no_adapter_is_one_sentence_and_another_base_is_warned_about(tiny, tmp_path):
    with pytest.raises(AdapterError, match="holds no adapter"):
        load_adapter(load_model(tiny.base_model, **tiny.loading), tmp_path / "nowhere")
    config = tmp_path / "renamed" / "adapter_config.json"
    shutil.copytree(DATA / "tiny_adapter", config.parent)
    named = '"base_model_name_or_path": "tiny"'
    config.write_text(config.read_text().replace(named, named.replace("tiny", "big")))
    with pytest.warns(UserWarning, match="was trained on big and is now on tiny: the shapes fit, but"):
        load_adapter(load_model(tiny.base_model, **tiny.loading), config.parent)
