"""Record what the pooled load-balancing loss allows: `python -m tools.record.balance` (one core, 5 minutes).

Two small Mixtrals read the same documents in the same order, from the same start. They differ in one
thing: the loss that should keep the experts busy is computed over all layers together, as transformers
does it, or for each layer on its own, as the bundled model was trained. `results/tiny/balance.json` has
each layer's load, on text that neither has read. Notebook 01 shows it.
"""

import argparse
import json

import torch
from tqdm import trange
from transformers import MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from aurora_lib.course import DATA, results, write_whole
from aurora_lib.model import load_tokenizer
from tools.build import guidance, lessons, tiny_model

RECORD = results.RECORDED / "tiny" / "balance.json"
STEPS, ROWS, LENGTH, LR, WEIGHT = 400, 8, 192, 3e-3, 0.02


def pooled(router_logits, experts: int, top_k: int) -> torch.Tensor:
    """The loss over the tokens of all layers together."""
    return load_balancing_loss_func(router_logits, experts, top_k)


LOSSES = {"pooled over layers": pooled, "each layer alone": guidance.balance}


def train(loss, steps: int) -> dict:
    """A model from seed 0 trained with this loss: its load `[layer][expert]`, its loss on new text."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(DATA / "tiny")
    model = MixtralForCausalLM(tiny_model.configuration(tokenizer))
    model.set_experts_implementation("grouped_mm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    packer = lessons.Packer(tokenizer, lessons.streams("balance")["world"](), LENGTH)
    size = model.config.num_local_experts, model.config.num_experts_per_tok

    def read(batch):
        mask = dict(attention_mask=tiny_model.visible(batch.document), position_ids=batch.position)
        got = model.model(input_ids=batch.ids, **mask, output_router_logits=True, use_cache=False)
        row, token = torch.tensor(batch.learn).T
        logits = model.lm_head(got.last_hidden_state[row, token - 1])
        return torch.nn.functional.cross_entropy(logits, batch.ids[row, token]), got.router_logits

    for step in trange(steps, mininterval=10):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 50) * (1 - step / steps)
        text, router = read(packer.batch(ROWS))
        (text + WEIGHT * loss(router, *size)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    new = lessons.Packer(tokenizer, lessons.streams("new text")["world"](), LENGTH).batch(64)
    with torch.no_grad():
        text, router = read(new)
    chosen = [logits.topk(size[1], -1).indices.flatten().bincount(minlength=size[0]) for logits in router]
    return dict(
        load=[[round(n / sum(row.tolist()), 4) for n in row.tolist()] for row in chosen],
        text=round(text.item(), 4),
    )


def main() -> None:
    torch.set_num_threads(1)
    found = {name: train(loss, STEPS) for name, loss in LOSSES.items()}
    for name, row in found.items():
        print(f"{name}: loss of the text {row['text']}")
        for layer, load in enumerate(row["load"]):
            print(f"   layer {layer}: smallest {min(load):.1%}, largest {max(load):.1%}")
    write_whole(RECORD, json.dumps(dict(steps=STEPS, weight=WEIGHT) | found, indent=1) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    main()
