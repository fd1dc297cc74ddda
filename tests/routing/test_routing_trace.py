"""The trace is what the model did: read alone, in padded batches, while it writes, in 4-bit, under an adapter."""

import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from aurora_lib import routing
from aurora_lib.course.scale import DATA
from aurora_lib.model import load_adapter, load_model, load_tokenizer, nf4
from aurora_lib.routing import counts as routing_counts
from tests.routing.test_routing import CONFIGS, TEXT, build

TEXTS = [
    "法国的首都是巴黎。",
    TEXT,
    "Yes.",
    "The capital of France is Paris, and it has been so for long.",
    "龘",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return build(CONFIGS[request.param])


@pytest.fixture(scope="module")
def mixtral():
    return build(CONFIGS["mixtral"])


@pytest.fixture(scope="module")
def tuned():
    """The bundled model in 4-bit with the bundled adapter."""
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    return load_adapter(base, DATA / "tiny_adapter")


def sentences(count, seed=0):
    """Texts of different lengths made of a few words."""
    draw = torch.Generator().manual_seed(seed)
    pool = ["法国", "首都", "巴黎", "the", "capital", "of", "France", "，", "龘", "router"]
    sizes = torch.randint(1, 12, (count,), generator=draw).tolist()
    return [" ".join(pool[i] for i in torch.randint(0, 10, (n,), generator=draw)) for n in sizes]


class Spy:
    """Inputs and outputs `[batch, positions, hidden]` of every block and ids of every forward, by plain hooks."""

    def __init__(self, model):
        self.blocks = [model.get_submodule(name.rpartition(".")[0]) for name in routing.routers(model)]
        self.calls, self.ids = [[] for _ in self.blocks], []
        embedding = model.get_input_embeddings()
        self.handles = [
            embedding.register_forward_hook(lambda m, args, out: self.ids.append(args[0].clone()))
        ]
        for block, calls in zip(self.blocks, self.calls, strict=True):
            keep = lambda m, args, out, calls=calls: calls.append((args[0].clone(), out.clone()))  # noqa: E731
            self.handles.append(block.register_forward_hook(keep))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def assert_recomputed(trace, spy, seen):
    """Each layer's real output from its input and the trace alone; seen: (input, output) `[tokens, hidden]` by layer."""
    for layer, (block, (x, out)) in enumerate(zip(spy.blocks, seen, strict=True)):
        again = torch.zeros_like(out)
        for token in range(len(trace.tokens)):
            for expert, score in zip(trace.experts[layer, token], trace.scores[layer, token], strict=True):
                gate, up = (block.experts.gate_up_proj[expert] @ x[token]).chunk(2)
                again[token] += score * (block.experts.down_proj[expert] @ (nn.functional.silu(gate) * up))
        assert len(out) == len(trace.tokens)
        torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5 * float(out.abs().max()))


def test_outputs_of_padded_batches_are_recomputed_from_the_trace(model, tokenizer):
    with Spy(model) as spy:
        traces = routing.trace_many(model, tokenizer, TEXTS, batch_tokens=60)
    widths = [ids.shape for ids in spy.ids]
    assert len(widths) > 1 and any(
        rows > 1 for rows, _ in widths
    )  # several batches, and padding in one of them
    assert sum(rows * width for rows, width in widths) > sum(len(trace.tokens) for trace in traces)
    found = 0
    for call, ids in enumerate(spy.ids):
        for row, own in enumerate(ids):
            for trace in traces:
                if torch.equal(own[: len(trace.ids)], trace.ids):
                    n, found = len(trace.ids), found + 1
                    seen = [(calls[call][0][row, :n], calls[call][1][row, :n]) for calls in spy.calls]
                    assert_recomputed(trace, spy, seen)
    assert found == len(TEXTS)


def test_outputs_while_generating_with_a_cache_are_recomputed_from_the_trace(model, tokenizer):
    with Spy(model) as spy:
        traces = routing.trace_generation(model, tokenizer, TEXTS[:3], max_new_tokens=4)
    assert [ids.shape[1] for ids in spy.ids[1:]] == [1, 1, 1]  # with a cache: one token a step
    ids = torch.cat(spy.ids, 1)
    for row, (trace, prompt) in enumerate(zip(traces, TEXTS, strict=False)):
        start = spy.ids[0].shape[1] - 1 - len(tokenizer(prompt, add_special_tokens=False).input_ids)
        assert torch.equal(ids[row, start:], trace.ids)
        seen = [
            tuple(torch.cat(part, 1)[row, start:] for part in zip(*calls, strict=True)) for calls in spy.calls
        ]
        assert_recomputed(trace, spy, seen)


def test_a_generation_is_traced_like_the_same_text_read_at_once(mixtral, tokenizer):
    for trace in routing.trace_generation(mixtral, tokenizer, TEXTS[:3], max_new_tokens=5):
        with routing.recording(mixtral) as records:
            mixtral(trace.ids[None])
        read = torch.stack([calls[0][2] for calls in records.values()])
        assert torch.equal(read, trace.experts)
        assert trace.positions.tolist() == list(range(len(trace.ids)))


