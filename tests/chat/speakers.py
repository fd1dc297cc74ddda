"""Decoders for tests: one that keeps its prompt, and one that says what a test wants to hear."""

from itertools import chain, repeat

import torch

from aurora_lib.chat.decoding import Decoder


class Listening(Decoder):
    """The decoder of `session`, which keeps the last prompt."""

    def __init__(self, session):
        super().__init__(session.model)
        self.session, session.decoder = session, self

    def logits(self, ids, *, adapter=True, room=0):
        self.prompt = ids[: room - self.session.max_new_tokens]
        return super().logits(ids, adapter=adapter, room=room)

    def heard(self):
        """The last prompt as text."""
        return self.session.tokenizer.decode(self.prompt)


class Scripted:
    """Makes `session` say these tokens, then `then` for ever; a function among them is called in its turn."""

    reused = 0

    def __init__(self, session, *tokens, then="</s>"):
        self.session, session.decoder = session, self
        self.tokens = chain(tokens, repeat(then))

    def logits(self, ids, **_):
        while callable(token := next(self.tokens)):
            token()
        logits = torch.zeros(self.session.model.config.vocab_size)
        logits[self.session.tokenizer.convert_tokens_to_ids(token)] = 1
        return logits

    def release(self):
        """Nothing is kept."""


def fail():
    raise RuntimeError("CUDA\n  out of memory")
