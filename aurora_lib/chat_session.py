"""A conversation with a model: history in its exact format, streaming, the context window."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch


class ChatSession:
    """A conversation with `model` in its exact chat format, remembered turn by turn.

    `temperature=0` answers greedily; above 0 it samples with `seed`, anew after `reset`, so the same talk gives the same
    answers. When history and answer would not fit into the context window, the oldest turns are left out of the prompt
    (and counted in `forgotten`), never of `messages`. `adapter=False` switches a PEFT adapter off, so base and tuned
    share one copy of the weights.
    """

    def __init__(
        self, model, tokenizer, *, system="", max_new_tokens=64, temperature=0.0, seed=0, adapter=True
    ):
        self.model, self.tokenizer = model, tokenizer
        self.system, self.max_new_tokens, self.temperature = system, max_new_tokens, temperature
        self.adapter, self.seed = adapter, seed
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages: list[dict[str, str]] = (
            [{"role": "system", "content": self.system}] if self.system else []
        )
        self.forgotten = 0
        self._sampler = torch.Generator(device=self.model.device).manual_seed(self.seed)

    def say(self, text: str) -> str:
        """Answer `text` and remember both. Raises ValueError for an empty text."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Answer `text` piece by piece; joined, the pieces are what `say` returns.

        Stopping early (closing the iterator) keeps what was said so far. Raises ValueError for an empty text.
        """
        if not text.strip():
            raise ValueError("There is nothing to answer: the message is empty.")
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self._prompt()
        except ValueError:
            self.messages.pop()
            raise
        said = ""
        try:
            for piece in self._generate(prompt):
                said += piece
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": said.strip()})

    def _prompt(self) -> torch.Tensor:
        """The history as ids `[1, tokens]`, without the oldest turns if they do not fit."""
        room = self.model.config.max_position_embeddings - self.max_new_tokens
        head = self.messages[:1] if self.system else []
        turns = self.messages[len(head) :]
        while True:
            rendered = self.tokenizer.apply_chat_template(head + turns, tokenize=False)
            ids = self.tokenizer(rendered, add_special_tokens=False, return_tensors="pt").input_ids
            if ids.shape[1] <= room or len(turns) == 1:
                break
            turns = turns[2:]  # a question and its answer
        if ids.shape[1] > room:
            raise ValueError(
                f"The message takes {ids.shape[1]} tokens, and {room} fit beside an answer of {self.max_new_tokens}. "
                f"Shorten it, or lower max_new_tokens."
            )
        self.forgotten = (len(self.messages) - len(head) - len(turns)) // 2
        return ids.to(self.model.device)

    def _generate(self, ids: torch.Tensor) -> Iterator[str]:
        switched = hasattr(self.model, "disable_adapter") and not self.adapter
        answer, shown, cache = [], "", None
        for _ in range(self.max_new_tokens):
            # entered per token: a reader who pauses the stream must not leave the adapter off for everybody else
            with torch.inference_mode(), self.model.disable_adapter() if switched else nullcontext():
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            ids = self._choose(output.logits[0, -1])
            if ids.item() == self.tokenizer.eos_token_id:
                break
            answer.append(ids.item())
            text = self.tokenizer.decode(answer, skip_special_tokens=True)
            # not yet: a character whose last bytes are still to come, or nothing but the space before the first word
            if text != shown and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        rest = self.tokenizer.decode(answer, skip_special_tokens=True)[len(shown) :]
        if rest:
            yield rest

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token, `[1, 1]`, from `logits [vocabulary]`."""
        if self.temperature == 0:
            return logits.argmax().view(1, 1)
        probabilities = (logits.float() / self.temperature).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=self._sampler).view(1, 1)
