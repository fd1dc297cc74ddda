"""The real Mixtral-8x7B tokenizer, built offline, and the chat template with generation markers.

The SentencePiece file inside the mistral-common wheel *is* Mixtral's. `LlamaTokenizer.from_pretrained` on it
is subtly wrong (its merges ignore the scores, so runs of spaces split differently): the BPE is built here.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

MISTRAL_FILE = files("mistral_common") / "data" / "tokenizer.model.v1"

# `[INST] question [/INST] answer</s>`, turns joined without a space: the ids mistral-common's v1 gives.
# What stands between `generation` and `endgeneration` is what an assistant-only loss trains: answer and </s>.
# A `<s>` or `</s>` inside a message (HTML has such tags) is broken up, or it would end the turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='', expect='user') %}"
    "{% for message in messages %}"
    "{% if message['content'] is not string %}"
    "{{ raise_exception('Message ' ~ loop.index ~ ': content must be a string.') }}"
    "{% endif %}"
    "{% set text = message['content'].replace('<s>', '< s>').replace('</s>', '</ s>') %}"
    "{% if message['role'] == 'system' and ns.expect == 'user' %}"
    "{% set ns.system = ns.system ~ text ~ '\n\n' %}"
    "{% elif message['role'] != ns.expect %}"
    "{{ raise_exception('Message ' ~ loop.index ~ ' has role ' ~ message['role'] ~ ' where ' ~ ns.expect"
    " ~ ' must speak: turns go user, assistant, user, assistant; system only before a user.') }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' ~ ns.system ~ text ~ ' [/INST]' }}{% set ns.system = '' %}{% set ns.expect = 'assistant' %}"
    "{% else %}"
    "{% generation %}{{ ' ' ~ text ~ eos_token }}{% endgeneration %}{% set ns.expect = 'user' %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if ns.system %}{{ raise_exception('A system message needs a user message after it.') }}{% endif %}"
)


def load_tokenizer(path: str | Path | None = None, *, revision: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with the course's chat template: Mixtral-8x7B's own, or that of a folder or hub id.

    The first `<s>` of a conversation is in the template, so tokenise what it rendered with
    `add_special_tokens=False`. Pads on the right, which training wants; set `padding_side = "left"` before
    generating in batches. Every call returns a tokenizer of its own, so such settings do not leak.

    Raises OSError (from transformers) where `path` holds no tokenizer. Source: mistral-common, tokenizer v1.
    """
    if path is None:
        special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_mixtral(), padding_side="right", **special)
    else:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, padding_side="right")
    if tokenizer.pad_token is None:
        # Byte fallback leaves <unk> unused in text; if </s> padded, a collator might mask the real </s> too.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def _mixtral() -> Tokenizer:
    """The pieces and scores of the SentencePiece model as a `tokenizers` BPE with the same result."""
    model = SentencePieceProcessor(model_file=str(MISTRAL_FILE))
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    # Ids 0 to 258 are <unk>, <s>, </s> and the 256 byte pieces: text never merges into or out of those.
    text = {piece: i for i, piece in enumerate(pieces) if i >= 259}
    merges = []
    for piece, i in text.items():
        for cut in range(1, len(piece)):
            left, right = text.get(piece[:cut]), text.get(piece[cut:])
            if left is not None and right is not None:
                merges.append((-model.get_score(i), i, left, right))
    # Best score first; only runs of spaces tie, by id, so 2, 4, 8 and 16 spaces precede the odd ones.
    merges = [(pieces[left], pieces[right]) for _, _, left, right in sorted(merges)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
