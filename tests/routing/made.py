"""Small random models of three families, and traces made by hand."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen3MoeConfig

from aurora_lib.routing.tracing import RoutingTrace, routers

SIZES = dict(vocab_size=6_400, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
SIZES |= dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5)
SIX = dict(num_experts=6, num_experts_per_tok=3)
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES),
    "qwen3": Qwen3MoeConfig(**SIZES, **SIX, moe_intermediate_size=24, head_dim=8, mlp_only_layers=[1]),
    "olmoe": OlmoeConfig(**SIZES, **SIX),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for router in routers(model).values():
        nn.init.normal_(router.weight)  # some families start their routers at zero
    return model


def trace_of(experts, *, width=8, texts=None):
    """A trace with these experts `[layers, tokens, top_k]`; every token is of another kind."""
    layers, tokens, top_k = experts.shape
    return RoutingTrace(
        tokens=[str(i) for i in range(tokens)],
        experts=experts,
        weights=torch.full(experts.shape, 1 / top_k),
        logits=torch.zeros(layers, tokens, width),
        layers=list(range(layers)),
        ids=torch.arange(tokens),
        texts=torch.zeros(tokens, dtype=torch.int64) if texts is None else texts,
    )


def clustered(seed, gain):
    """24 texts in two languages; each has expert habits of its own, and with `gain` those of its language."""
    draw = torch.Generator().manual_seed(seed)
    texts = torch.arange(24).repeat_interleave(25)
    habit = torch.randn(24, 8, generator=draw)
    habit[:12, :4] += gain
    gumbel = -torch.empty(600, 8).exponential_(generator=draw).log()
    experts = (habit[texts] + gumbel).topk(2).indices  # independent picks without replacement
    return trace_of(experts[None], texts=texts), ["zh"] * 12 + ["en"] * 12


class WithoutAdapter(nn.Module):
    """A PEFT model as its base: the same weights, with the adapter off while it runs."""

    def __init__(self, tuned: nn.Module):
        super().__init__()
        self.tuned, self.config = tuned, tuned.config

    def forward(self, *args, **kwargs):
        with self.tuned.disable_adapter():
            return self.tuned(*args, **kwargs)
