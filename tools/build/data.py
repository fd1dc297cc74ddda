"""Write the bundled rows and probes: `python -m tools.build.data`. Deterministic: the same bytes every time.

The rows have the layouts of the three released files, and the dirt those files have about as often as
they have it, but every word is ours: questions and answers come from `world.py`. Facts held out of
tuning appear in no row.
"""

import argparse
import hashlib
import json
import random
from functools import cache
from pathlib import Path

import ftfy.bad_codecs  # noqa: F401 (registers the codec that makes mojibake)
import opencc

from aurora_lib.course import DATA
from tools.build import world
from tools.build.exams import exams
from tools.build.world import EN, ZH, Fact

SEED = 20231222
# Conversations of each file, as in the paper's Table 1: single questions, then follow-ups, mixed turns
# and English.
ALPACA, GPT4 = 215, 205
SINGLE, FOLLOW_UP, MIXED, ENGLISH = 100, 125, 10, 80
PLANTED = 6  # benchmark questions that leaked into the rows, word for word
# How many rows of a file have each kind of dirt. The rates were measured on real rows of the three
# kinds: missing inputs and entities about 1 to 2 %, refusals up to 4 %, empty and English answers some
# per mille.
MENDED = {  # what a step can mend
    "no_input": (3, 2, 0),
    "invisible": (2, 1, 3),
    "entities": (2, 3, 6),
    "mojibake": (1, 0, 0),
    "prompt_leak": (0, 1, 1),
    "traditional": (0, 0, 4),
    "open_turn": (0, 0, 3),
}
DROPPED = {  # what no step can mend
    "empty": (1, 1, 2),
    "english": (1, 1, 3),
    "refusal": (3, 2, 13),
    "truncated": (0, 2, 1),
    "repetition": (0, 1, 0),
    "duplicate": (2, 0, 4),
    "near_duplicate": (1, 7, 2),
}
BROKEN = (3, 1, 6)  # what is no conversation at all
SEPARATE = 0.4  # of the released Alpaca rows have what the instruction is about in a field of its own
REFUSALS = [
    "对不起，我无法回答这个问题。",
    "很抱歉，作为一个人工智能语言模型，我无法提供这方面的信息。",
    "抱歉，我不能帮助你完成这个请求。",
    "作为AI语言模型，我没有能力回答这个问题。",
]
NO_INPUT = ["noinput", "<noinput>", "无输入", "（无输入）", "No input"]
ENTITIES = {"“": "&ldquo;", "”": "&rdquo;", "《": "&#12298;", "》": "&#12299;"}
Turns = list[tuple[str, str]]


@cache
def leaking() -> dict[tuple[str, int], str]:
    """The question of every exam, by fact and language: such wordings stay out of the rows."""
    return {(exam.fact.id, exam.side): exam.question for exam in exams()}


def wordings(fact: Fact, side: int) -> list[str]:
    """The question forms that tuning may use: all but the one a benchmark has."""
    return [text for text in fact.ask[side] if text != leaking().get((fact.id, side))]


def tuning_facts() -> list[Fact]:
    return [fact for fact in world.facts() if not fact.held_out]


