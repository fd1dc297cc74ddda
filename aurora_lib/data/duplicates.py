"""Equal and nearly equal conversations: shingles, MinHash, bands (Broder 1997; Leskovec et al., chapter 3).

Two texts with Jaccard similarity J agree in one MinHash value with probability J, in all `ROWS` values of one
band with J^ROWS, and in at least one of `BANDS` bands with 1 - (1 - J^ROWS)^BANDS: the S-curve. Pairs that
share a band are *candidates*; they are verified on their true similarity.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pandas
import xxhash
from datasets import Dataset
from rapidfuzz.distance import Indel, Levenshtein
from rensa import RMinHash

from aurora_lib.data.edits import Messages

SHINGLE = 5  # characters
PERMUTATIONS, BANDS, ROWS = 128, 32, 4
BATCH = 2_000  # conversations
SIMILAR = 0.7  # Jaccard similarity of shingles from which on two conversations are near duplicates
ALIKE = 0.6  # where the questions differ, so alike must the answers be
HARDLY_EDITED = 0.9  # or share of characters in common: one change in a short text breaks many shingles
UNIMPORTANT = re.compile(r"[\s，。！？、；：,!?;:\"'“”‘’…~～]+")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads neighbouring code points


def plain(messages: Messages) -> str:
    """All that is said, without spaces, common punctuation and case: what near duplicates have in common."""
    return UNIMPORTANT.sub("", "\n".join(message["content"] for message in messages)).lower()


def shingles(text: str) -> np.ndarray:
    """A 64-bit hash of every SHINGLE characters in a row, [characters - 4] (of a shorter text as a whole)."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = max(1, len(points) - SHINGLE + 1)
    return chained((points[i : i + count] for i in range(min(SHINGLE, len(points)))), count)


def chained(parts: Iterable[np.ndarray], *shape: int) -> np.ndarray:
    """One 64-bit hash, `shape`, of several arrays of that shape, element by element and in their order."""
    hashed = np.zeros(shape, np.uint64)
    for part in parts:
        hashed = (hashed + part) * MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
    return hashed


def jaccard(a: str, b: str) -> float:
    """Shingles in common, over shingles in all."""
    one, other = set(shingles(a).tolist()), set(shingles(b).tolist())
    return len(one & other) / len(one | other)


def signatures(texts: list[np.ndarray]) -> np.ndarray:
    """MinHash of each array of shingles: [texts, PERMUTATIONS] uint32.

    rensa computes on threads, which a fork does not copy: never call this in a forked process, it would hang.
    """
    edges = np.cumsum([0, *map(len, texts)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(texts), edges, PERMUTATIONS, 0)
    return np.array(matrix.to_rows(), np.uint32)


def bands(signature: np.ndarray) -> np.ndarray:
    """One 64-bit value a band for signatures [texts, PERMUTATIONS]: [texts, BANDS] uint64."""
    parts = signature[:, : BANDS * ROWS].astype(np.uint64).reshape(len(signature), BANDS, ROWS)
    return chained((parts[:, :, i] for i in range(ROWS)), *parts.shape[:2])


def same(a: Messages, b: Messages) -> bool:
    """Whether two candidates are near duplicates: similar, and not another question with its own answer."""
    text_a, text_b = plain(a), plain(b)
    hardly_edited = Indel.normalized_similarity(text_a, text_b, score_cutoff=HARDLY_EDITED) > 0
    if not hardly_edited and jaccard(text_a, text_b) < SIMILAR:
        return False
    (asked_a, answered_a), (asked_b, answered_b) = _sides(a), _sides(b)
    if asked_a == asked_b or answered_a == answered_b:
        return True
    if _replaced(asked_a, asked_b) & _replaced(answered_a, answered_b):
        return False  # the same word replaced on both sides: the same form, asked about something else
    other_answer = _other_numbers(answered_a, answered_b)
    if other_answer and _other_numbers(asked_a, asked_b):
        return False  # the same sum with other figures
    if len(answered_a) + len(answered_b) < 8:  # a share says little about a word or two
        return Indel.distance(answered_a, answered_b) <= 2 and not other_answer
    return Indel.normalized_similarity(answered_a, answered_b) >= ALIKE


def _sides(messages: Messages) -> tuple[str, str]:
    asked = plain([message for message in messages if message["role"] != "assistant"])
    return asked, plain([message for message in messages if message["role"] == "assistant"])


def _other_numbers(a: str, b: str) -> bool:
    """As many numbers in one as in the other, and not the same ones."""
    one, other = NUMBER.findall(a), NUMBER.findall(b)
    return len(one) == len(other) and one != other


def _replaced(a: str, b: str) -> set[tuple[str, str]]:
    """What stands in `b` where something else stood in `a`; in long texts it costs much and tells little."""
    if max(len(a), len(b)) > 2_000:
        return set()
    edits = Levenshtein.opcodes(a, b)
    return {(a[e.src_start : e.src_end], b[e.dest_start : e.dest_end]) for e in edits if e.tag == "replace"}


def prepared(messages: Messages) -> dict:
    """What `exact` and `near` ask of a conversation: `mark` (of equal ones the same), `plain`, `size`."""
    text = "\0".join(f"{message['role']}\0{message['content'].strip()}" for message in messages)
    size = sum(len(message["content"]) for message in messages if message["role"] == "assistant")
    return dict(mark=xxhash.xxh3_128_hexdigest(text.encode()), plain=plain(messages), size=size)


def exact(rows: Dataset) -> dict[int, int]:
    """Of equal conversations (by `mark`) the first stays: {position of the copy: position of the first}."""
    first = {}
    pairs = [(i, first.setdefault(mark, i)) for i, mark in enumerate(rows["mark"][:])]
    return {i: at for i, at in pairs if at != i}


def near(rows: Dataset) -> dict[int, int]:
    """Near duplicates among conversations (`messages`, `prepared`): {position dropped: position kept}.

    Of a pair the one with the longer answers stays, of equal ones the first. A conversation goes only if it
    resembles one that stays, so that a chain of small changes does not take all with it.
    """
    sizes, banded = [], [np.zeros((0, BANDS), np.uint64)]
    for batch in rows.select_columns(["plain", "size"]).iter(BATCH):
        banded.append(bands(signatures([shingles(text) for text in batch["plain"]])))
        sizes += batch["size"]
    banded, sizes = np.concatenate(banded), np.array(sizes, int)
    shared = pandas.DataFrame(banded).apply(lambda band: band.duplicated(keep=False)).any(axis=1)
    order = np.flatnonzero(shared)
    order = order[np.argsort(-sizes[order], kind="stable")]
    kept, copies = defaultdict(list), {}  # (band, its value): positions
    for i in order.tolist():
        keys = list(enumerate(banded[i].tolist()))
        candidates = sorted({j for key in keys for j in kept.get(key, ())})
        messages = rows[i]["messages"] if candidates else None
        found = next((j for j in candidates if same(messages, rows[j]["messages"])), None)
        if found is not None:
            copies[i] = found
        for key in keys if found is None else ():
            kept[key].append(i)
    return copies
