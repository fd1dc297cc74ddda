"""How well a model foresees what it should say: perplexity."""

import math

import torch

from aurora_lib.model import batching


def perplexity(model, tokenizer, conversations: list[list[dict]], *, batch_size: int = 4) -> float:
    """exp of the mean negative log-likelihood (nats) of what the assistant says, with its closing </s>.

    `conversations` are lists of messages, each read as far as the model's context goes. Every token weighs
    the same. The chat template's markers tell which are the assistant's; raises ValueError if there are none.
    """
    limit, rows, total, tokens = model.config.max_position_embeddings, [], 0.0, 0
    settings = dict(return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False)
    for messages in conversations:
        encoded = tokenizer.apply_chat_template(messages, **settings)
        rows.append(list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))[:limit])
    with batching.ready(model):
        for batch in batching.batches(rows, batch_size, False, "perplexity"):
            longest = max(len(rows[i]) for i in batch)
            filled = [rows[i] + [(batching.padding(tokenizer), 0)] * (longest - len(rows[i])) for i in batch]
            ids, answer = torch.tensor(filled, device=model.device).unbind(-1)
            logits = model(input_ids=ids, use_cache=False).logits
            for table, row, mask in zip(logits, ids, answer.bool(), strict=True):  # one row in fp32 at a time
                given, right = table[:-1][mask[1:]].float(), row[1:][mask[1:]]
                total += torch.nn.functional.cross_entropy(given, right, reduction="sum").item()
                tokens += len(right)
    if not tokens:
        raise ValueError(f"No conversation has an assistant token within the context of {limit} tokens.")
    return math.exp(total / tokens)
