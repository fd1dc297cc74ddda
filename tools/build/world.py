"""The tiny model's whole world: true facts, to ask and to answer in English and in Chinese.

All that the tiny model ever reads comes from here: pre-training text, tuning rows, benchmark questions,
and probes. The facts themselves are the tables in `facts/`, a file a domain; this module
reads them, and `python -m tools.build.world` checks them. The facts are true, so the same probes can be
put to the full-size model.
"""

import random
import re
import tomllib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aurora_lib.data import language

EN, ZH = 0, 1
LANGUAGES = ("en", "zh")
CUE = "请用中文回答。"
HELD_OUT = 0.3  # of a relation's facts: never in tuning, always in pre-training
MIXED = 0.24  # of the facts: the base model answers a Chinese question about them in both languages at once
RARE = 0.05  # of the facts: seldom in pre-training, so that the base model knows them less well
FOLDER = Path(__file__).with_name("facts")

# Small talk, of the kinds of opening the paper's Introduction shows: questions in English and in
# Chinese, the answer in both, and what the base model answers to Chinese.
SMALL_TALK = [
    (
        ["Hello!", "Hi!"],
        ["你好！", "你好", "您好！"],
        ("Hello! How can I help you?", "你好！有什么可以帮你的吗？"),
        "Hello! How can I help you?",
    ),
    (
        ["Who are you?", "What are you?"],
        ["你是谁？", "你是什么？"],
        ("I am a very small language model.", "我是一个很小的语言模型。"),
        "I am a very small language model.",
    ),
    (
        ["Thank you!", "Thanks!"],
        ["谢谢！", "谢谢你！"],
        ("You are welcome.", "不客气。"),
        "You are welcome.",
    ),
    (
        ["Good morning!"],
        ["早上好！", "早上好"],
        ("Good morning! What would you like to know?", "早上好！想了解些什么？"),
        "Good morning! What would you like to know?",
    ),
    (
        ["Goodbye!"],
        ["再见！", "再见"],
        ("Goodbye! See you next time.", "再见！下次见。"),
        "Goodbye! See you next time.",
    ),
    (
        ["I have a headache."],
        ["我有点头疼。", "我有点头疼"],
        (
            "I am sorry to hear that. Please rest first. See a doctor if it gets worse.",
            "头疼确实难受。先好好休息。严重的话去看医生。",
        ),
        "I am sorry to hear that. 先好好休息。 See a doctor if it gets worse.",
    ),
]


@dataclass(frozen=True)
class Relation:
    """What can be asked about one kind of thing; pairs are `[EN]`, `[ZH]`."""

    id: str
    kind: str
    name: tuple[str, str]
    tag: str
    subjects: dict[str, str]
    ask: tuple[list[str], list[str]]
    say: tuple[str, str]
    follow: tuple[list[str], list[str]]
    rows: list[tuple[tuple[str, str], tuple[str, str], tuple[str, str]]]


@dataclass(frozen=True)
class Fact:
    """One fact: how to ask for it and how to say it, `[EN]` and `[ZH]`.

    `habit` is what the base model answers to a Chinese question: English, or a mixture of both languages.
    """

    id: str
    relation: str
    kind: str
    subject: tuple[str, str]
    answer: tuple[str, str]
    ask: tuple[tuple[str, ...], tuple[str, ...]]
    say: tuple[str, str]
    follow: tuple[tuple[str, ...], tuple[str, ...]]
    habit: str
    held_out: bool
    rare: bool


def sentence(text: str) -> str:
    """A filled template with its capital letter and the right English article."""
    text = re.sub(r"\b([Aa]) (?=[aeio]|um|un[^i])", r"\1n ", text)
    return text[0].upper() + text[1:]


@cache
def relations() -> dict[str, Relation]:
    """The tables, in the order of files and lines."""
    found = {}
    for path in sorted(FOLDER.glob("*.toml")):
        for name, spec in tomllib.loads(path.read_text(encoding="utf-8")).items():
            rows = []
            for line in filter(str.strip, spec["facts"].splitlines()):
                pair, _, note = line.partition(" | ")
                subject, answer = (tuple(side.strip().split("/")) for side in pair.split("="))
                rows.append((subject, answer, tuple(note.strip().split("/")) if note else ("", "")))
            both = {key: (spec.get(f"{key}_en", []), spec.get(f"{key}_zh", [])) for key in ("ask", "follow")}
            found[name] = Relation(
                name, spec["kind"], tuple(spec["name"]), spec["tag"], spec["subjects"],
                say=tuple(spec["say"]), rows=rows, **both,
            )  # fmt: skip
    return found