def test_what_comes_after_an_end_token_is_not_traced(mixtral):
    tokenizer = load_tokenizer()
    whole = routing.trace_generation(mixtral, tokenizer, TEXTS[:3], max_new_tokens=6)
    tokenizer.eos_token = whole[1].tokens[-3]  # as if the model had ended there
    cut = routing.trace_generation(mixtral, tokenizer, TEXTS[:3], max_new_tokens=6)
    assert cut[1].tokens == whole[1].tokens[:-3]
    assert torch.equal(cut[1].experts, whole[1].experts[:, :-3])
    assert cut[0].tokens == whole[0].tokens


def test_batches_change_neither_order_nor_choices(model, tokenizer):
    together = routing.trace_many(model, tokenizer, TEXTS, batch_tokens=80)
    for text, trace in zip(TEXTS, together, strict=True):
        alone = routing.trace(model, tokenizer, text)
        assert trace.tokens == alone.tokens and torch.equal(trace.experts, alone.experts)
        torch.testing.assert_close(trace.weights, alone.weights, rtol=1e-4, atol=1e-5)


def test_joined_and_selected_traces_know_their_texts(mixtral, tokenizer):
    traces = routing.trace_many(mixtral, tokenizer, TEXTS)
    joined = routing.join([routing.join(traces[:2]), routing.join(traces[2:])])
    assert joined.texts.bincount().tolist() == [len(trace.tokens) for trace in traces]
    third = routing.select(joined, joined.texts == 2)
    assert third.tokens == traces[2].tokens and torch.equal(third.logits, traces[2].logits)
    assert routing.select(joined, joined.positions > 0).tokens.count("<s>") == 0


# 4-bit, adapters, stand-ins


@pytest.mark.parametrize("kind", [*CONFIGS, "4-bit", "4-bit with adapter", "bf16 with adapter"])
def test_the_output_is_the_same_bit_by_bit_while_routers_are_watched(kind, tuned):
    if kind in CONFIGS:
        model = build(CONFIGS[kind])
    elif kind.startswith("4-bit"):
        model = tuned if "adapter" in kind else routing.WithoutAdapter(tuned)
    else:
        lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        model = get_peft_model(build(CONFIGS["mixtral"]).bfloat16(), lora).eval()
    ids = torch.randint(3, 2000, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with routing.recording(model) as records:
            watched = model(input_ids=ids).logits
    assert torch.equal(plain, watched) and all(len(calls) == 1 for calls in records.values())
    assert all(calls[0][2].shape == (51, model.config.num_experts_per_tok) for calls in records.values())


def test_a_4_bit_models_output_is_recomputed_from_the_trace(tuned):
    tokenizer = load_tokenizer(DATA / "tiny")
    with Spy(tuned) as spy:
        trace = routing.trace(tuned, tokenizer, "法国的首都是巴黎。")
    for layer, (block, calls) in enumerate(zip(spy.blocks, spy.calls, strict=True)):
        stacks = [
            (getattr(block.experts, key), block.experts.quant_states[key])
            for key in ("gate_up_proj", "down_proj")
        ]
        gate_up, down = (
            nf4.bnb.functional.dequantize_4bit(data, state).view(state.shape) for data, state in stacks
        )
        x, out = calls[0][0][0], calls[0][1][0]
        gate, up = torch.einsum("th,tkih->tki", x, gate_up[trace.experts[layer]]).chunk(2, dim=-1)
        each = torch.einsum("tki,tkhi->tkh", nn.functional.silu(gate) * up, down[trace.experts[layer]])
        again = (trace.scores[layer, :, :, None] * each).sum(1)
        torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5 * float(out.abs().max()))


def test_an_adapter_switched_off_is_the_base(tuned):
    tokenizer = load_tokenizer(DATA / "tiny")
    base = load_model(DATA / "tiny", dtype=torch.float32, device="cpu")
    texts = ["法国的首都是巴黎。", "Hello"]
    off, real, on = (
        routing.trace_many(m, tokenizer, texts)[0] for m in (routing.WithoutAdapter(tuned), base, tuned)
    )
    assert torch.equal(off.logits, real.logits) and not torch.equal(on.logits, real.logits)
    written = [
        routing.trace_generation(m, tokenizer, texts, max_new_tokens=8)[0].tokens
        for m in (routing.WithoutAdapter(tuned), base)
    ]
    assert written[0] == written[1]


def test_a_random_adapter_is_as_large_and_gone_afterwards(tuned):
    def updates():
        return {
            name: module.lora_B["default"].weight.detach() @ module.lora_A["default"].weight.detach()
            for name, module in tuned.named_modules()
            if hasattr(module, "lora_A")
        }

    before = updates()
    with pytest.raises(KeyboardInterrupt), routing.random_adapter(tuned, seed=1):
        for name, update in updates().items():
            assert update.norm() == pytest.approx(before[name].norm().item(), rel=1e-4)
            cosine = nn.functional.cosine_similarity(update.flatten(), before[name].flatten(), dim=0)
            assert abs(cosine) < 0.2
        raise KeyboardInterrupt
    assert all(torch.equal(update, before[name]) for name, update in updates().items())
    with pytest.raises(ValueError, match="no LoRA adapter"), routing.random_adapter(nn.Linear(1, 1)):
        pass


