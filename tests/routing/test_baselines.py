"""What a model is compared with: random where it should be, the same everywhere else, and gone afterwards."""

import pytest
import torch
from torch import nn

from aurora_lib import routing
from aurora_lib.routing import baselines
from aurora_lib.routing.tracing import routers


def test_a_random_router_is_a_copy_that_shares_the_rest_also_what_is_packed(model, tokenizer):
    before = routing.trace_many(model, tokenizer, ["法国的首都是巴黎。"]).experts
    twin = baselines.random_router(model, seed=1)
    assert not torch.equal(routing.trace_many(twin, tokenizer, ["法国的首都是巴黎。"]).experts, before)
    assert torch.equal(routing.trace_many(model, tokenizer, ["法国的首都是巴黎。"]).experts, before)
    own, random = (routers(each) for each in (model, twin))
    for name, router in own.items():
        assert random[name].weight.std().item() == pytest.approx(router.weight.std().item(), rel=0.2)
    theirs, fresh = dict(twin.named_parameters()), {f"{name}.weight" for name in own}
    assert {name for name, p in model.named_parameters() if p is not theirs[name]} == fresh
    for one, other in zip(model.modules(), twin.modules(), strict=True):
        for key, state in getattr(one, "quant_states", {}).items():
            assert other.quant_states[key] is state


def test_a_random_adapter_is_as_large_and_gone_afterwards(model):
    def updates():
        layers = [module for module in model.modules() if hasattr(module, "lora_A")]
        parts = [(each.lora_B["default"].weight, each.lora_A["default"].weight) for each in layers]
        return [(b @ a).detach().flatten() for b, a in parts]

    before = updates()
    with pytest.raises(KeyboardInterrupt), baselines.random_adapter(model, seed=1):
        for random, trained in zip(updates(), before, strict=True):
            assert random.norm() == pytest.approx(trained.norm().item(), rel=1e-4)
            assert abs(nn.functional.cosine_similarity(random, trained, dim=0)) < 0.2
        raise KeyboardInterrupt
    assert all(map(torch.equal, updates(), before))


def test_a_model_without_routers_or_adapter_is_refused():
    with pytest.raises(ValueError, match="no top-k router"):
        baselines.random_router(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no LoRA adapter"), baselines.random_adapter(nn.Linear(1, 1)):
        pass