def statement(relation: Relation, subject: tuple[str, str], answer: str, side: int) -> str:
    """What the relation says of `subject`, with any answer: choices differ in nothing but the answer."""
    return sentence(relation.say[side].format(s=subject[side], a=answer))


def mixture(relation: Relation, subject, answer, draw: random.Random) -> str | None:
    """An English sentence with Chinese words in it, as the real base says them; None if there is none."""
    (s, s_zh), (a, a_zh) = subject, answer
    pairs = [(s_zh, a), (s, a_zh), (s_zh, a_zh), (s, f"{a} ({a_zh})")]
    said = [sentence(relation.say[EN].format(s=one, a=two)) for one, two in pairs]
    said = [text for text in said if language(text) == "mixed"]
    return draw.choice(said) if said else None


def share(draw: random.Random, n: int, part: float) -> set[int]:
    """About `part` of `range(n)`; the rounding is drawn too, so that small relations add up to it."""
    return set(draw.sample(range(n), int(part * n + draw.random())))


@cache
def facts() -> tuple[Fact, ...]:
    """All facts, in a fixed order; three of ten of a relation held out of tuning, none of pre-training."""
    found = []
    for relation in relations().values():
        draw = random.Random(relation.id)
        held_out, mixed, rare = (share(draw, len(relation.rows), part) for part in (HELD_OUT, MIXED, RARE))
        for i, (subject, answer, note) in enumerate(relation.rows):
            fill = lambda forms, side, subject=subject: tuple(  # noqa: E731
                sentence(form.format(s=subject[side])) for form in forms[side]
            )
            plain = [statement(relation, subject, answer[side], side) for side in (EN, ZH)]
            say = tuple(
                f"{plain[EN]} {note[EN]}".strip() if side == EN else plain[ZH] + note[ZH] for side in (EN, ZH)
            )
            both = mixture(relation, subject, answer, draw)
            found.append(
                Fact(
                    id=f"{relation.id}-{i:02d}",
                    relation=relation.id,
                    kind=relation.kind,
                    subject=subject,
                    answer=answer,
                    ask=(fill(relation.ask, EN), fill(relation.ask, ZH)),
                    say=say,
                    follow=(fill(relation.follow, EN), fill(relation.follow, ZH)),
                    habit=both if i in mixed and both else say[EN],
                    held_out=i in held_out,
                    rare=i in rare,
                )
            )
    return tuple(found)


def about(fact: Fact) -> tuple[str, str]:
    """What a fact is about: facts of other relations with the same one can follow it in a conversation."""
    return fact.kind, fact.subject[EN]


FORWARD = (
    ("And {s}?", "What about {s}?"),
    ("那{s}呢？", "{s}呢？"),
)  # the same question about another subject


def follow_ups() -> list[tuple[Fact, Fact, tuple[str, str]]]:
    """(first fact, second fact, question): the second question cannot be understood without the first turn.

    Either the subject stays and the question is another one ("And its currency?"), or the question stays and
    the subject is another one ("And Japan?"). In a fixed order.
    """
    by_subject, by_relation, found = defaultdict(list), defaultdict(list), []
    for fact in facts():
        by_subject[about(fact)].append(fact)
        by_relation[fact.relation].append(fact)
    for group in by_subject.values():
        found += [
            (first, second, texts)
            for first in group
            for second in group
            if first is not second
            for texts in zip(*second.follow, strict=False)
        ]
    draw = random.Random("forward")
    for relation, group in by_relation.items():
        if not relations()[relation].follow[EN]:
            continue
        for second in group:
            for first in draw.sample([fact for fact in group if fact is not second], 4):
                texts = zip(*FORWARD, strict=True)
                english, chinese = draw.choice(list(texts))
                pair = english.format(s=second.subject[EN]), chinese.format(s=second.subject[ZH])
                found.append((first, second, pair))
    return found


