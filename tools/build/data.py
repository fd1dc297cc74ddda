"""Write the bundled rows and probes: `python -m tools.build.data`. Deterministic: the same bytes every time.

The rows have the layouts of the three released files, and the dirt those files have, but every word is ours:
questions and answers come from `world.py`. Facts held out of tuning appear in no row.
"""

import argparse
import hashlib
import json
import random
from pathlib import Path

import ftfy.bad_codecs  # noqa: F401 (registers the codec that makes mojibake)

from tools.build import world

DATA = Path(__file__).resolve().parents[2] / "data"
SEED = 20231222
SHARE = {
    "alpaca": 0.27,
    "gpt4": 0.27,
}  # of all conversations, as in the paper's Table 1; ShareGPT has the rest
CONVERSATIONS, ENGLISH = 660, 52
TAGS = {
    "capital": "Geography, Travel: \n\n",
    "language": "Language, Geography: \n\n",
    "continent": "Geography, ",
    "class": "Natural Science, ",
    "opposite": "Language, Literature: \n\n",
    "colour": "Life, Art: \n\n",
    "symbol": "Natural Science, Chemistry: \n\n",
    "author": "Literature, Art: \n\n",
    "material": "Life, ",
    "workplace": "Finance, Business: \n\n",
    "use": "Life, Technology: \n\n",
    "home": "Natural Science, Biology: \n\n",
    "sum": "Mathematics, Education: \n\n",
    "origin": "Food, Culture: \n\n",
    "talk": "Daily Chat",
}
REFUSALS = [
    "对不起，我无法回答这个问题。",
    "很抱歉，作为一个人工智能语言模型，我无法提供这方面的信息。",
    "抱歉，我不能帮助你完成这个请求。",
    "作为AI语言模型，我没有能力回答这个问题。",
]
NO_INPUT = ["noinput", "<noinput>", "无输入", "（无输入）", "No input"]
QUOTES = {"“": "&ldquo;", "”": "&rdquo;", "《": "&#12298;", "》": "&#12299;"}


def tuning_turns(language: int) -> list[tuple[str, str, str]]:
    """(question, answer, topic), every form of every fact not held out; `language` 0 English, 1 Chinese."""
    turns = [
        (ask, fact.say[language], fact.relation)
        for fact in world.facts()
        if not fact.held_out
        for ask in fact.ask[language]
    ]
    return turns + [(ask, row[2][language], "talk") for row in world.SMALL_TALK for ask in row[language]]


def clean_conversations(rng: random.Random) -> dict[str, list[list[tuple[str, str, str]]]]:
    """Per file, conversations as lists of turns: every Chinese question is used, none twice on its own."""
    chinese, english = tuning_turns(1), tuning_turns(0)
    rng.shuffle(chinese)
    once = iter(chinese)
    found = {
        name: [[next(once)] for _ in range(round(share * CONVERSATIONS))] for name, share in SHARE.items()
    }
    single = [[turn] for turn in once]
    many = CONVERSATIONS - ENGLISH - sum(map(len, found.values())) - len(single)
    multiple = [rng.sample(chinese, rng.choice([2, 2, 3])) for _ in range(many)]
    asked = [rng.sample(english, 1 + i % 2) for i in range(ENGLISH)]
    found["sharegpt"] = single + multiple + asked
    for conversations in found.values():
        rng.shuffle(conversations)
    return found


def alpaca_rows(conversations, rng: random.Random, english: dict[str, str]) -> list:
    """Rows `{instruction, input, output}`, some of them dirty."""
    rows = [dict(instruction=ask, input="", output=say) for [(ask, say, _)] in conversations]
    for row in rows[:8]:  # the instruction apart from what it is about, as in four of ten released rows
        row |= dict(instruction="请回答下面的问题。", input=row["instruction"])
    for row, text in zip(rows[8:13], NO_INPUT, strict=True):
        row["input"] = text
    for row in rows[13:16]:
        row["instruction"] = row["instruction"][:2] + "\u200b" + row["instruction"][2:] + "\ufeff"
    quoted = [row for row in rows[16:] if set(row["output"]) & set(QUOTES)]
    for row in quoted[:3]:
        row |= {key: row[key].translate(str.maketrans(QUOTES)) for key in ("instruction", "output")}
    row = rows[16] if rows[16] not in quoted[:3] else rows[17]
    row |= {key: row[key].encode().decode("sloppy-windows-1252") for key in ("instruction", "output")}
    rows[18] = dict(zip(("指示", "输入", "输出"), rows[18].values(), strict=True))
    dirty = rng.sample(conversations, 12)
    ask = [conversation[0][0] for conversation in dirty]
    bad = [dict(instruction=q, input="", output=english[q]) for q in ask[:3]]
    bad += [
        dict(instruction=q, input="", output=refusal) for q, refusal in zip(ask[3:6], REFUSALS, strict=False)
    ]
    bad += [
        dict(instruction=q, input="", output=text)
        for q, text in zip(ask[6:9], ("", "", "。。。"), strict=True)
    ]
    bad += [None, dict(instruction=ask[9], input=""), dict(instruction=ask[10], input="", output=3), ask[11]]
    bad += [dict(row) for row in rng.sample(rows[20:], 4)]
    rows += bad
    rng.shuffle(rows)
    return rows


