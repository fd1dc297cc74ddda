import matplotlib
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from aurora_lib import routing
from aurora_lib.model import load_tokenizer

matplotlib.use("Agg")
TEXT = "混合专家：the router picks <b>two</b> of eight 龘"
SIZES = dict(
    vocab_size=32_000,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.5,
)
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES),
    "qwen3": Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=24,
        num_experts=6,
        num_experts_per_tok=3,
        head_dim=8,
        mlp_only_layers=[1],
    ),
    "olmoe": OlmoeConfig(**SIZES, num_experts=6, num_experts_per_tok=3),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for router in routing.routers(model).values():
        nn.init.normal_(router.weight)  # some families start their routers at zero
    return model


@pytest.fixture(scope="module")
def mixtral_tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return build(CONFIGS[request.param])


@pytest.fixture(scope="module")
def mixtral():
    return build(CONFIGS["mixtral"])


@pytest.fixture(scope="module")
def trace(mixtral, mixtral_tokenizer):
    return routing.trace(mixtral, mixtral_tokenizer, TEXT)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_trace_has_the_promised_shapes(model, mixtral_tokenizer):
    trace = routing.trace(model, mixtral_tokenizer, TEXT)
    layers, top_k = len(routing.routers(model)), model.config.num_experts_per_tok
    assert trace.experts.shape == trace.weights.shape == (layers, len(trace.tokens), top_k)
    assert trace.experts.dtype == torch.int64 and trace.weights.dtype == torch.float32
    assert trace.layers == ([0, 2] if model.config.model_type == "qwen3_moe" else [0, 1, 2])


def test_weights_sum_to_one_and_strongest_comes_first(model, mixtral_tokenizer):
    weights = routing.trace(model, mixtral_tokenizer, TEXT).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    assert (weights.diff(dim=-1) <= 0).all()


def test_block_output_is_recomputed_from_the_trace(model, mixtral_tokenizer):
    blocks = [model.get_submodule(name.rpartition(".")[0]) for name in routing.routers(model)]
    seen = []
    keep = [b.register_forward_hook(lambda m, args, out: seen.append((args[0][0], out[0]))) for b in blocks]
    trace = routing.trace(model, mixtral_tokenizer, TEXT)
    for handle in keep:
        handle.remove()
    for layer, (block, (x, out)) in enumerate(zip(blocks, seen, strict=True)):
        again = torch.zeros_like(out)
        for token in range(len(x)):
            for expert, score in zip(trace.experts[layer, token], trace.scores[layer, token], strict=True):
                gate, up = (block.experts.gate_up_proj[expert] @ x[token]).chunk(2)
                again[token] += score * (block.experts.down_proj[expert] @ (nn.functional.silu(gate) * up))
        torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5 * float(out.abs().max()))


def test_tokens_are_readable(trace):
    assert trace.tokens[0] == "<s>" and "家" in trace.tokens and "<0xE9>" in trace.tokens
    assert "".join(trace.tokens[1:]).startswith("▁混合")


def test_tracing_changes_neither_output_nor_mode_nor_hooks(mixtral, mixtral_tokenizer):
    ids = torch.tensor([[1, 5, 300, 4000]])
    before = mixtral(ids).logits
    mixtral.train()
    routing.trace(mixtral, mixtral_tokenizer, TEXT)
    assert mixtral.training and hooks(mixtral) == 0
    assert torch.equal(mixtral.eval()(ids).logits, before)


def test_hooks_are_gone_after_an_exception(mixtral):
    with pytest.raises(KeyboardInterrupt), routing.recording(mixtral):
        assert hooks(mixtral) == 3
        raise KeyboardInterrupt
    assert hooks(mixtral) == 0


def test_recording_holds_batches_and_generation_with_a_cache(mixtral):
    ids = torch.randint(3, 32_000, (2, 5))
    with routing.recording(mixtral) as records:
        mixtral.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    for calls in records.values():
        assert [len(experts) for _, _, experts in calls] == [10, 2, 2]


