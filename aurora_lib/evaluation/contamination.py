"""Benchmark questions among the training rows: an n-gram in common (GPT-3, appendix C), or a whole one."""

import re
from collections.abc import Iterator, Sequence
from functools import cache

# Letters and digits in a row that no two texts share by chance: 20 of Chinese (at least half of them Han),
# of other scripts 50, about the 13 words of GPT-3's paper ("presidential election" is 20 and a stock phrase).
HAN_GRAM, LATIN_GRAM = 20, 50
SIGNS = re.compile(r"[\W_]+")  # table rules and underlines are in many texts
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class Questions:
    """The texts of benchmark questions, ready to be looked for: by n-gram, the shorter ones as a whole."""

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)
        self._whole, self._grams = {}, {}  # text: the number of its question
        for number, text in enumerate(map(_letters, self.texts)):
            self._whole[text] = number
            for size in (HAN_GRAM, LATIN_GRAM):
                for gram in _grams(text, size):
                    if (len(HAN.findall(gram)) >= size / 2) == (size == HAN_GRAM):
                        self._grams.setdefault(gram, number)

    def __reduce__(self):  # another process gets the texts alone, and makes the rest once
        return _of, (self.texts,)

    def found_in(self, messages: list[dict]) -> str | None:
        """The first benchmark question that a conversation shares an n-gram with, or asks word for word."""
        said = _letters("\n".join(message["content"] for message in messages))
        grams = (gram for size in (HAN_GRAM, LATIN_GRAM) for gram in _grams(said, size))
        numbers = [self._grams[gram] for gram in grams if gram in self._grams][:1]
        asked = (_letters(message["content"]) for message in messages if message["role"] == "user")
        numbers += [self._whole[text] for text in asked if text and text in self._whole]
        return self.texts[numbers[0]] if numbers else None


@cache
def _of(texts: tuple[str, ...]) -> Questions:
    return Questions(texts)


def _letters(text: str) -> str:
    return SIGNS.sub("", text).lower()


def _grams(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(len(text) - size + 1))