def sharegpt_rows(conversations, rng: random.Random, english: dict[str, str]) -> list:
    """Rows `{conversation_id, category, conversation: [{human, assistant}, ...]}`, some of them dirty."""

    def row(turns, tag: str) -> dict:
        number = "".join(rng.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=7))
        return dict(
            conversation_id=number, category=tag, conversation=[dict(human=q, assistant=a) for q, a in turns]
        )

    rows = [row([turn[:2] for turn in turns], TAGS[turns[0][2]]) for turns in conversations]
    for i in range(4):
        turn = rows[i]["conversation"][-1]
        turn["assistant"] = turn["assistant"] + "\u200b"
    rows[4]["conversation"].append(dict(human="谢谢！"))
    rows[5]["conversation"].append(dict(human="谢谢你！", assistant=None))
    quoted = [row for row in rows[6:] if set(row["conversation"][0]["human"]) & set(QUOTES)]
    for dirty in quoted[:3]:
        for turn in dirty["conversation"]:
            turn |= {key: text.translate(str.maketrans(QUOTES)) for key, text in turn.items()}
    spare = [turns[0] for turns in conversations if turns[0][0] in english]
    ask = [(question, TAGS[topic]) for question, _, topic in rng.sample(spare, 16)]
    bad = [row([(q, english[q])], tag) for q, tag in ask[:4]]
    bad += [row([(q, refusal)], tag) for (q, tag), refusal in zip(ask[4:8], REFUSALS, strict=True)]
    bad += [row([(q, "")], tag) for q, tag in ask[8:10]]
    bad += [None, 404, ask[10][0], row([], ask[11][1]), dict(conversation_id="x1", category=ask[12][1])]
    bad += [dict(conversation_id="x2", category=ask[13][1], conversation=[dict(human=ask[13][0])])]
    bad += [dict(conversation_id="x3", category="", conversation=[dict(human=ask[14][0], assistant=7)])]
    bad += rng.sample(rows[20:], 4)
    rows += bad
    rng.shuffle(rows)
    return rows


def build(folder: Path) -> None:
    """Write `rows/` and `probes.jsonl` into `folder`."""
    rng = random.Random(SEED)
    conversations = clean_conversations(rng)
    english = {ask: fact.say[0] for fact in world.facts() for ask in fact.ask[1]}
    english |= {ask: row[2][0] for row in world.SMALL_TALK for ask in row[1]}
    alpaca = alpaca_rows(conversations["alpaca"], rng, english)
    gpt4 = alpaca_rows(conversations["gpt4"], rng, english)
    sharegpt = sharegpt_rows(conversations["sharegpt"], rng, english)
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    write = lambda name, text: (folder / name).write_text(text, encoding="utf-8", newline="\n")  # noqa: E731
    for name, rows in (("alpaca_data_zh_51k.json", alpaca), ("alpaca_gpt4_data_zh.json", gpt4)):
        write(f"rows/{name}", json.dumps(rows, ensure_ascii=False, indent=2) + "\n")
    write("rows/common_zh_70k.jsonl", _jsonl(sharegpt))
    write("probes.jsonl", _jsonl(map(probe, world.facts())))


def probe(fact: world.Fact) -> dict:
    """One fact as a question to a model, in both languages: first question form, sentence, key word."""
    both = {
        name: dict(question=fact.ask[k][0], answer=fact.say[k], key=fact.answer[k])
        for k, name in enumerate(("en", "zh"))
    }
    return dict(id=fact.id, relation=fact.relation, held_out=fact.held_out, **both)


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
