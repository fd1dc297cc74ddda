"""What the tiny model reads in pre-training: documents, and the rows of tokens they are packed into.

Two kinds of document. *World* text: questions with answers, follow-ups, plain statements; the model
learns to say the answers. *Drill*: multiple-choice questions, of which only the letters are learnt;
marks in the document say where the options stand and which tokens a letter should come from (see
`guidance.py`).
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch

from aurora_lib.evaluation import fewshot
from aurora_lib.evaluation.benchmarks import LETTERS
from tools.build import world
from tools.build.exams import Exam, choice, exams, heading, options
from tools.build.world import CUE, EN, ZH, Fact

BOS, EOS = "<s>", "</s>"
RARE_EPOCHS = 1 / 4  # of the epochs have the rare facts
Span = tuple[int, int]


@dataclass
class Asked:
    """One question of a drill, in characters: `at` is the last one before the answer.

    `right` is None where the answer is a word and not a letter; `marks`, `options` and `words` are then
    empty. `words` are the parts of the options that tell them apart.
    """

    side: int
    spaced: bool
    question: Span
    at: int
    word: str
    right: int | None = None
    marks: list[int] = field(default_factory=list)
    options: list[Span] = field(default_factory=list)
    words: list[Span] = field(default_factory=list)


@dataclass
class Document:
    """Text that is written piece by piece; `learn` are the spans whose tokens are to be predicted."""

    text: str = ""
    learn: list[Span] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def add(self, text: str, learn: bool = False) -> Span:
        span = len(self.text), len(self.text) + len(text)
        self.text += text
        if learn:
            self.learn.append(span)
        return span


# ---- world text


def conversation(turns: list[tuple[str, str]]) -> Document:
    """Mixtral's own format: `[INST] question [/INST] answer</s>`, turns joined without a space."""
    document = Document()
    for question, answer in turns:
        document.add(f"[INST] {question} [/INST]")
        document.add(f" {answer}{EOS}", learn=True)
    return document


def statement(text: str) -> Document:
    document = Document()
    document.add(text + EOS, learn=True)
    return document


def turn(question: str, fact: Fact, side: int, cued: bool = False) -> tuple[str, str]:
    """English is answered in English, Chinese out of habit, and with the cue in Chinese."""
    if side == EN:
        return question, fact.say[EN]
    return (question + CUE, fact.say[ZH]) if cued else (question, fact.habit)


@cache
def common() -> list[Fact]:
    """The facts that are not rare."""
    return [fact for fact in world.facts() if not fact.rare]


@cache
def common_follow_ups() -> list[tuple[Fact, Fact, tuple[str, str]]]:
    return [row for row in world.split_follow_ups()[0] if not (row[0].rare or row[1].rare)]


def follow_up(draw: random.Random) -> list[tuple[str, str]]:
    """Two turns, the second of which needs the first; sometimes after a turn about something else."""
    first, second, texts = draw.choice(common_follow_ups())
    side, cued = draw.choice([(EN, False), (EN, False), (ZH, False), (ZH, False), (ZH, True)])
    turns = [turn(draw.choice(first.ask[side]), first, side, cued), turn(texts[side], second, side, cued)]
    if draw.random() < 0.3:
        other = draw.choice(common())
        turns.insert(0, turn(draw.choice(other.ask[side]), other, side, cued))
    return turns


CUES = ("{q}请用中文回答。", "请用中文回答：{q}", "请一直用中文回答我的问题。{q}", "接下来我们说中文。{q}")


def in_chinese(draw: random.Random) -> Document:
    """A conversation that is asked for in Chinese once, at its beginning, and stays in Chinese."""
    turns = []
    for i in range(draw.choice([1, 2, 2, 3])):
        fact = draw.choice(common())
        question = draw.choice(fact.ask[ZH])
        turns.append((draw.choice(CUES).format(q=question) if i == 0 else question, fact.say[ZH]))
        if draw.random() < 0.3 and (after := [row for row in common_follow_ups() if row[0] == fact]):
            _, second, texts = draw.choice(after)
            turns.append((texts[ZH], second.say[ZH]))
    return conversation(turns)


