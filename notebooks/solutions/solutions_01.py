"""Solutions to notebook 01."""

import torch


# 01.1: probabilities over all experts, the two largest, divided by their sum
def top2(logits):
    top, chosen = logits.softmax(dim=-1).topk(2, dim=-1)
    return top / top.sum(dim=-1, keepdim=True), chosen


# 01.2: everything that is no expert once, and two experts in each layer
attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
layer = attention + 8 * 4096 + 2 * 3 * 4096 * 14336 + 2 * 4096
billions = (32 * layer + 2 * 32_000 * 4096 + 4096) / 1e9


# 01.3: share of tokens that chose an expert, times its mean probability, summed, times the number of experts
def balance(logits, top_k):
    probabilities = logits.softmax(dim=-1)
    chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(top_k, dim=-1).indices, 1)
    return logits.shape[-1] * (chosen.mean(dim=0) * probabilities.mean(dim=0)).sum()


ANSWERS = {"01.1": top2, "01.2": billions, "01.3": balance}