def test_adapter_leaves_the_trace_working(mixtral_tokenizer, trace):
    wrapped = get_peft_model(build(CONFIGS["mixtral"]), LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert torch.equal(routing.trace(wrapped, mixtral_tokenizer, TEXT).experts, trace.experts)


def test_dense_model_and_empty_text_are_refused(mixtral, mixtral_tokenizer):
    dense = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    for refused in (
        lambda: routing.trace(dense, mixtral_tokenizer, TEXT),
        lambda: routing.random_router(dense),
    ):
        with pytest.raises(ValueError, match="no top-k router"):
            refused()
    with pytest.raises(ValueError, match="text is empty"):
        routing.trace(mixtral, mixtral_tokenizer, "")


def test_load_counts_slots(trace):
    load = routing.load(trace)
    assert load.shape == (3, 8)
    assert load[1, 4] == pytest.approx((trace.experts[1] == 4).float().mean())


def test_entropy_of_balanced_and_collapsed_load():
    load = torch.tensor([[1 / 8] * 8, [1.0] + [0.0] * 7])
    torch.testing.assert_close(routing.entropy(load), torch.tensor([3.0, 0.0]))


def test_balance_loss_is_the_librarys(trace):
    library = load_balancing_loss_func(tuple(trace.logits), num_experts=8, top_k=2)
    torch.testing.assert_close(routing.balance_loss(trace.logits, 2), library)


def test_pooled_balance_loss_hides_what_single_layers_show():
    logits = torch.full((2, 4, 4), -100.0)
    logits[0, :, :2] = 100.0  # layer 0 uses experts 0 and 1 only, layer 1 the other two
    logits[1, :, 2:] = 100.0
    assert routing.balance_loss(logits, 2) == pytest.approx(2.0)
    assert routing.balance_loss(logits, 2, per_layer=True).tolist() == pytest.approx([4.0, 4.0])


def test_random_router_is_a_copy_that_shares_the_rest(mixtral, mixtral_tokenizer, trace):
    twin = routing.random_router(mixtral, seed=1)
    assert not torch.equal(routing.trace(twin, mixtral_tokenizer, TEXT).experts, trace.experts)
    assert torch.equal(routing.trace(mixtral, mixtral_tokenizer, TEXT).experts, trace.experts)
    assert twin.lm_head.weight is mixtral.lm_head.weight
    weights = [next(iter(routing.routers(m).values())).weight for m in (mixtral, twin)]
    assert weights[1].std().item() == pytest.approx(weights[0].std().item(), rel=0.2)


def test_mutual_information_finds_what_is_there_and_nothing_else(trace):
    many = routing.join([trace] * 30)
    told = routing.mutual_information(many, many.experts[0, :, 0].tolist())
    assert told.bits[0] > 0.5 > 2 * told.upper[0]
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 2, (len(many.tokens),), generator=generator).tolist()
    told = routing.mutual_information(many, noise)
    assert (told.bits < 3 * told.upper).all() and (told.baseline < 0.02).all()
    with pytest.raises(ValueError, match="one label per token"):
        routing.mutual_information(trace, ["zh"])


def test_scripts_label_tokens():
    assert routing.scripts(["▁混", "▁the", "<0xE9>", "，", "<s>"]) == ["zh", "en", "byte", "other", "other"]


def test_html_is_escaped_and_chinese_readable(trace):
    page = routing.to_html(trace, 2)
    assert "家<sub>" in page and "&lt;0xE9&gt;" in page and "&lt;s&gt;" in page
    assert "<b>" not in page and "<s>" not in page
    with pytest.raises(ValueError, match="choose 0 to 2"):
        routing.to_html(trace, 3)


def test_load_plot_has_a_cell_per_layer_and_expert(trace):
    axes = routing.plot_load(routing.load(trace))
    assert len(axes.texts) == 24 and axes.get_xlabel() == "expert"
    matplotlib.pyplot.close(axes.figure)
