"""What a CPU can know of full-size Mixtral-8x7B on CUDA: shapes, bytes, and who waits for the device."""

import copy
import sys
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from aurora_lib.chat.decoding import FixedCache
from aurora_lib.course.machine import GIB
from aurora_lib.model import memory, nf4, random_model
from tools.record.fake_gpu import fake_gpu

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads a table of PyTorch's Linux library")


def test_full_size_mixtral_fills_the_gpu_as_predicted_and_decodes_without_waiting():
    with fake_gpu() as gpu, torch.no_grad():
        model = random_model(memory.MIXTRAL_8X7B, device="cuda:0").eval()
        predicted = memory.predict(memory.MIXTRAL_8X7B).weights
        assert gpu.allocated / GIB == pytest.approx(predicted, rel=0.02)
        cache = FixedCache(model, room=2048)
        cache.step()  # makes keys and values
        gpu.seen.clear()
        logits = cache.step()
        assert (logits.shape, logits.device.type) == ((1, 32_000), "cuda") and not gpu.waits


def test_training_with_one_grouped_product_waits_for_nothing_and_the_loop_does():
    config = copy.deepcopy(memory.MIXTRAL_8X7B)
    config.num_hidden_layers = 1  # at full width
    with fake_gpu() as gpu, patch.object(nf4, "GROUPED", 2**40):
        model = random_model(config, device="cuda:0").train()
        model.enable_input_require_grads()
        ids = torch.zeros(2, 1024, dtype=torch.long, device="cuda")
        gpu.seen.clear()
        assert model.model(ids, use_cache=False).last_hidden_state.requires_grad
        assert "aten::_grouped_mm" in gpu.names and not gpu.waits
        nf4.GROUPED = 0
        with pytest.raises(DynamicOutputShapeException, match="bincount"):  # its counts are never known
            model.model(ids, use_cache=False)