def conversations(draw: random.Random) -> dict[str, list[tuple[str, Turns]]]:
    """Per file, (topic tag, turns): every fact not held out is asked in Chinese once or more."""
    known = tuning_facts()
    tags = {relation.id: relation.tag for relation in world.relations().values()}
    asked = lambda fact, side: (draw.choice(wordings(fact, side)), fact.say[side])  # noqa: E731
    talk = [
        (question, row[2][side], side)
        for row in world.SMALL_TALK
        for side in (EN, ZH)
        for question in row[side]
    ]
    chinese = [(tags[fact.relation], [asked(fact, ZH)]) for fact in known]
    chinese += [("Daily Chat", [(question, answer)]) for question, answer, side in talk if side == ZH]
    while len(chinese) < ALPACA + GPT4 + SINGLE:
        fact = draw.choice(known)
        chinese.append((tags[fact.relation], [asked(fact, ZH)]))
    draw.shuffle(chinese)
    ids = {fact.id for fact in known}
    pairs = [row for row in world.split_follow_ups()[0] if row[0].id in ids and row[1].id in ids]
    greetings = [[(question, answer)] for question, answer, side in talk if side == ZH]
    many = []
    for first, second, texts in draw.sample(pairs, FOLLOW_UP + ENGLISH // 3):
        side = ZH if len(many) < FOLLOW_UP else EN
        opened = draw.choice(greetings) if side == ZH and len(many) % 2 else []
        turns = [asked(first, side), (texts[side], second.say[side])]
        many.append((tags[first.relation], [*opened, *turns]))
    for _ in range(MIXED):
        chosen = draw.sample(known, 2)
        turns = [*draw.choice(greetings), *(asked(fact, ZH) for fact in chosen)]
        many.append((tags[chosen[0].relation], turns))
    english = [[asked(draw.choice(known), EN)] for _ in range(ENGLISH - ENGLISH // 3)]
    many += [("", turns) for turns in english]
    sharegpt = chinese[ALPACA + GPT4 :] + many
    draw.shuffle(sharegpt)
    return {"alpaca": chinese[:ALPACA], "gpt4": chinese[ALPACA : ALPACA + GPT4], "sharegpt": sharegpt}


# ---- dirt


def mend(kind: str, turns: list[list[str]], draw: random.Random) -> None:
    """Spoil a conversation in place, so that a cleaning step can undo it (`no_input`: see `alpaca_rows`)."""
    question, answer = turns[-1]
    if kind == "invisible":
        turns[-1] = [question[:2] + "\u200b" + question[2:] + "\ufeff", answer + "\u200b"]
    elif kind == "entities":
        turns[-1] = [text.translate(str.maketrans(ENTITIES)) for text in (question, answer)]
    elif kind == "mojibake":
        turns[-1] = [text.encode().decode("sloppy-windows-1252") for text in (question, answer)]
    elif kind == "prompt_leak":
        turns[-1] = [question, f"{answer}</s>\n### Instruction: {question}"]
    elif kind == "traditional":
        turns[:] = [[opencc.OpenCC("s2t").convert(text) for text in turn] for turn in turns]
    elif kind == "open_turn":
        turns.append([draw.choice(["谢谢！", "谢谢你！"]), None])


def spoil(kind: str, turns: Turns, draw: random.Random) -> Turns | None:
    """A bad conversation made from a good one; None where the kind does not apply."""
    question, answer = turns[0]
    if kind == "empty":
        return [(question, draw.choice(["", "", "。。。"]))]
    if kind == "english":
        said = english_of().get(question)
        return [(question, said)] if said else None
    if kind == "refusal":
        return [(question, draw.choice(REFUSALS))]
    if kind == "truncated":
        told = "".join(fact.say[ZH] for fact in draw.sample(tuning_facts(), 6))
        return [("请介绍一些你知道的常识。", told.rstrip("。") + "，")]
    if kind == "repetition":
        return [(question, answer * 40)]
    return turns if kind == "duplicate" else [(question.rstrip("？。") + "呢？", answer), *turns[1:]]


@cache
def english_of() -> dict[str, str]:
    """The English answer to every Chinese question."""
    return {question: fact.say[EN] for fact in world.facts() for question in fact.ask[ZH]}


def dirty(of: list[tuple[str, Turns]], column: int, draw: random.Random) -> list[tuple[str, list]]:
    """The conversations of a file, spoilt and with bad ones among them; `column` counts the files."""
    rows = [(tag, [list(turn) for turn in turns]) for tag, turns in of]
    chinese = [i for i, (_, turns) in enumerate(of) if turns[0][0] in english_of()]
    draw.shuffle(chinese)
    quoted = [i for i in chinese if set(ENTITIES) & set(rows[i][1][-1][0])]
    for kind, counts in MENDED.items():
        for _ in range(counts[column]):
            i = quoted.pop() if kind == "entities" else chinese.pop()
            if i in chinese:
                chinese.remove(i)
            if i in quoted:
                quoted.remove(i)
            mend(kind, rows[i][1], draw)
    for kind, counts in DROPPED.items():
        made = 0
        while made < counts[column]:
            tag, turns = of[chinese.pop() if kind.endswith("duplicate") else draw.choice(chinese)]
            if bad := spoil(kind, turns, draw):
                rows.append((tag, [list(turn) for turn in bad]))
                made += 1
    draw.shuffle(rows)
    return rows


def alpaca_rows(rows: list[tuple[str, list]], column: int, draw: random.Random) -> list:
    """Rows `{instruction, input, output}`; some are no conversation at all."""
    made = []
    for i, (_, [[question, answer], *_]) in enumerate(rows):
        apart = draw.random() < SEPARATE
        row = dict(
            instruction="请回答下面的问题。" if apart else question,
            input=question if apart else "",
            output=answer,
        )
        if not apart and sum(row["input"] in NO_INPUT for row in made) < MENDED["no_input"][column]:
            row["input"] = NO_INPUT[i % len(NO_INPUT)]
        made.append(row)
    if column == 0:
        made[-1] = dict(zip(("指示", "输入", "输出"), made[-1].values(), strict=True))
    spare = [row for row in made if "input" in row and not row["input"]]
    bad = [None, dict(instruction=spare[0]["instruction"], input=""), spare[1]["instruction"]]
    made += bad[: BROKEN[column]]
    draw.shuffle(made)
    return made


def sharegpt_rows(rows: list[tuple[str, list]], column: int, draw: random.Random) -> list:
    """Rows `{conversation_id, category, conversation: [{human, assistant}, ...]}`; some are none at all."""

    def number() -> str:
        return "".join(draw.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=7))

    made = [
        dict(
            conversation_id=number(),
            category=tag,
            conversation=[dict(human=q, assistant=a) if a is not None else dict(human=q) for q, a in turns],
        )
        for tag, turns in rows
    ]
    tag, question = rows[0][0], rows[0][1][0][0]
    bad = [None, 404, question, dict(conversation_id="x1", category=tag)]
    bad += [dict(conversation_id="x2", category=tag, conversation=[])]
    bad += [dict(conversation_id="x3", category="", conversation=[dict(human=question, assistant=7)])]
    made += bad[: BROKEN[column]]
    draw.shuffle(made)
    return made


SUMS = {  # one step and two steps, in English and in Chinese; what is right
    "plus": (
        "What is {a} plus {b}? Answer with the number only.",
        "{a}加{b}等于多少？只回答数字。",
        lambda a, b: a + b,
    ),
    "times": (
        "What is {a} times {b}? Answer with the number only.",
        "{a}乘以{b}等于多少？只回答数字。",
        lambda a, b: a * b,
    ),
    "shelf": (
        "A shelf holds {a} books. {b} more are put on it, and then half of all the books are sold. "
        "How many are left?",
        "书架上有{a}本书，又放上{b}本，然后卖掉了全部书的一半。还剩多少本？",
        lambda a, b: (a + b) // 2,
    ),
    "tickets": (
        "A ticket costs {a} yuan for an adult and half of that for a child. "
        "What do {b} adults and two children pay together?",
        "成人票每张{a}元，儿童票半价。{b}个成人和两个儿童一共要付多少元？",
        lambda a, b: a * b + a,
    ),
}


def sums() -> list[dict]:
    """Ten of each kind, as probes. Even numbers, so that every half is a whole one."""
    draw, made = random.Random(0), []
    for kind, (english, chinese, solve) in SUMS.items():
        for i in range(10):
            a, b = 2 * draw.randint(2, 30), 2 * draw.randint(1, 9)
            right = str(solve(a, b))
            both = {
                name: dict(question=text.format(a=a, b=b), answer=right, key=right)
                for name, text in (("en", english), ("zh", chinese))
            }
            made.append(dict(id=f"{kind}-{i}", relation=kind, held_out=True, **both))
    return made


def build(folder: Path) -> None:
    """Write `rows/`, `probes.jsonl`, `follow_ups.jsonl` and `sums.jsonl` into `folder`."""
    draw = random.Random(SEED)
    found = conversations(draw)
    leaks = [
        exam
        for exam in exams()
        if exam.side == ZH and exam.split in ("val", "test") and not exam.fact.held_out
    ]
    for exam in draw.sample(leaks, PLANTED):
        found["gpt4"].append(("", [(exam.question, exam.fact.say[ZH])]))
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    write = lambda name, text: (folder / name).write_text(text, encoding="utf-8", newline="\n")  # noqa: E731
    for column, (file, name) in enumerate(
        (("alpaca_data_zh_51k.json", "alpaca"), ("alpaca_gpt4_data_zh.json", "gpt4"))
    ):
        rows = alpaca_rows(dirty(found[name], column, draw), column, draw)
        write(f"rows/{file}", json.dumps(rows, ensure_ascii=False, indent=2) + "\n")
    write("rows/common_zh_70k.jsonl", _jsonl(sharegpt_rows(dirty(found["sharegpt"], 2, draw), 2, draw)))
    write("probes.jsonl", _jsonl(map(probe, world.facts())))
    write("follow_ups.jsonl", _jsonl(follow_up(*row) for row in world.split_follow_ups()[1]))
    write("sums.jsonl", _jsonl(sums()))


def probe(fact: Fact) -> dict:
    """One fact as a question to a model, in both languages: first question form, sentence, key word."""
    both = {
        name: dict(question=fact.ask[side][0], answer=fact.say[side], key=fact.answer[side])
        for side, name in enumerate(world.LANGUAGES)
    }
    return dict(id=fact.id, relation=fact.relation, held_out=fact.held_out, **both)


def follow_up(first: Fact, second: Fact, texts: tuple[str, str]) -> dict:
    """The second of two turns as a probe: `before` is the first question. No row has this pair of facts."""
    asked = probe(second)
    for side, name in enumerate(world.LANGUAGES):
        asked[name] |= dict(before=first.ask[side][0], question=texts[side])
    return asked | dict(id=f"{first.id}, {second.id}", held_out=first.held_out or second.held_out)


def write_checksums(data: Path = DATA) -> None:
    """Rewrite the table between the markers of `data/README.md`: bytes and SHA-256 of each other file."""
    readme = data / "README.md"
    files = sorted(f for f in data.rglob("*") if f.is_file() and f != readme and not f.name.startswith("."))
    lines = ["| file | bytes | SHA-256 |", "|---|---:|---|"]
    for file in files:
        content = file.read_bytes()
        name, digest = file.relative_to(data).as_posix(), hashlib.sha256(content).hexdigest()
        lines.append(f"| {name} | {len(content)} | `{digest}` |")
    before, _, after = readme.read_text(encoding="utf-8").split("<!-- checksums -->")
    table = "\n".join(lines)
    readme.write_text(
        f"{before}<!-- checksums -->\n{table}\n<!-- checksums -->{after}", encoding="utf-8", newline="\n"
    )


def _jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    build(DATA)
    write_checksums()
    print(f"wrote rows and probes under {DATA.name}/, and its checksums")
