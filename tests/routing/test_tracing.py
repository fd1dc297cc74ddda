"""A trace is what the routers really chose: the blocks' outputs can be computed again from it."""

import pytest
import torch
from torch import nn

from aurora_lib import routing
from aurora_lib.model import nf4
from aurora_lib.routing.tracing import routers
from tests.routing.made import CONFIGS, build

TEXTS = ["法国的首都是巴黎。", "混合专家：the router picks <b>two</b> of eight 龘", "Yes.", "龘", "Who?"]


@pytest.fixture(scope="module", params=[*CONFIGS, "4-bit with adapter"])
def moe(request):
    return build(CONFIGS[request.param]) if request.param in CONFIGS else request.getfixturevalue("model")


@pytest.fixture(scope="module")
def mixtral():
    return build(CONFIGS["mixtral"])


def blocks_of(model, ids):
    """Every block with its input and output `[tokens, hidden]` in a plain forward of one text."""
    seen = []

    def keep(block, given, out):
        if hasattr(block, "experts"):
            seen.append((block, given[0][0], out[0]))

    with nn.modules.module.register_module_forward_hook(keep):
        model(input_ids=ids[None], use_cache=False)
    return seen


def stacks_of(block):
    """Both weight stacks of a block's experts in plain numbers, `[experts, ..., ...]`."""
    for key in ("gate_up_proj", "down_proj"):
        state, packed = getattr(block.experts, "quant_states", {}).get(key), getattr(block.experts, key)
        yield nf4.bnb.functional.dequantize_4bit(packed, state).view(state.shape) if state else packed


@torch.no_grad()
def test_the_blocks_outputs_are_recomputed_from_the_trace_of_a_padded_batch(moe, tokenizer):
    trace = routing.trace_many(moe, tokenizer, TEXTS, batch_tokens=80)  # two texts a batch
    for text, written in enumerate(TEXTS):
        own = trace.texts == text
        assert trace.ids[own].tolist() == [1, *tokenizer(written, add_special_tokens=False).input_ids]
        for layer, (block, x, out) in enumerate(blocks_of(moe, trace.ids[own])):
            experts, weights = trace.experts[layer, own], trace.weights[layer, own]
            if not getattr(moe.config, "norm_topk_prob", True):  # this block does not renormalise
                weights = trace.logits[layer, own].softmax(-1).gather(-1, experts)
            gate_up, down = stacks_of(block)
            gate, up = torch.einsum("th,tkih->tki", x, gate_up[experts]).chunk(2, dim=-1)
            each = torch.einsum("tki,tkhi->tkh", nn.functional.silu(gate) * up, down[experts])
            again = (weights[:, :, None] * each).sum(1)
            torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-4 * float(out.abs().max()))


def test_a_trace_has_the_promised_shapes_and_weights(moe, tokenizer):
    trace = routing.trace_many(moe, tokenizer, [TEXTS[1]])
    layers, top_k = len(routers(moe)), moe.config.num_experts_per_tok
    assert trace.experts.shape == trace.weights.shape == (layers, len(trace.tokens), top_k)
    assert trace.experts.dtype == torch.int64 and trace.weights.dtype == torch.float32
    assert trace.layers == ([0, 2] if moe.config.model_type == "qwen3_moe" else list(range(layers)))
    torch.testing.assert_close(trace.weights.sum(-1), torch.ones(layers, len(trace.tokens)))
    assert (trace.weights.diff(dim=-1) <= 0).all()
    assert trace.tokens[0] == "<s>" and "家" in trace.tokens and "<0xE9>" in trace.tokens


@torch.no_grad()
def test_the_output_is_the_same_bit_by_bit_while_routers_are_recorded(moe):
    ids = torch.randint(3, 2000, (3, 17), generator=torch.Generator().manual_seed(0))
    plain = moe(input_ids=ids).logits
    with routing.recording(moe) as records:
        recorded = moe(input_ids=ids).logits
    assert torch.equal(plain, recorded) and list(records) == list(routers(moe))
    assert all(calls[0][2].shape == (51, moe.config.num_experts_per_tok) for calls in records.values())


def test_recording_holds_batches_and_generation_with_a_cache(mixtral):
    ids = torch.randint(3, 4_000, (2, 5))
    with routing.recording(mixtral) as records:
        mixtral.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert [[len(experts) for _, _, experts in calls] for calls in records.values()] == [[10, 2, 2]] * 3


def test_recording_leaves_nothing_behind_also_after_an_exception(mixtral):
    with pytest.raises(KeyboardInterrupt), routing.recording(mixtral) as records:
        raise KeyboardInterrupt
    mixtral(torch.ones(1, 2, dtype=torch.long))
    assert list(records.values()) == [[], [], []]


EMPTY = [([], "no text"), (["a", "b", ""], "Text 2 is empty")]


@pytest.mark.parametrize("texts, said", [*EMPTY, (["a", "长" * 29], "Text 1 has 31 tokens, .* 10")])
def test_texts_that_cannot_be_routed_are_named(texts, said, mixtral, tokenizer, monkeypatch):
    monkeypatch.setattr(mixtral.config, "max_position_embeddings", 10)
    with pytest.raises(ValueError, match=said):
        routing.trace_many(mixtral, tokenizer, texts)
