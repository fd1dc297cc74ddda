"""A trace is what the routers really chose: the blocks' outputs can be computed again from it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from aurora_lib import routing
from aurora_lib.model import nf4
from aurora_lib.routing.tracing import routers
from tests.routing.made import CONFIGS, SIZES, build

TEXTS = [
    "法国的首都是巴黎。",
    "混合专家：the router picks <b>two</b> of eight 龘",
    "Yes.",
    "The capital of France is Paris, and it has been so for long.",
    "龘",
]


@pytest.fixture(scope="module", params=CONFIGS)
def moe(request):
    return build(CONFIGS[request.param])


@pytest.fixture(scope="module")
def mixtral():
    return build(CONFIGS["mixtral"])


class Spy:
    """Inputs and outputs `[batch, positions, hidden]` of every block and ids of every forward, by plain hooks."""

    def __init__(self, model):
        self.blocks = [model.get_submodule(name.rpartition(".")[0]) for name in routers(model)]
        self.calls, self.ids = [[] for _ in self.blocks], []
        embedding = model.get_input_embeddings()
        self.handles = [embedding.register_forward_hook(lambda m, args, out: self.ids.append(args[0]))]
        for block, calls in zip(self.blocks, self.calls, strict=True):
            keep = lambda m, args, out, calls=calls: calls.append((args[0], out))  # noqa: E731
            self.handles.append(block.register_forward_hook(keep))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def stacks(block):
    """Both weight stacks of a block's experts in plain numbers, `[experts, ..., ...]`."""
    for key in ("gate_up_proj", "down_proj"):
        state = getattr(block.experts, "quant_states", {}).get(key)
        packed = getattr(block.experts, key)
        plain = nf4.bnb.functional.dequantize_4bit(packed, state).view(state.shape) if state else packed
        yield plain


@torch.no_grad()
def assert_recomputed(model, trace, of_text, blocks, seen):
    """Each layer's real output from its input and the trace alone; seen: (input, output) `[tokens, hidden]`."""
    for layer, (block, (x, out)) in enumerate(zip(blocks, seen, strict=True)):
        experts = trace.experts[layer, of_text]
        scores = trace.logits[layer, of_text].softmax(-1).gather(-1, experts)
        if getattr(model.config, "norm_topk_prob", True):
            scores = trace.weights[layer, of_text]
        gate_up, down = stacks(block)
        gate, up = torch.einsum("th,tkih->tki", x, gate_up[experts]).chunk(2, dim=-1)
        each = torch.einsum("tki,tkhi->tkh", nn.functional.silu(gate) * up, down[experts])
        again = (scores[:, :, None] * each).sum(1)
        torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5 * float(out.abs().max()))


def assert_all_recomputed(model, tokenizer, batch_tokens):
    with Spy(model) as spy:
        trace = routing.trace_many(model, tokenizer, TEXTS, batch_tokens=batch_tokens)
    found = 0
    for call, ids in enumerate(spy.ids):
        for row, own in enumerate(ids):
            for text in range(len(TEXTS)):
                of_text = trace.texts == text
                n = int(of_text.sum())
                if torch.equal(own[:n], trace.ids[of_text]):
                    seen = [tuple(part[row, :n] for part in calls[call]) for calls in spy.calls]
                    assert_recomputed(model, trace, of_text, spy.blocks, seen)
                    found += 1
    assert found == len(TEXTS)
    return [tuple(ids.shape) for ids in spy.ids]


def test_outputs_of_padded_batches_are_recomputed_from_the_trace(moe, tokenizer):
    shapes = assert_all_recomputed(moe, tokenizer, batch_tokens=80)
    assert len(shapes) > 1 and shapes[0][0] > 1
    assert all(rows * width <= 80 for rows, width in shapes)


def test_outputs_of_a_4_bit_model_with_an_adapter_are_recomputed_from_the_trace(model, tokenizer):
    assert_all_recomputed(model, tokenizer, batch_tokens=4096)


