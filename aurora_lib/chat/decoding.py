"""One token after another: the decoding step, its cache of keys and values, and its words as they come.

`Decoder` computes only what is new: the next token of an answer, or the next turn of a conversation. Its
cache has a fixed size and stays where it is, so that on CUDA the step of one token, some thousand small
kernels in Mixtral-8x7B, can be replayed as one graph.
"""

import codecs
import threading
import warnings
from contextlib import nullcontext
from itertools import takewhile

import torch
from transformers import PreTrainedModel, StaticCache

from aurora_lib.model import batching

# PEFT switches an adapter for the whole model, and base and tuned may answer in two threads at once
ONE_AT_A_TIME = threading.RLock()
SMALLEST_ROOM = 256  # tokens of a fixed cache


class FixedCache:
    """Keys and values of up to `room` tokens in tensors that stay where they are, as a CUDA graph needs."""

    def __init__(self, model: PreTrainedModel, room: int, batch: int = 1):
        self.model, self.room, self.graph = model, room, None
        self.cache = StaticCache(config=model.config, max_cache_len=room)
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
        torch._dynamo.mark_static_address(self.token)  # torch.compile: it is written in place
        self.places = torch.arange(room, device=model.device)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits `[batch, vocabulary]` after `ids` `[batch, tokens]`; a graph writes over its last."""
        if self.graph is None or ids.shape[1] > 1:
            return self._run(ids)
        self.token.copy_(ids)
        self.graph.replay()
        return self.logits

    def step(self) -> torch.Tensor:
        """The logits after the tokens in `token`: what is captured, or compiled."""
        return self._run(self.token)

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        ends = self.cache.get_seq_length() + self.places[: ids.shape[1]]
        # a mask of our own, because transformers leaves it out for one query outside of a captured graph
        mask = (self.places <= ends[:, None]).expand(len(ids), 1, -1, -1)
        kept = dict(past_key_values=self.cache, use_cache=True)
        return self.model(ids, attention_mask=mask, logits_to_keep=1, **kept).logits[:, -1]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens: what stands behind them is masked, then written over."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)

    def capture(self) -> None:
        """Record the step of one token as a CUDA graph, for `forward` to replay; needs room for one more.

        This wants: no wait for the device within the step (`nf4`'s path for few rows), every tensor in its
        place, a warm-up on a stream of its own. Random numbers stay outside: sampling happens on the logits.
        """
        length = int(self.cache.get_seq_length())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
                self.rewind(length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: a notebook's other threads may use the device meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.logits = self.step()
        self.graph = graph


def can_capture(model: PreTrainedModel) -> bool:
    """Whether the step of one token can be a CUDA graph: other experts than `nf4`'s wait for the device."""
    return model.device.type == "cuda" and model.config._experts_implementation == "nf4"


class Decoder:
    """Computes what follows a list of tokens, keeping the keys and values of the tokens it has seen.

    Reusing a prefix gives the logits of computing everything, up to rounding: other shapes add in another
    order.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.capturing = model, can_capture(model)
        self.release()

    def release(self) -> None:
        """Give back the keys, values and graph; what comes next is computed from its first token."""
        with ONE_AT_A_TIME:
            self.cache: FixedCache | None = None
            self._seen: list[int] = []
            self.reused = 0  # tokens that the last call did not compute

    @torch.no_grad()
    def logits(self, ids: list[int], *, adapter: bool = True, room: int = 0) -> torch.Tensor:
        """The logits `[vocabulary]` of the token after `ids`, which may grow to `room` tokens."""
        with ONE_AT_A_TIME:
            if self.cache is None or adapter != self._adapter or len(ids) >= self.cache.room:
                self.release()
                # doubled rather than fitted: a growing conversation is captured anew a few times only
                larger = max(SMALLEST_ROOM, 1 << max(room, len(ids)).bit_length())
                self.cache = FixedCache(self.model, larger)
                self._adapter = adapter
            pairs = zip(self._seen, ids[:-1], strict=False)  # the last token is computed in any case
            self.reused = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            switched = hasattr(self.model, "disable_adapter") and not adapter
            try:
                if self.reused < len(self._seen):
                    self.cache.rewind(self.reused)
                # off for one call only: a reader who pauses must not leave the adapter off for everybody else
                with self.model.disable_adapter() if switched else nullcontext():
                    new = torch.tensor([ids[self.reused :]], device=self.model.device)
                    logits = self.cache.forward(new)[0]
                    self._seen = list(ids)
                    self._capture_once()
            except BaseException:  # also an interrupt: some layers may hold the new tokens, and some not
                self.release()
                raise
        return logits

    def _capture_once(self) -> None:
        if not self.capturing or self.cache.graph:
            return
        try:
            self.cache.capture()
        except RuntimeError as error:
            self.capturing = False
            self.cache.rewind(len(self._seen))
            warnings.warn(f"Decoding goes on without a CUDA graph, slower: {error}", stacklevel=2)


def choose_token(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """The next token, from `logits [vocabulary]`: the likeliest at temperature 0, else a draw."""
    if temperature == 0:
        return logits.argmax().item()
    probabilities, tokens = (logits.float() / temperature).softmax(-1).sort(descending=True)
    likelier = probabilities.cumsum(-1) - probabilities  # what all likelier tokens take together
    probabilities = probabilities.masked_fill(likelier >= top_p, 0)
    return tokens[torch.multinomial(probabilities, 1, generator=generator)].item()


class TextStream:
    """Turns tokens into text as they come, each in constant time; joined, the pieces are the whole text.

    Bytes wait until their character is whole; bytes that are none become one U+FFFD. (The tokenizer's
    `decode`, and the `DecodeStream` of tokenizers, lose good characters with them.)
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.skipped, self._begun = tokenizer, set(tokenizer.all_special_ids), False
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        if token in self.skipped:
            return ""
        piece = batching.pieces(self.tokenizer, [token])[0]  # none: a model may have more rows than pieces
        data = batching.raw_bytes(piece)
        if data and not self._begun:  # the tokenizer puts a space before the first word
            self._begun, data = True, data.removeprefix(b" ")
        return self._characters.decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character cut off, else nothing."""
        return self._characters.decode(b"", final=True)