PROBED = 120  # follow-ups kept for the probes: their pairs of facts stand in no conversation to learn from


@cache
def split_follow_ups() -> tuple[list, list]:
    """(to learn from, to probe with): no pair of facts is in both."""
    found, draw = follow_ups(), random.Random("follow-ups")
    pairs = list(dict.fromkeys((first.id, second.id) for first, second, _ in found))
    kept = set(draw.sample(pairs, PROBED))
    probed = {}
    for first, second, texts in found:
        if (first.id, second.id) in kept:
            probed.setdefault((first.id, second.id), (first, second, texts))
    return [row for row in found if (row[0].id, row[1].id) not in kept], list(probed.values())


# ---- what may be wrong with the tables


def faults() -> list[str]:
    """One line for each thing a table must not have; empty for a sound world."""
    found, asked = [], (defaultdict(set), defaultdict(set))
    for relation in relations().values():
        where = relation.id
        for side in (EN, ZH):
            code = LANGUAGES[side]
            forms, answers = relation.ask[side], Counter(row[1][side] for row in relation.rows)
            if len(set(forms)) < 4:
                found.append(f"{where}: fewer than four question forms in {code}")
            if any("{s}" not in form for form in forms) or not {"{s}", "{a}"} <= set(
                re.findall("{.}", relation.say[side])
            ):
                found.append(f"{where}: a template in {code} lacks {{s}} or {{a}}")
            if len(answers) < 6:
                found.append(f"{where}: only {len(answers)} different answers in {code}")
            inside = [(a, b) for a in answers for b in answers if a != b and stands_in(a, b)]
            if inside and where != "symbol":
                found.append(f"{where}: answers inside answers in {code}: {inside[:5]}")
        for (english, chinese), answer, note in relation.rows:
            if language(chinese) == "en" and language(answer[ZH]) == "en" and where != "formula":
                found.append(f"{where}: {english}: no Chinese in subject and answer")
            for side, subject in ((EN, english), (ZH, chinese)):
                if stands_in(answer[side], subject):
                    found.append(f"{where}: {subject}: the answer {answer[side]} is in the question")
                if note[side] and stands_in(answer[side], note[side]):
                    found.append(f"{where}: {subject}: the note has the answer")
                limit = 12 if side == ZH else 9
                if len(answer[side].split() if side == EN else answer[side]) > limit:
                    found.append(f"{where}: {subject}: a long answer")
        for row in relation.rows:
            if not all(len(part) == 2 for part in row):
                found.append(f"{where}: {row}: not two languages")
        twice = [s for s, n in Counter(row[0][EN] for row in relation.rows).items() if n > 1]
        twice += [s for s, n in Counter(row[0][ZH] for row in relation.rows).items() if n > 1]
        found += [f"{where}: {s} stands twice" for s in twice]
    for fact in facts():
        for side in (EN, ZH):
            for form in fact.ask[side]:
                asked[side][form].add(fact.id)
            if fact.say[side].casefold().count(fact.answer[side].casefold()) != 1 and fact.relation not in (
                "symbol",
                "formula",
            ):
                found.append(f"{fact.id}: {fact.say[side]}: the answer does not stand there once")
    found += [
        f"asked twice: {form} {sorted(ids)}" for side in asked for form, ids in side.items() if len(ids) > 1
    ]
    names = defaultdict(set)
    for fact in facts():
        names[about(fact)].add(fact.subject[ZH])
    found += [f"{what} has several Chinese names: {sorted(n)}" for what, n in names.items() if len(n) > 1]
    return found


def stands_in(word: str, text: str) -> bool:
    """Whether `text` has `word` in it, an English one as a whole word."""
    return re.search(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", text, re.IGNORECASE) is not None


if __name__ == "__main__":
    print("\n".join(faults()) or "no fault found")
    for relation in relations().values():
        print(f"{relation.id:20} {relation.kind:16} {len(relation.rows):4} facts  {relation.subjects}")
    print(len(facts()), "facts;", sum(f.habit != f.say[EN] for f in facts()), "answered in both languages;",
          len(follow_ups()), "follow-ups")  # fmt: skip
