"""A conversation with a model: history in its exact format, streaming, the context window, saved and loaded."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from aurora_lib.chat.decoding import Decoder, TextStream

FORMAT = "aurora-chat-1"
LARGEST_FILE = 10_000_000  # bytes; a conversation is kilobytes
SETTINGS = {"max_new_tokens": int, "temperature": float, "top_p": float, "seed": int, "adapter": bool}


class ConversationError(ValueError):
    """A file that holds no conversation; the message names the file and the row."""


@dataclass
class AnswerStats:
    """Of one answer, growing while it is spoken; time that a reader takes between two pieces does not count."""

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

    `temperature=0` answers greedily; above 0 it samples from the likeliest tokens that make up `top_p` of the
    probability, with `seed`, anew after `reset`, so the same talk gives the same answers. When history and answer
    would not fit into the context window, the oldest turns are left out of the prompt from then on (and counted in
    `forgotten`), never of `messages`. `adapter=False` switches a PEFT adapter off, so base and tuned share one copy of
    the weights. All settings may be changed between turns. `stats` tells tokens and speed of the last answer.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        system: str = "",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        adapter: bool = True,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.seed, self.adapter = seed, adapter
        self._decoder = Decoder(model)
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
    def context(self) -> tuple[int, int]:
        """Tokens of the last prompt, and how many a prompt may have beside an answer of `max_new_tokens`."""
        return self.stats.prompt_tokens, self.model.config.max_position_embeddings - self.max_new_tokens

    def _head(self) -> list[dict[str, str]]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def reset(self) -> None:
        """Forget the conversation (the system line stays) and give the memory of its keys and values back."""
        self.messages = self._head()  # a new list: an answer that is still being spoken keeps to its own
        self.forgotten, self.stats = 0, AnswerStats()
        self._decoder.release()
        self._sampler = torch.Generator(device=self.model.device).manual_seed(self.seed)

    def say(self, text: str) -> str:
        """Answer `text` and remember both. Raises as `stream` does."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Answer `text` piece by piece; joined, the pieces are what `say` returns.

        Stopping early (closing the iterator) keeps what was said so far. Raises ValueError for an empty text, one that
        does not fit into the context, settings that make no sense, and while another answer is being spoken.
        """
        if not text.strip():
            raise ValueError("There is nothing to answer: the message is empty.")
        if not _is_text(text):
            raise ValueError("The message is no valid Unicode: it holds half of a surrogate pair.")
        if self.messages and self.messages[-1]["role"] == "user":
            raise ValueError("The last question is still being answered: close its stream, or reset.")
        self._check_settings()
        messages, began = self.messages, time.perf_counter()
        messages.append({"role": "user", "content": text})
        try:
            prompt = self._prompt()
        except BaseException:
            messages.pop()
            raise
        said = ""
        try:
            for piece in self._generate(prompt, began):
                said += piece
                yield piece
        finally:
            messages.append({"role": "assistant", "content": said.strip()})

    def regenerate(self) -> Iterator[str]:
        """Answer the last question anew, piece by piece, in place of the last answer; sampling draws other tokens.

        Raises ValueError where there is no answer yet. A failure keeps the old answer.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ValueError("There is no answer yet that could be given anew.")
        messages, old = self.messages, self.messages[-2:]
        del messages[-2:]
        kept = len(messages)
        try:
            yield from self.stream(old[0]["content"])
        except Exception:
            messages[kept:] = old
            raise

    def _check_settings(self) -> None:
        if self.max_new_tokens < 1 or not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"max_new_tokens must be at least 1, temperature at least 0 and top_p above 0 and at most 1; they are "
                f"{self.max_new_tokens}, {self.temperature} and {self.top_p}."
            )

    def _prompt(self) -> list[int]:
        """The history as ids, without the oldest turns if they do not fit."""
        room = limit = self.model.config.max_position_embeddings - self.max_new_tokens
        head = self._head()
        turns = self.messages[len(head) + 2 * self.forgotten :]
        while True:
            rendered = self.tokenizer.apply_chat_template(head + turns, tokenize=False)
            ids = self.tokenizer(rendered, add_special_tokens=False).input_ids
            if len(ids) <= limit or len(turns) == 1:
                break
            turns = turns[2:]  # a question and its answer
            # a quarter of the room at once, since every other beginning means computing the whole prompt again
            limit = room * 3 // 4
        if len(ids) > room:
            raise ValueError(
                f"The message takes {len(ids)} tokens, and {max(room, 0)} fit beside an answer of {self.max_new_tokens}. "
                f"Shorten it, or lower max_new_tokens."
            )
        self.forgotten = (len(self.messages) - len(head) - len(turns)) // 2
        return ids

    def _generate(self, prompt: list[int], began: float) -> Iterator[str]:
        text, ids = TextStream(self.tokenizer), list(prompt)
        stats = self.stats = AnswerStats(prompt_tokens=len(prompt))
        for _ in range(self.max_new_tokens):
            logits = self._decoder.logits(ids, adapter=self.adapter, room=len(prompt) + self.max_new_tokens)
            token = self._choose(logits).item()
            ids.append(token)
            stats.new_tokens += 1
            if stats.new_tokens == 1:
                stats.reused_tokens, stats.first_token = self._decoder.reused, time.perf_counter() - began
            else:
                stats.later_tokens += time.perf_counter() - began
            if token == self.tokenizer.eos_token_id:
                break
            if piece := text.add(token):
                yield piece
            began = time.perf_counter()
        if rest := text.finish():
            yield rest

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token, `[1, 1]`, from `logits [vocabulary]`."""
        if self.temperature == 0:
            return logits.argmax().view(1, 1)
        probabilities, tokens = (logits.float() / self.temperature).softmax(-1).sort(descending=True)
        likelier = probabilities.cumsum(-1) - probabilities  # what all likelier tokens take together
        probabilities = probabilities.masked_fill(likelier >= self.top_p, 0)
        return tokens[torch.multinomial(probabilities, 1, generator=self._sampler)].view(1, 1)

    # on disk

    def save(self, path: str | Path) -> Path:
        """Write the conversation and its settings as JSON: `format`, `settings` and `messages` of role and content."""
        path = Path(path)
        settings = {name: kind(getattr(self, name)) for name, kind in SETTINGS.items()}
        whole = {"format": FORMAT, "settings": settings, "messages": self.messages}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        unfinished.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path, model, tokenizer) -> "ChatSession":
        """The conversation of a file that `save` wrote, with its settings; sampling begins again at its seed.

        Raises ConversationError, which names the file and the row, where it holds anything else.
        """
        settings, messages = _read(Path(path))
        try:
            session = cls(model, tokenizer, **settings)
            session._check_settings()
        except (ValueError, RuntimeError) as error:  # a seed that is no 64-bit number
            raise ConversationError(f"{path}, settings: {error}") from error
        session.messages = messages
        return session


def _read(path: Path) -> tuple[dict, list[dict[str, str]]]:
    """Settings and messages of a saved conversation, every part of which is checked."""
    try:
        size = path.stat().st_size
        whole = json.loads(path.read_text(encoding="utf-8")) if size <= LARGEST_FILE else None
    except (OSError, ValueError, RecursionError) as error:
        raise ConversationError(f"{path} cannot be read as JSON ({error}).") from error
    if size > LARGEST_FILE:
        raise ConversationError(
            f"{path} has {size:,} bytes: no conversation is larger than {LARGEST_FILE:,}."
        )
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ConversationError(f"{path} is no saved conversation: its format is not {FORMAT}.")
    settings, messages = whole.get("settings"), whole.get("messages")
    if not isinstance(settings, dict) or not isinstance(messages, list):
        raise ConversationError(f"{path}: settings must be an object and messages a list.")
    for name, value in settings.items():
        kind = SETTINGS.get(name)
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise ConversationError(f"{path}, settings: {name!r} is unknown or of the wrong type.")
    turn = 0
    for row, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ConversationError(f"{path}, message {row}: it must have role and content, nothing else.")
        expected = ("user", "assistant")[turn % 2]
        if message["role"] != expected and (row, message["role"]) != (1, "system"):
            raise ConversationError(
                f"{path}, message {row}: role {message['role']!r} where {expected} must speak."
            )
        if not _is_text(message["content"]):
            raise ConversationError(f"{path}, message {row}: content must be a string of valid Unicode.")
        turn += message["role"] != "system"
    if turn % 2:
        raise ConversationError(f"{path}, message {len(messages)}: the last question has no answer.")
    return settings, messages


def _is_text(content: object) -> bool:
    try:
        return isinstance(content, str) and content.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