def test_a_trace_has_the_promised_shapes_and_weights(moe, tokenizer):
    trace = routing.trace(moe, tokenizer, TEXTS[1])
    layers, top_k = len(routers(moe)), moe.config.num_experts_per_tok
    assert trace.experts.shape == trace.weights.shape == (layers, len(trace.tokens), top_k)
    assert trace.experts.dtype == torch.int64 and trace.weights.dtype == torch.float32
    assert trace.layers == ([0, 2] if moe.config.model_type == "qwen3_moe" else [0, 1, 2])
    torch.testing.assert_close(trace.weights.sum(-1), torch.ones(layers, len(trace.tokens)))
    assert (trace.weights.diff(dim=-1) <= 0).all()
    assert trace.tokens[0] == "<s>" and "家" in trace.tokens and "<0xE9>" in trace.tokens


def test_a_trace_of_many_texts_is_that_of_each_in_order(moe, tokenizer):
    together = routing.trace_many(moe, tokenizer, TEXTS, batch_tokens=80)
    assert together.texts.unique().tolist() == [0, 1, 2, 3, 4]
    for i, text in enumerate(TEXTS):
        alone, own = routing.trace(moe, tokenizer, text), together.texts == i
        assert torch.equal(together.ids[own], alone.ids) and torch.equal(
            together.positions[own], alone.positions
        )
        assert torch.equal(together.experts[:, own], alone.experts)
        torch.testing.assert_close(together.weights[:, own], alone.weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.logits[:, own], alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*CONFIGS, "4-bit", "4-bit with adapter", "bf16 with adapter"])
def test_the_output_is_the_same_bit_by_bit_while_routers_are_recorded(kind, model):
    if kind in CONFIGS:
        model = build(CONFIGS[kind])
    elif kind == "4-bit":
        model = routing.WithoutAdapter(model)
    elif kind == "bf16 with adapter":
        lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        model = get_peft_model(build(CONFIGS["mixtral"]).bfloat16(), lora).eval()
    ids = torch.randint(3, 2000, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with routing.recording(model) as records:
            recorded = model(input_ids=ids).logits
    assert torch.equal(plain, recorded) and all(len(calls) == 1 for calls in records.values())
    assert all(calls[0][2].shape == (51, model.config.num_experts_per_tok) for calls in records.values())


def test_recording_holds_batches_and_generation_with_a_cache(mixtral):
    ids = torch.randint(3, 4_000, (2, 5))
    with routing.recording(mixtral) as records:
        mixtral.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    for calls in records.values():
        assert [len(experts) for _, _, experts in calls] == [10, 2, 2]


def test_mode_and_hooks_are_as_before_also_after_an_exception(mixtral, tokenizer):
    def hooks():
        return sum(len(module._forward_hooks) for module in mixtral.modules())

    mixtral.train()
    routing.trace(mixtral, tokenizer, "Yes.")
    assert mixtral.training and hooks() == 0
    mixtral.eval()
    with pytest.raises(KeyboardInterrupt), routing.recording(mixtral):
        assert hooks() == 3
        raise KeyboardInterrupt
    assert hooks() == 0


@pytest.mark.parametrize(
    "texts, said",
    [
        ([], "no text to trace"),
        ([""], "The text is empty"),
        (["a", "b", ""], "Text 2 is empty"),
        (["长" * 29], "The text has 31 tokens, and the model reads 10"),
        (["a", "长" * 29], "Text 1 has 31 tokens"),
    ],
)
def test_texts_that_cannot_be_routed_are_named(texts, said, mixtral, tokenizer, monkeypatch):
    monkeypatch.setattr(mixtral.config, "max_position_embeddings", 10)
    with pytest.raises(ValueError, match=said):
        routing.trace_many(mixtral, tokenizer, texts)


def test_a_dense_model_is_refused(tokenizer):
    dense = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    with pytest.raises(ValueError, match="no top-k router"):
        routing.trace(dense, tokenizer, "Yes.")
