"""Base and tuned model side by side, on prompts of the kinds that the paper shows."""

import html
import json
import re
import unicodedata
from collections.abc import Iterable

from tqdm.auto import tqdm

from aurora_lib.chat.session import ChatSession
from aurora_lib.course import DATA
from aurora_lib.course.html import visible
from aurora_lib.data.languages import language
from aurora_lib.evaluation import says

MODELS = ("base", "tuned")


def prompts(scale: str) -> list[dict]:
    """The bundled prompts for `scale` ("tiny": what the tiny model knows; "full").

    Each has id, scale, kind, source (the part of the paper that shows the kind), prompts (what the user says,
    turn by turn) and language (of a good answer; None where it may be any, as in translations). Some have
    system (a line before the first question), reference (what a right last answer says; "|" parts different
    ways to say it) and paper (what the paper's two models answered to its own prompts of this kind, and what
    is wrong with it). Raises ValueError for another scale.
    """
    lines = (DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["scale"] == scale]
    if not rows:
        raise ValueError(f"There are no prompts for scale {scale!r}; there are for tiny and full.")
    return rows


def compare_models(
    prompts: Iterable[str | list[str] | dict], base: ChatSession, tuned: ChatSession
) -> "Comparison":
    """Put each prompt to both models in a conversation of its own; a notebook shows the answers side by side.

    A prompt is a text, a list of texts (turns), or a row of `prompts()`. The two sessions lend their model
    and settings; their conversations stay as they are. A prompt that does not fit the context is not
    answered, and its row says why. Raises ValueError for a prompt of another shape, before anything is asked.
    """
    rows = [_row(prompt, number) for number, prompt in enumerate(prompts, 1)]
    for row in tqdm(rows, desc="compare", unit="prompt", delay=2, leave=False):
        for name, lent in zip(MODELS, (base, tuned), strict=True):
            system = row.get("system", lent.system)
            row[name] = _ask(ChatSession(lent.model, lent.tokenizer, system=system, **lent.settings), row)
    return Comparison(rows)


def _row(prompt: str | list[str] | dict, number: int) -> dict:
    """A prompt as a row of its own, to which the answers are added."""
    row = prompt if isinstance(prompt, dict) else {"prompts": prompt}
    turns = row.get("prompts")
    turns = [turns] if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError(
            f"Prompt {number} must be a text, a list of texts or a row of prompts(), none empty."
        )
    asked = language(turns[0])
    return {"language": asked if asked in ("zh", "en") else None, **row, "prompts": turns}


def _ask(session: ChatSession, row: dict) -> dict:
    """What one model makes of a prompt.

    answers (one a turn), language ("zh", "en", "mixed" or "other"), Han (share of the letters, 0..1; None
    without letters), tokens/s (after the first token), right (whether the last answer says the reference;
    None without one).
    """
    answers, tokens, seconds = [], 0, 0.0
    try:
        for text in row["prompts"]:
            answers.append(session.say(text).strip())
            tokens, seconds = tokens + session.stats.new_tokens - 1, seconds + session.stats.later_tokens
    except ValueError as error:  # too long for the context: the other prompts are not to be lost
        answers.append(f"[not answered: {error}]")
    said = "\n".join(answers)
    letters = [character for character in said if character.isalpha()]
    # of the question, its last line: a text to be read before it is no echo where an answer quotes it
    asked, parts = row["prompts"][-1].splitlines()[-1], row.get("reference")
    return {
        "answers": answers,
        "language": language(said),
        "Han": sum(map(is_han, letters)) / len(letters) if letters else None,
        "tokens/s": round(tokens / seconds, 1) if seconds else None,
        "right": all(names(answers[-1], asked, part) for part in parts) if parts else None,
    }


def is_han(character: str) -> bool:
    """Whether it is a Chinese character."""
    return unicodedata.name(character, "").startswith("CJK")


def names(answer: str, question: str, part: str) -> bool:
    """Whether `answer` says one of the "|"-separated ways of `part`; a number only as a number of its own."""
    numbers = re.findall(r"\d+(?:\.\d+)?", answer)
    return any(way in numbers if way.isdigit() else says(answer, question, way) for way in part.split("|"))


class Comparison(list):
    """The rows of the prompts, with what each model made of them under `base` and `tuned`."""

    def summary(self) -> dict[str, str]:
        """In how many prompts each model kept the language of a good answer, and named the reference."""
        asked = [row for row in self if row["language"]]
        checked = [row for row in self if "reference" in row]
        kept, right = {}, {}
        for name in MODELS:
            count = sum(row[name]["language"] == row["language"] for row in asked)
            kept[f"answered in the language asked for, {name}"] = f"{count} of {len(asked)}"
            count = sum(row[name]["right"] for row in checked)
            right[f"names the reference, {name}"] = f"{count} of {len(checked)}"
        return kept | right

    def _repr_html_(self) -> str:
        """A table per prompt; all text is escaped, and nothing depends on a style sheet."""
        lines = "".join(f"<li>{what}: <b>{share}</b></li>" for what, share in self.summary().items())
        body = "".join(map(_table, self)) + f"<ul>{lines}</ul>"
        # the two classes keep MathJax (3 and 2) from typesetting what stands between dollar signs
        return f'<div class="mathjax_ignore tex2jax_ignore">{body}</div>'


def _table(row: dict) -> str:
    """Prompt, answers side by side, and what is to be said of them."""
    lines = []  # each of one cell, or of two
    if label := " · ".join(row[name] for name in ("kind", "source") if row.get(name)):
        lines.append([f"<small>{_text(label)}</small>"])
    if "system" in row:
        lines.append([f"<b>System:</b> {_text(row['system'])}"])
    for turn, text in enumerate(row["prompts"]):
        lines.append([f"<b>You:</b> {_text(text)}"])
        answered = [name for name in MODELS if turn < len(row[name]["answers"])]
        lines.append([f"<b>{name}:</b> {_text(row[name]['answers'][turn])}" for name in answered])
    lines.append([f"<small>{_figures(row[name])}</small>" for name in MODELS])
    if "reference" in row:
        wanted = "; ".join(part.replace("|", " or ") for part in row["reference"])
        lines.append([f"<small><b>A right answer names:</b> {_text(wanted)}</small>"])
    if "paper" in row:
        lines.append([f"<small><b>In the paper:</b> {_text(row['paper'])}</small>"])
    cell = '<td style="text-align:left;vertical-align:top;white-space:normal;width:50%" colspan='
    rows = ("".join(f'{cell}"{2 // len(line)}">{part}</td>' for part in line) for line in lines)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table style="width:100%;table-layout:fixed;margin-bottom:1em">{body}</table>'


def _figures(side: dict) -> str:
    """Language, share of Han, speed and correctness of one side, in a line."""
    figures = [side["language"]]
    if side["Han"] is not None:
        figures.append(f"{100 * side['Han']:.0f} % Han")
    if side["tokens/s"] is not None:
        figures.append(f"{side['tokens/s']:.0f} tokens/s")
    if side["right"] is not None:
        figures.append("names the reference" if side["right"] else "does not name the reference")
    return " · ".join(figures)


def _text(text: str) -> str:
    escaped = html.escape(visible(text)) or "…"
    return escaped.replace("  ", "&nbsp; ").replace("\n", "<br>")
