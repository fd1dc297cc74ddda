"""A conversation with a model: history in its exact format, streaming, the context window."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch

from aurora_lib.chat.decoding import Decoder, TextStream, choose_token
from aurora_lib.model import batching

SETTINGS = {  # name -> type, least, most
    "max_new_tokens": (int, 1, 32768),
    "temperature": (float, 0, 100),
    "top_p": (float, 0.001, 1),
    "seed": (int, 0, 2**53),  # a page counts no further
    "adapter": (bool, False, True),
}


def checked(name: str, value):
    """`value`, a number or its text, as the setting `name` takes it; ValueError, in a sentence, otherwise."""
    kind, least, most = SETTINGS[name]
    with suppress(TypeError, ValueError, OverflowError):
        if least <= (made := kind(value)) <= most:
            return made
    number = "whole number" if kind is int else "number"
    raise ValueError(f"{name} cannot be {value!r}: give a {number} from {least} to {most}.")


@dataclass
class AnswerStats:
    """Of one answer, while it is spoken and after; a reader's time between two pieces does not count."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, computed in an earlier turn
    new_tokens: int = 0  # with the end token
    first_token: float = 0.0  # seconds
    later_tokens: float = 0.0  # seconds

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 where none came after it."""
        return (self.new_tokens - 1) / self.later_tokens if self.later_tokens else 0.0


class ChatSession:
    """A conversation with `model` in its exact chat format, remembered turn by turn.

    `temperature=0` answers greedily. Above 0 it samples from the likeliest tokens that make up `top_p` of the
    probability, with `seed`, anew after `reset`: the same talk gives the same answers. When history and
    answer would not fit into the context window, the oldest turns are left out of the prompt from then on
    (counted in `forgotten`), never of `messages`. `adapter=False` switches a PEFT adapter off: base and tuned
    share one copy of the weights. All settings may change between turns. `stats` is about the last answer.
    """

    def __init__(
        self, model, tokenizer, *, system="", max_new_tokens=64, temperature=0, top_p=1, seed=0, adapter=True
    ):
        self.model, self.tokenizer, self.decoder = model, tokenizer, Decoder(model)
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.seed, self.adapter = seed, adapter
        self.messages: list[dict[str, str]] = []
        self.system = system
        self.reset()

    @property
    def system(self) -> str:
        """The system line, which stands before the first question; empty for none."""
        return self.messages[0]["content"] if self._head() else ""

    @system.setter
    def system(self, text: str) -> None:
        self.messages[: len(self._head())] = [{"role": "system", "content": text}] if text else []

    @property
    def settings(self) -> dict:
        """All settings but the system line; ValueError, in a sentence, where one makes no sense."""
        return {name: checked(name, getattr(self, name)) for name in SETTINGS}

    @property
    def context(self) -> tuple[int, int]:
        """Tokens of the last prompt, and how many a prompt may have beside an answer of `max_new_tokens`."""
        return self.stats.prompt_tokens, self.model.config.max_position_embeddings - self.max_new_tokens

    def _head(self) -> list[dict[str, str]]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def reset(self) -> None:
        """Forget the conversation (the system line stays) and give the memory of its keys and values back."""
        self.messages = self._head()  # a new list: an answer that is still being spoken keeps to its own
        self.forgotten, self.stats = 0, AnswerStats()
        self.decoder.release()
        self._sampler = torch.Generator(device=self.model.device).manual_seed(self.seed)

    def say(self, text: str) -> str:
        """Answer `text` and remember both. Raises ValueError for a message that `stream` would not take."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Answer `text` piece by piece; joined, the pieces are what `say` returns.

        Stopping early (closing the iterator) keeps what was said so far. Raises ValueError for an empty text,
        one too long for the context, settings that make no sense, and while another answer is being spoken.
        """
        if not text.strip():
            raise ValueError("There is nothing to answer: the message is empty.")
        text.encode()  # half of a surrogate pair is refused here, before anything is remembered
        if self.messages and self.messages[-1]["role"] == "user":
            raise ValueError("The last question is still being answered: close its stream, or reset.")
        settings, messages, began = self.settings, self.messages, time.perf_counter()
        messages.append({"role": "user", "content": text})
        try:
            prompt = self._prompt()
        except BaseException:
            messages.pop()
            raise
        said = ""
        try:
            for piece in self._generate(prompt, settings, began):
                said += piece
                yield piece
        finally:
            messages.append({"role": "assistant", "content": said.strip()})

    def regenerate(self) -> Iterator[str]:
        """Answer the last question anew, piece by piece, in place of the last answer.

        Raises ValueError where there is no answer yet. A failure keeps the old answer.
        """
        messages, before = self.messages, list(self.messages)
        if not before or before[-1]["role"] != "assistant":
            raise ValueError("There is no answer yet that could be given anew.")
        del messages[-2:]
        try:
            yield from self.stream(before[-2]["content"])
        except Exception:
            messages[:] = before
            raise

    def _prompt(self) -> list[int]:
        """The history as ids, without the oldest turns if they do not fit."""
        room = limit = self.model.config.max_position_embeddings - self.max_new_tokens
        head = self._head()
        turns = self.messages[len(head) + 2 * self.forgotten :]
        while True:
            ids = batching.encode(self.tokenizer, batching.chat_prompt(self.tokenizer, head + turns))
            if len(ids) <= limit or len(turns) == 1:
                break
            turns = turns[2:]  # a question and its answer
            # a quarter of the room at once: with another beginning, the whole prompt is computed again
            limit = room * 3 // 4
        if len(ids) > room:
            fit = f"{max(room, 0)} fit beside an answer of {self.max_new_tokens}"
            remedy = "Shorten it, or lower max_new_tokens."
            raise ValueError(f"The message takes {len(ids)} tokens, and {fit}. {remedy}")
        self.forgotten = (len(self.messages) - len(head) - len(turns)) // 2
        return ids

    def _generate(self, prompt: list[int], settings: dict, began: float) -> Iterator[str]:
        text, ids, most = TextStream(self.tokenizer), list(prompt), settings["max_new_tokens"]
        stats = self.stats = AnswerStats(prompt_tokens=len(prompt))
        for _ in range(most):
            logits = self.decoder.logits(ids, adapter=settings["adapter"], room=len(prompt) + most)
            token = choose_token(logits, settings["temperature"], settings["top_p"], self._sampler)
            ids.append(token)
            seconds = time.perf_counter() - began
            if stats.new_tokens:
                stats.later_tokens += seconds
            else:
                stats.reused_tokens, stats.first_token = self.decoder.reused, seconds
            stats.new_tokens += 1
            if token == self.tokenizer.eos_token_id:
                break
            if piece := text.add(token):
                yield piece
            began = time.perf_counter()
        if rest := text.finish():
            yield rest
