"""What a model is compared with: random where it should be, the same everywhere else, and gone afterwards."""

import pytest
import torch
from torch import nn

from aurora_lib import routing
from aurora_lib.course import DATA
from aurora_lib.model import load_model, nf4
from aurora_lib.routing import baselines
from aurora_lib.routing.tracing import routers
from tests.routing.made import CONFIGS, build, trace_of


def test_a_random_router_is_a_copy_that_shares_the_rest(tokenizer):
    model = build(CONFIGS["mixtral"])
    before = routing.trace(model, tokenizer, "法国的首都是巴黎。")
    twin = baselines.random_router(model, seed=1)
    assert not torch.equal(routing.trace(twin, tokenizer, "法国的首都是巴黎。").experts, before.experts)
    assert torch.equal(routing.trace(model, tokenizer, "法国的首都是巴黎。").experts, before.experts)
    assert twin.lm_head.weight is model.lm_head.weight
    own, random = (next(iter(routers(each).values())).weight for each in (model, twin))
    assert random.std().item() == pytest.approx(own.std().item(), rel=0.2)


def test_a_random_router_of_a_4_bit_model_shares_what_is_packed(model):
    twin = baselines.random_router(model)
    for one, other in zip(nf4.expert_stacks(model).values(), nf4.expert_stacks(twin).values(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    for one, other in zip(model.modules(), twin.modules(), strict=True):
        for key, state in getattr(one, "quant_states", {}).items():
            assert other.quant_states[key].absmax.data_ptr() == state.absmax.data_ptr()


def test_an_adapter_switched_off_is_the_base(model, tokenizer):
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    off, real, on = (
        routing.trace(each, tokenizer, "法国的首都是巴黎。").logits
        for each in (routing.WithoutAdapter(model), base, model)
    )
    assert torch.equal(off, real) and not torch.equal(on, real)


def test_a_random_adapter_is_as_large_and_gone_afterwards(model):
    def updates():
        return {
            name: module.lora_B["default"].weight.detach() @ module.lora_A["default"].weight.detach()
            for name, module in model.named_modules()
            if hasattr(module, "lora_A")
        }

    before = updates()
    with pytest.raises(KeyboardInterrupt), baselines.random_adapter(model, seed=1):
        for name, update in updates().items():
            assert update.norm() == pytest.approx(before[name].norm().item(), rel=1e-4)
            cosine = nn.functional.cosine_similarity(update.flatten(), before[name].flatten(), dim=0)
            assert abs(cosine) < 0.2
        raise KeyboardInterrupt
    assert all(torch.equal(update, before[name]) for name, update in updates().items())


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
    assert found["slots"].value.item() == pytest.approx(3 / 8)
    assert found["first"].value.item() == pytest.approx(2 / 4)
    # 0.2 inside the same experts; (0.9 - 0.4 + 0.6 - 0.1) / 2; half of the third token; all of the fourth
    assert found["weights"].value.item() == pytest.approx((0.2 + 0.5 + 0.5 + 1.0) / 4)
    assert found["slots"].above.tolist() == [False]
    assert baselines.shift(before, after, {"rounding": [before]})["slots"].above.tolist() == [True]
    for one in found.values():
        table = one.table()
        assert table["low"].item() <= table[one.name].item() <= table["high"].item()
    assert all(one.value.item() == 0 for one in baselines.shift(before, before, {}).values())
    with pytest.raises(ValueError, match="differ in tokens or layers"):
        baselines.shift(before, trace_of(after.experts[:, :2]), {})
