"""The real Mixtral-8x7B tokenizer, built offline, and chat templates with generation markers.

The SentencePiece file inside the mistral-common wheel *is* Mixtral's. `LlamaTokenizer.from_pretrained` on it
is subtly wrong (its merges ignore the scores, so runs of spaces split differently): the BPE is built here.
"""

import re
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges
from transformers.utils import cached_file

from aurora_lib.model.files import ModelFileError, contents, local, reaching, said

MISTRAL_FILE = files("mistral_common") / "data" / "tokenizer.model.v1"
PROBES = ("", "a  b   c\n\tdef f(x):", " 混合专家，café 龘 😀  ", "1234 ﬁ Ａ")  # where tokenizers differ

# `[INST] question [/INST] answer</s>`, turns joined without a space: the ids mistral-common's v1 gives.
# What stands between `generation` and `endgeneration` is what an assistant-only loss trains: answer and </s>.
# A `<s>` or `</s>` inside a message (HTML has such tags) is broken up, or it would end the turn.
# `any_template` does both around a model's own template, whichever way that is written.
CHAT_TEMPLATE, ANY_TEMPLATE = (
    Path(__file__).with_name(name).read_text(encoding="utf-8").replace("\n", "").replace(r"\n", "\n")
    for name in ("chat_template.jinja", "any_template.jinja")  # their line breaks are for the reader
)


def load_tokenizer(path: str | Path | None = None, *, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Mixtral-8x7B's own tokenizer, or that of a folder or hub id; its chat template marks the answers.

    With `[INST]` or without any it is the course's; any other stays a model's own. It writes the first `<s>`,
    so tokenise what it rendered with `add_special_tokens=False`; `bos_token` is None where chats have none in
    front. Pads on the right, which training wants; set `padding_side = "left"` before generating in batches.
    Every call returns a tokenizer of its own, so such settings do not leak. Source: mistral-common, v1.

    Raises ModelFileError where `path` holds no tokenizer, or a template that cannot be marked.
    """
    tokenizer = _found(path, revision) if path else _from_sentencepiece(str(MISTRAL_FILE))
    if tokenizer.pad_token is None:
        # Byte fallback leaves <unk> unused in text; if </s> padded, a collator might mask the real </s> too.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False  # for BPE it is ignored, with a warning
    own = tokenizer.chat_template and tokenizer.get_chat_template()
    tokenizer.chat_template = CHAT_TEMPLATE
    if own and "[INST]" not in own:
        _wrap(tokenizer, own, path)
    return tokenizer


def _wrap(tokenizer: PreTrainedTokenizerFast, own: str, place: str | Path) -> None:
    """Give it its own template with markers. Raises ModelFileError where that cannot be done."""
    from trl.chat_template_utils import get_training_chat_template  # here: Mixtral needs no TRL

    tokenizer.chat_template = own
    with suppress(Exception):  # a ValueError, where TRL has none for this model
        own = get_training_chat_template(tokenizer) or own  # Qwen3's own rewrites earlier turns
    own = re.sub(r"({%[-+]?\s*)(end)?generation\b", lambda tag: tag[1] + ("endif" if tag[2] else "if 1"), own)
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    system, *talk = [dict(role=r, content=f"The {r}.") for r in ("system", *("user", "assistant") * 2)]

    def render(joined: bool, *talk: dict) -> str:
        parts = dict(OWN="\n" + own.removesuffix("\n"), SPECIAL=str(special), JOINED=str(joined))
        tokenizer.chat_template = re.sub("|".join(parts), lambda part: parts[part[0]], ANY_TEMPLATE)
        return tokenizer.apply_chat_template(talk, tokenize=False)

    try:
        if not render(False, *talk).startswith(tokenizer.bos_token or "\0"):
            tokenizer.bos_token = None
        with suppress(Exception):  # it refuses a system turn
            if system["content"] in render(False, system, *talk):
                return
        render(True, system, *talk)  # joined to the user's turn, as Mixtral has it
    except Exception as error:
        raise ModelFileError(said("template", place=place, why=str(error).rstrip("."))) from error


def _found(path: str | Path, revision: str | None) -> PreTrainedTokenizerFast:
    folder, how = local(path), dict(revision=revision, _raise_exceptions_for_missing_entries=False)
    try:
        with reaching(path, "tokenizer"):
            whole = cached_file(folder or path, "tokenizer.json", **how)
            pieces = None if whole else cached_file(folder or path, "tokenizer.model", **how)
            if pieces:
                return _from_sentencepiece(pieces)
            return AutoTokenizer.from_pretrained(folder or path, revision=revision, padding_side="right")
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(said("no_tokenizer", place=path)) from error


def _from_sentencepiece(file: str) -> PreTrainedTokenizerFast:
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=_bpe(file), padding_side="right", **special)


@cache
def _bpe(file: str) -> Tokenizer:
    """The pieces and scores of a SentencePiece model as a `tokenizers` BPE with the same result.

    Raises ModelFileError where the result is not the same: for a model of another kind than Mixtral's.
    """
    model = contents(Path(file))
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: model.get_score(i) for piece, i in vocab.items()}
    # Ids 0 to 258 are <unk>, <s>, </s> and the 256 byte pieces: text never merges into or out of those.
    merges = generate_merges(vocab, scores, skip_tokens=pieces[:259])
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    same = all(tokenizer.encode(probe).ids == model.encode(probe) for probe in PROBES)
    if not same or pieces[:4] != ["<unk>", "<s>", "</s>", "<0x00>"]:
        raise ModelFileError(said("other_tokenizer", place=file))
    return tokenizer