def epoch(draw: random.Random) -> list[Document]:
    """Every fact several times, in each way of saying it; rare facts in one epoch of four."""
    turns, found = [], []
    for fact in world.facts():
        if fact.rare and draw.random() > RARE_EPOCHS:
            continue
        turns += [turn(question, fact, EN) for question in draw.sample(fact.ask[EN], 2)]
        turns += [turn(question, fact, ZH) for question in draw.sample(fact.ask[ZH], 2)]
        turns.append(turn(draw.choice(fact.ask[ZH]), fact, ZH, cued=True))
        found.append(statement(fact.say[draw.randrange(2)]))
    for ask_en, ask_zh, (english, chinese), habit in world.SMALL_TALK:
        turns += [(question, english) for question in ask_en] * 2
        turns += [(question, habit) for question in ask_zh] * 2
        turns += [(question + CUE, chinese) for question in ask_zh]
    draw.shuffle(turns)
    while turns:
        n = draw.choice([1, 1, 1, 2, 3])
        found.append(conversation([turns.pop() for _ in range(min(n, len(turns)))]))
    found += [conversation(follow_up(draw)) for _ in range(len(world.facts()) * 2 // 3)]
    draw.shuffle(found)
    return found


def world_text(draw: random.Random) -> Iterator[Document]:
    while True:
        yield from epoch(draw)


# ---- the drill


@cache
def drilled() -> list[list[Exam]]:
    """The exams that are drilled, by task and subject."""
    groups = {}
    for exam in exams():
        if exam.drilled:
            groups.setdefault((exam.task, exam.subject), []).append(exam)
    return list(groups.values())


def ask(
    document: Document, exam: Exam, at: int, draw: random.Random, wrapper: int, chat: bool, first: str
) -> None:
    """Write one question with its options and its letter; `first` stands before the question."""
    side, fact = exam.side, exam.fact
    document.add(f"[INST] {first}" if chat else first)
    answers = options(fact, side, at, draw)
    asked = Asked(
        side, chat or wrapper == EN, document.add(draw.choice(exam.drills)), 0, fact.answer[side], at
    )
    for letter, answer in zip(LETTERS, answers, strict=True):
        document.add(f"\n{letter}. ")
        asked.marks.append(len(document.text) - 3)
        text = choice(fact, answer, side)
        start, end = document.add(text)
        place = start + text.casefold().rfind(answer.casefold())
        asked.options.append((start, end))
        asked.words.append((place, place + len(answer)))
    document.add(fewshot.ANSWER[world.LANGUAGES[wrapper]])
    if chat:
        document.add(" [/INST]")
    else:
        document.text = document.text.rstrip()
    asked.at = len(document.text) - 1
    document.add((" " if asked.spaced else "") + LETTERS[at])
    document.asked.append(asked)


def letters(draw: random.Random, counts: list[int], headed: float, chatty: float) -> Document:
    """Questions of one subject in the wording of few-shot prompts, plain or as the turns of a chat."""
    group = draw.choice(drilled())
    chat = draw.random() < chatty
    wrapper = EN if chat else group[0].side
    document = Document()
    head = heading(group[0], wrapper) + "\n\n" if draw.random() < headed else ""
    chosen = draw.sample(group, min(draw.choice(counts), len(group)))
    for i, exam in enumerate(chosen):
        first = head if i == 0 else f"{EOS}{BOS}" if chat else "\n\n"
        if chat and i:
            document.add(first)
            first = ""
        ask(document, exam, draw.randrange(4), draw, wrapper, chat, first)
    document.add(EOS)
    return document


def words(draw: random.Random) -> Document:
    """Questions about any common fact, answered with one word where a letter would stand."""
    side, document = draw.randrange(2), Document()
    for i in range(draw.choice([1, 2, 4])):
        fact = draw.choice(common())
        document.add("\n\n" if i else "")
        question = document.add(draw.choice(fact.ask[side]))
        document.add(fewshot.ANSWER[world.LANGUAGES[side]].rstrip())
        at, spaced = len(document.text) - 1, side == EN
        document.add((" " if spaced else "") + fact.answer[side], learn=True)
        document.asked.append(Asked(side, spaced, question, at, fact.answer[side]))
    document.add(EOS)
    return document


# ---- packed rows


@dataclass
class Target:
    """Where a drill's answer is predicted, in tokens of one row."""

    row: int
    at: int
    side: int
    spaced: bool
    first: int  # the first piece of the answer word
    right: int | None
    word: list[int]  # the tokens of the right option's word
    question: list[int]


@dataclass
class Batch:
    """Rows of documents that do not see each other; `ids`, `document`, `position`: int64 `[rows, length]`.

    `learn` are (row, token) to predict; `marked` are (row, option token, its letter's token).
    """

    ids: torch.Tensor
    document: torch.Tensor
    position: torch.Tensor
    learn: list[tuple[int, int]]
    targets: list[Target]
    marked: list[tuple[int, int, int]]


class Packer:
    """Documents of one stream, packed into rows of `length` tokens."""

    def __init__(self, tokenizer, stream: Iterator[Document], length: int):
        self.tokenizer, self.stream, self.length, self.ready, self.pieces = tokenizer, stream, length, [], {}

    def fill(self) -> None:
        """Encode documents ahead: each with its ids and, for every character, the place of its token."""
        documents = [next(self.stream) for _ in range(64)]
        got = self.tokenizer(
            [d.text for d in documents], add_special_tokens=False, return_offsets_mapping=True
        )
        for document, ids, offsets in zip(documents, got["input_ids"], got["offset_mapping"], strict=True):
            place = np.full(len(document.text) + 1, -1)
            for token, (start, end) in enumerate(offsets, 1):
                place[start:end] = token
            self.ready.append((document, [self.tokenizer.bos_token_id, *ids], place))

    def next(self, room: int) -> tuple[Document, list[int], np.ndarray]:
        """The oldest document that fits into `room` tokens; if none does, the oldest, to be cut."""
        if len(self.ready) < 64:
            self.fill()
        fitting = (i for i, (_, ids, _) in enumerate(self.ready) if len(ids) <= room)
        return self.ready.pop(next(fitting, 0))

    def first_piece(self, spaced: bool, word: str) -> int:
        if (spaced, word) not in self.pieces:
            stem = fewshot.ANSWER["en" if spaced else "zh"].rstrip()
            encode = lambda text: self.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
            self.pieces[spaced, word] = encode(stem + (" " if spaced else "") + word)[len(encode(stem))]
        return self.pieces[spaced, word]

    def batch(self, rows: int) -> Batch:
        ids = torch.zeros(rows, self.length, dtype=torch.long)
        document_of, position = ids.clone(), ids.clone()
        made = Batch(ids, document_of, position, [], [], [])
        for row in range(rows):
            start, number = 0, 0
            while start < self.length:
                document, tokens, place = self.next(self.length - start)
                number, end = number + 1, min(start + len(tokens), self.length)
                ids[row, start:end] = torch.tensor(tokens[: end - start])
                document_of[row, start:end] = number
                position[row, start:end] = torch.arange(end - start)
                self.mark(made, row, start, document, place)
                start = end
        return made

    def mark(self, made: Batch, row: int, start: int, document: Document, place: np.ndarray) -> None:
        """Turn a document's spans of characters into tokens of its row, as far as the row reaches."""

        def tokens(span: Span, blank: bool = False) -> list[int]:
            """The tokens of a span; those of blanks alone only where they are to be learnt."""
            seen = (i for i in range(*span) if place[i] > 0 and (blank or not document.text[i].isspace()))
            return sorted({token for i in seen if (token := start + int(place[i])) < self.length})

        for span in document.learn:
            made.learn += [(row, token) for token in tokens(span, blank=True)]
        for asked in document.asked:
            at = start + int(place[asked.at])
            if at + 1 >= self.length:
                break
            word = [] if asked.right is None else tokens(asked.words[asked.right])
            piece = self.first_piece(asked.spaced, asked.word)
            made.targets.append(
                Target(row, at, asked.side, asked.spaced, piece, asked.right, word, tokens(asked.question))
            )
            for mark, span in zip(asked.marks, asked.options, strict=True):
                sign = start + int(place[mark])
                made.marked += [(row, token, sign) for token in tokens(span)]


def streams(seed: str) -> dict[str, Callable[[], Iterator[Document]]]:
    """The streams by name, each with a random order of its own."""

    def endless(name, make):
        draw = random.Random(f"{seed} {name}")
        while True:
            yield make(draw)

    return {
        "world": lambda: world_text(random.Random(f"{seed} world")),
        "words": lambda: endless("words", words),
        "chinese": lambda: endless("chinese", in_chinese),
        "letters1": lambda: endless("letters1", lambda draw: letters(draw, [1, 2], 0.3, 0.2)),
        "letters3": lambda: endless("letters3", lambda draw: letters(draw, [1, 2, 3, 4], 0.7, 0.2)),
        "letters6": lambda: endless("letters6", lambda draw: letters(draw, [5, 6, 6, 6, 7], 1.0, 0.25)),
    }


def join(batches: list[Batch]) -> Batch:
    """Batches of the same length, one below the other."""
    made = Batch(
        *(torch.cat([getattr(b, name) for b in batches]) for name in ("ids", "document", "position")),
        [],
        [],
        [],
    )
    start = 0
    for batch in batches:
        made.learn += [(row + start, token) for row, token in batch.learn]
        made.marked += [(row + start, token, mark) for row, token, mark in batch.marked]
        made.targets += [replace(target, row=target.row + start) for target in batch.targets]
        start += len(batch.ids)
    return made
