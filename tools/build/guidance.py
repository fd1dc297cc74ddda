"""Losses that show a tiny model, in pre-training only, how a letter question is answered.

Plain next-token training stays at chance on letters at this size. With these losses the model learns the
way in four layers: an option's words look at their letter (`label`, layer 0) and carry it (`tag`); the
place of the answer looks at the question (`ask`, layer 1) and holds the answer's word (`deep`, before
the last layer); the last layer looks at the option that says it (`point`). Nothing of this is in the
model afterwards: it stays a plain Mixtral.
"""

import torch
import torch.nn.functional as F
from transformers.models.mixtral.modeling_mixtral import apply_rotary_pos_emb

from aurora_lib.evaluation import fewshot
from aurora_lib.evaluation.benchmarks import LETTERS
from tools.build.lessons import Batch

HEADS = (0, 2)  # one head of each group of queries that share keys


class Attention:
    """The log-probabilities with which a head looks at earlier tokens, computed from a layer's input."""

    def __init__(self, model):
        self.seen = {}
        for i, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_pre_hook(
                lambda module, args, given, i=i: self.seen.__setitem__(
                    i, (module, args[0] if args else given["hidden_states"], given["position_embeddings"])
                ),
                with_kwargs=True,
            )

    def input(self, layer: int) -> torch.Tensor:
        """What the attention of `layer` was given: `[rows, length, hidden]`."""
        return self.seen[layer][1]

    def log(self, layer: int, head: int, mask: torch.Tensor) -> torch.Tensor:
        """`[rows, length, length]`; `mask` `[rows, 1, length, length]` is True where a token may look."""
        module, hidden, (cos, sin) = self.seen[layer]
        size, group = module.head_dim, head // module.num_key_value_groups
        rows = lambda weight, i: weight[i * size : (i + 1) * size]  # noqa: E731
        query = F.linear(hidden, rows(module.q_proj.weight, head))[:, None]
        key = F.linear(hidden, rows(module.k_proj.weight, group))[:, None]
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        scores = (query @ key.mT)[:, 0] * module.scaling
        return scores.masked_fill(~mask[:, 0], -1e9).log_softmax(-1)


def looking_at(
    log: torch.Tensor, row: torch.Tensor, at: torch.Tensor, tokens: list[list[int]]
) -> torch.Tensor:
    """-log of the probability that token `at` of `row` gives to any of its `tokens`, averaged."""
    longest = max(map(len, tokens))
    place = torch.tensor([[*some, *[0] * (longest - len(some))] for some in tokens])
    real = torch.tensor([[0.0] * len(some) + [-1e9] * (longest - len(some)) for some in tokens])
    return -(log[row[:, None], at[:, None], place] + real).logsumexp(-1).mean()


def balance(router_logits: tuple[torch.Tensor, ...], experts: int, top_k: int) -> torch.Tensor:
    """The load-balancing loss of each layer on its own, averaged; `top_k` is the ideal."""
    total = 0.0
    for logits in router_logits:
        p = logits.float().softmax(-1)
        chosen = F.one_hot(p.topk(top_k, -1).indices, experts).float().sum(-2)
        total = total + experts * (chosen.mean(0) * p.mean(0)).sum()
    return total / len(router_logits)


class Drill:
    """The losses of a batch by name, from a forward pass of `model`."""

    def __init__(self, model, tokenizer):
        self.model, self.attention = model, Attention(model)
        self.letters = torch.tensor(  # [unspaced or spaced, 4]
            [
                [ids[0] for ids in fewshot.letter_ids(tokenizer, fewshot.Form("plain", language))]
                for language in ("zh", "en")
            ]
        )
        self.marks = torch.tensor(
            [tokenizer(f"x\n{x}. y", add_special_tokens=False).input_ids for x in LETTERS]
        )
        # the token that differs between the four is the one that carries the option's letter
        column = (self.marks != self.marks[0]).any(0).nonzero().flatten()[0]
        self.marks = self.marks[:, column]

    def losses(self, batch: Batch, mask: torch.Tensor, wanted: dict[str, float]) -> dict[str, torch.Tensor]:
        """`wanted`: the weights; a loss whose weight is 0 is not computed."""
        model, head = self.model, self.model.lm_head
        router = dict(output_router_logits=True, use_cache=False)
        got = model.model(input_ids=batch.ids, attention_mask=mask, position_ids=batch.position, **router)
        hidden, found = got.last_hidden_state, {}
        if batch.learn:
            row, token = torch.tensor(batch.learn).T
            found["text"] = F.cross_entropy(head(hidden[row, token - 1]), batch.ids[row, token])
        found["balance"] = balance(
            got.router_logits, model.config.num_local_experts, model.config.num_experts_per_tok
        )
        if not batch.targets:
            return found
        last = model.config.num_hidden_layers - 1
        row, at, first = (
            torch.tensor([getattr(t, name) for t in batch.targets]) for name in ("row", "at", "first")
        )
        if wanted.get("ask"):
            asked = [t.question for t in batch.targets]
            found["ask"] = sum(
                looking_at(self.attention.log(1, h, mask), row, at, asked) for h in HEADS
            ) / len(HEADS)
        if wanted.get("deep"):
            found["deep"] = F.cross_entropy(head(self.attention.input(last)[row, at]), first)
        chosen = [t for t in batch.targets if t.right is not None]
        if not chosen:
            return found
        row, at, right = (torch.tensor([getattr(t, name) for t in chosen]) for name in ("row", "at", "right"))
        spaced = torch.tensor([int(t.spaced) for t in chosen])
        logits = head(hidden[row, at])
        four = logits.gather(1, self.letters[spaced])
        # the letter among the four; and a little, that it is a letter at all
        found["letter"] = (
            F.cross_entropy(four, right) + 0.1 * (logits.logsumexp(-1) - four.logsumexp(-1)).mean()
        )
        found["right"] = (four.argmax(-1) == right).float().mean().detach()
        if wanted.get("point"):
            words = [t.word or [t.at] for t in chosen]
            found["point"] = sum(
                looking_at(self.attention.log(last, h, mask), row, at, words) for h in HEADS
            ) / len(HEADS)
        row, token, mark = torch.tensor(batch.marked).T
        if wanted.get("label"):
            found["label"] = -self.attention.log(0, 0, mask)[row, token, mark].mean()
        if wanted.get("tag"):
            goal = (batch.ids[row, mark][:, None] == self.marks).long().argmax(-1)
            carried = self.attention.input(last)[row, token]
            either = [F.cross_entropy(F.linear(carried, head.weight[ids]), goal) for ids in self.letters]
            found["tag"] = sum(either) / len(either)
        return found