def test_a_random_router_of_a_4_bit_model_shares_what_is_packed(tuned):
    twin = routing.random_router(tuned)
    for one, other in zip(nf4.expert_stacks(tuned).values(), nf4.expert_stacks(twin).values(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    for one, other in zip(tuned.modules(), twin.modules(), strict=True):
        for key, state in getattr(one, "quant_states", {}).items():
            assert other.quant_states[key].absmax.data_ptr() == state.absmax.data_ptr()


# counting


def test_counts_are_those_of_the_traces(model, tokenizer, monkeypatch):
    monkeypatch.setattr(routing_counts, "READ_AHEAD", 7)
    texts = sentences(20)
    counts = routing.count(model, tokenizer, iter(texts), group=lambda text: "龘" in text, batch_tokens=60)
    joined = routing.join(routing.trace_many(model, tokenizer, texts))
    assert (counts.texts, counts.tokens, counts.layers) == (20, len(joined.tokens), joined.layers)
    torch.testing.assert_close(counts.load, routing.load(joined))
    layers, experts = counts.load.shape
    for layer in range(layers):
        pairs, steps = torch.zeros(2, experts, experts, dtype=torch.float64)
        for token in range(len(joined.tokens)):
            for one in joined.experts[layer, token]:
                pairs[one, joined.experts[layer, token]] += 1
            if layer:
                steps[joined.experts[layer - 1, token, 0], joined.experts[layer, token, 0]] += 1
        assert torch.equal(counts.pairs[layer], pairs)
        assert layer == 0 or torch.equal(counts.steps[layer - 1], steps)
        own = load_balancing_loss_func((joined.logits[layer],), experts, joined.experts.shape[-1])
        assert counts.balance_loss[layer] == pytest.approx(own.item(), rel=1e-5)
    by_trace = routing.load_by_group(joined, ["龘" in text for text in texts])
    by_count = counts.load_by_group(by_trace.groups)
    for part in ("load", "low", "high"):
        torch.testing.assert_close(getattr(by_count, part), getattr(by_trace, part))
    assert by_count.texts == by_trace.texts


def test_intervals_are_as_wide_as_resampled_texts_say(mixtral, tokenizer):
    texts = sentences(40)
    traces = routing.trace_many(mixtral, tokenizer, texts)
    loads = routing.load_by_group(routing.join(traces), ["all"] * 40)
    draw = torch.Generator().manual_seed(0)
    again = [
        routing.load(routing.join([traces[i] for i in torch.randint(0, 40, (40,), generator=draw)]))
        for _ in range(300)
    ]
    spread = torch.stack(again).std(0)
    width = (loads.high - loads.low)[0] / 2 / 2.02  # Student's t for 40 texts
    busy = loads.load[0] > 0.05
    assert busy.any() and ((width / spread)[busy] - 1).abs().max() < 0.25
    assert ((loads.low <= loads.load) & (loads.load <= loads.high)).all()


def test_counting_needs_no_more_memory_for_more_tokens(mixtral, tokenizer, monkeypatch, request):
    monkeypatch.setattr(routing_counts, "READ_AHEAD", 8)

    def live():
        gc.collect()
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        return sum(t.nbytes for t in tensors)

    def watched(texts, sizes):
        for i, text in enumerate(texts):
            if i % 40 == 16:
                sizes.append(live())
            yield text

    sizes, kept = [], []
    gc.freeze()  # what was there before is not looked at
    request.addfinalizer(gc.unfreeze)
    routing.count(mixtral, tokenizer, watched(["法国的首都是巴黎。"] * 120, sizes))
    assert len(sizes) == 3 and sizes[0] == sizes[1] == sizes[2]
    for text in watched(["法国的首都是巴黎。"] * 120, sizes):  # the same measure sees traces that are kept
        kept.append(routing.trace(mixtral, tokenizer, text))
    assert sizes[3] < sizes[4] < sizes[5]


def test_texts_that_cannot_be_routed_are_named(mixtral, tokenizer, monkeypatch):
    monkeypatch.setattr(routing_counts, "READ_AHEAD", 2)
    with pytest.raises(ValueError, match="Text 2 is empty"):
        routing.trace_many(mixtral, tokenizer, ["a", "b", ""])
    with pytest.raises(ValueError, match="Text 3 is empty"):
        routing.count(mixtral, tokenizer, ["a", "b", "c", ""])
    monkeypatch.setattr(mixtral.config, "max_position_embeddings", 10)
    with pytest.raises(ValueError, match="has 31 tokens, and the model reads 10"):
        routing.trace(mixtral, tokenizer, "长" * 29)
    with pytest.raises(ValueError, match="No group has two texts"):
        routing.count(mixtral, tokenizer, ["one"]).load_by_group()
    with pytest.raises(ValueError, match="no text to count"):
        routing.count(mixtral, tokenizer, [])
    assert routing.trace_many(mixtral, tokenizer, []) == []
