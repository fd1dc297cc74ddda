"""What a model is compared with: random where it should be, the same everywhere else, and gone afterwards."""

import pytest
import torch
from torch import nn

from aurora_lib import routing
from aurora_lib.course import DATA
from aurora_lib.model import load_model
from aurora_lib.routing import baselines
from aurora_lib.routing.tracing import routers
from tests.routing.made import trace_of


def test_a_random_router_is_a_copy_that_shares_the_rest_also_what_is_packed(model, tokenizer):
    before = routing.trace(model, tokenizer, "法国的首都是巴黎。").experts
    twin = baselines.random_router(model, seed=1)
    assert not torch.equal(routing.trace(twin, tokenizer, "法国的首都是巴黎。").experts, before)
    assert torch.equal(routing.trace(model, tokenizer, "法国的首都是巴黎。").experts, before)
    own, random = (routers(each) for each in (model, twin))
    for name, router in own.items():
        assert random[name].weight.std().item() == pytest.approx(router.weight.std().item(), rel=0.2)
    theirs, fresh = dict(twin.named_parameters()), {f"{name}.weight" for name in own}
    assert {name for name, p in model.named_parameters() if p is not theirs[name]} == fresh
    for one, other in zip(model.modules(), twin.modules(), strict=True):
        for key, state in getattr(one, "quant_states", {}).items():
            assert other.quant_states[key] is state


def test_an_adapter_switched_off_is_the_base(model, tokenizer):
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    models = (routing.WithoutAdapter(model), base, model)
    off, real, on = (routing.trace(each, tokenizer, "法国的首都是巴黎。").logits for each in models)
    assert torch.equal(off, real) and not torch.equal(on, real)


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


def test_a_shift_is_counted_by_hand():
    texts = torch.tensor([0, 0, 1, 1])
    weights = torch.tensor([[[0.6, 0.4], [0.9, 0.1], [0.5, 0.5], [0.7, 0.3]]])
    before = trace_of(torch.tensor([[[0, 1], [2, 3], [4, 5], [6, 7]]]), texts=texts, weights=weights)
    weights = torch.tensor([[[0.8, 0.2], [0.6, 0.4], [0.5, 0.5], [0.7, 0.3]]])
    after = trace_of(torch.tensor([[[0, 1], [3, 2], [4, 1], [1, 0]]]), texts=texts, weights=weights)
    found = baselines.shift(before, after, {"rounding": [before], "other": [after, before]})
    # 0.2 in the same experts; (0.9 - 0.4 + 0.6 - 0.1) / 2; half of the third token, all of the fourth
    shares = dict(slots=3 / 8, first=2 / 4, weights=(0.2 + 0.5 + 0.5 + 1.0) / 4)
    assert {name: one.value.item() for name, one in found.items()} == pytest.approx(shares)
    assert found["slots"].above.tolist() == [False]
    assert baselines.shift(before, after, {"rounding": [before]})["slots"].above.tolist() == [True]
    table = found["slots"].table()
    assert table["low"].item() < 3 / 8 < table["high"].item()
    assert all(one.value.item() == 0 for one in baselines.shift(before, before, {}).values())
    with pytest.raises(ValueError, match="differ in tokens or layers"):
        baselines.shift(before, trace_of(after.experts[:, :2]), {})
