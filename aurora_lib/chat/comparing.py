"""Base and tuned model side by side, on prompts of the kinds that the paper's Introduction and appendices show."""

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

from aurora_lib.chat.session import SETTINGS, ChatSession
from aurora_lib.course.html import visible
from aurora_lib.course.scale import DATA
from aurora_lib.data.languages import HAN, LETTER, NOT_PROSE, language
from aurora_lib.evaluation.probes import says

COLUMNS = {  # name -> type, and whether a row must have it
    "id": (str, True),
    "scale": (str, True),
    "kind": (str, True),
    "source": (str, True),
    "prompts": (list, True),
    "language": ((str, type(None)), True),
    "system": (str, False),
    "reference": (list, False),
    "paper": (str, False),
}
MODELS = ("base", "tuned")


class PromptError(ValueError):
    """A prompt that cannot be put to a model; the message names the file and the row."""


def prompts(scale: str, path: str | Path | None = None) -> list[dict]:
    """The bundled prompts for `scale` ("tiny": what the tiny model knows; "full"), or those of a JSON Lines file.

    Each has id, scale, kind, source (the part of the paper that shows the kind), prompts (what the user says, turn by
    turn) and language (of a good answer; None where it may be any, as in translations). Some have system (a line before
    the first question), reference (what a right last answer says; "|" parts different ways to say it) and paper (what
    the paper's two models answered to its own prompts of this kind, and what is wrong with it).

    Raises PromptError for a missing file, a row that is no prompt, and a scale without prompts.
    """
    path = Path(path or DATA / "prompts.jsonl")
    if not path.is_file():
        raise PromptError(f"{path} is missing; restore it with `git checkout -- data`, or check the path.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise PromptError(f"{path}, line {number} is no JSON ({error}); correct that line.") from None
            _check(row, f"{path}, line {number}")
            rows.append(row)
    chosen = [row for row in rows if row["scale"] == scale]
    if not chosen:
        known = ", ".join(sorted({row["scale"] for row in rows})) or "none"
        raise PromptError(f"{path} has no prompts for scale {scale!r}; it has them for: {known}.")
    return chosen


def _check(row, place: str) -> None:
    if not isinstance(row, dict):
        raise PromptError(f"{place} is no object; write a row with {', '.join(COLUMNS)}.")
    for name, (kind, needed) in COLUMNS.items():
        if (needed and name not in row) or (name in row and not isinstance(row[name], kind)):
            raise PromptError(f"{place}: {name!r} is missing or of the wrong type; correct that row.")
    for name in ("prompts", "reference"):
        texts = row.get(name, ["-"])
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise PromptError(f"{place}: {name!r} must be a list of texts, none of them empty.")
    if unknown := set(row) - set(COLUMNS):
        raise PromptError(f"{place} has unknown columns: {', '.join(sorted(unknown))}.")


def compare(prompts: Iterable[str | list[str] | dict], base: ChatSession, tuned: ChatSession) -> "Comparison":
    """Put each prompt to both models in a conversation of its own; shown in a notebook, both answers stand side by side.

    A prompt is a text, a list of texts (turns), or a row of `prompts()`. The two sessions lend their model and settings;
    their conversations stay as they are. A bar appears when it takes longer than two seconds. A prompt that does not fit
    the context is not answered, and its row says why. Raises PromptError for a prompt of another shape.
    """
    rows = [_row(prompt, number) for number, prompt in enumerate(prompts, 1)]
    sides = {"base": _anew(base), "tuned": _anew(tuned)}
    systems = {name: session.system for name, session in sides.items()}
    made = Comparison()
    for row in tqdm(rows, desc="compare", unit="prompt", delay=2, leave=False):
        answers = {}
        for name, session in sides.items():
            session.system = row.get("system", systems[name])
            session.reset()
            answers |= _ask(session, row, name)
        made.append({**row, "prompt": "\n".join(row["prompts"]), **answers})
    return made


def _row(prompt, number: int) -> dict:
    if not isinstance(prompt, dict):
        turns = [prompt] if isinstance(prompt, str) else prompt
        prompt = dict(id=f"{number}", scale="", kind="", source="", prompts=turns, language=None)
        if isinstance(turns, (list, tuple)) and turns and isinstance(turns[0], str):
            asked = language(turns[0])
            prompt |= dict(prompts=list(turns), language=asked if asked in ("zh", "en") else None)
    prompt = {name: prompt[name] for name in COLUMNS if name in prompt}
    _check(prompt, f"prompt {number}")
    return prompt


def _anew(session: ChatSession) -> ChatSession:
    """A session of the same model and settings, with a conversation and a memory of its own."""
    settings = {name: getattr(session, name) for name in SETTINGS}
    return ChatSession(session.model, session.tokenizer, system=session.system, **settings)


def _ask(session: ChatSession, row: dict, name: str) -> dict:
    """The columns of one side: its answers, what they are in, how fast they came, whether the last one is right."""
    answers, tokens, seconds = [], 0, 0.0
    try:
        for text in row["prompts"]:
            answers.append(session.say(text).strip())
            tokens, seconds = tokens + session.stats.new_tokens - 1, seconds + session.stats.later_tokens
    except ValueError as error:  # too long for the context: the other prompts are not to be lost
        answers.append(f"[not answered: {error}]")
    said = "\n".join(answers)
    # of the question, its last line: a text to be read before it is no echo where an answer quotes it
    asked = row["prompts"][-1].splitlines()[-1]
    right = all(_says(answers[-1], asked, part) for part in row["reference"]) if "reference" in row else None
    return {
        name: said,
        f"{name} answers": answers,
        f"{name} language": language(said),
        f"{name} Han": han_share(said),
        f"{name} tokens/s": round(tokens / seconds, 1) if seconds else None,
        f"{name} right": right,
    }


def _says(answer: str, asked: str, part: str) -> bool:
    """Whether `answer` names one of the "|"-separated ways of `part`; a number only as a number of its own."""
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", answer)
    return any(
        re.search(rf"(?<![\d.]){way}(?!\.?\d)", answer) is not None
        if way.isascii() and way.isdigit()
        else says(answer, asked, way)
        for way in part.split("|")
    )


def han_share(text: str) -> float | None:
    """The share of Han characters among the letters of `text`, 0..1; None without letters. Code does not count."""
    prose = NOT_PROSE.sub(" ", text)
    letters = len(LETTER.findall(prose))
    return len(HAN.findall(prose)) / letters if letters else None


class Comparison(list):
    """Rows of `compare`: what the prompt's row had, prompt (its turns, a line each), and for base and tuned:

    `base` (the answers, a line each), `base answers` (a list), `base language` ("zh", "en", "mixed" or "other"), `base Han`
    (share of Han among the letters, 0..1), `base tokens/s` (after the first token), `base right` (None without reference).
    """

    def summary(self) -> dict[str, str]:
        """Out of how many prompts each model kept the language of a good answer, and named what the reference names."""
        asked = [row for row in self if row["language"]]
        checked = [row for row in self if "reference" in row]
        found = {}
        for name in MODELS:
            kept = sum(row[f"{name} language"] == row["language"] for row in asked)
            found[f"answered in the language asked for, {name}"] = f"{kept} of {len(asked)}"
        for name in MODELS:
            right = sum(row[f"{name} right"] for row in checked)
            found[f"names the reference, {name}"] = f"{right} of {len(checked)}"
        return found

    def _repr_html_(self) -> str:
        """A table per prompt. All text is escaped, formulas stay text, and nothing depends on a style sheet."""
        lines = "".join(
            f"<li>{_text(what)}: <b>{_text(share)}</b></li>" for what, share in self.summary().items()
        )
        blocks = "".join(_block(row) for row in self)
        # the two classes keep MathJax (3 and 2) from typesetting what stands between dollar signs
        return f'<div class="mathjax_ignore tex2jax_ignore">{blocks}<ul>{lines}</ul></div>'


def _block(row: dict) -> str:
    cell = '<td style="text-align:left;vertical-align:top;white-space:normal;width:50%">'
    wide = cell.replace("<td", '<td colspan="2"')
    label = " · ".join(_text(row[name]) for name in ("kind", "source") if row[name])
    lines = [f"<tr>{wide}<small>{label}</small></td></tr>"] if label else []
    if "system" in row:
        lines.append(f"<tr>{wide}<b>System:</b> {_text(row['system'])}</td></tr>")
    for turn, text in enumerate(row["prompts"]):
        lines.append(f"<tr>{wide}<b>You:</b> {_text(text)}</td></tr>")
        sides = [
            f"{cell}<b>{name}:</b> {_text(row[f'{name} answers'][turn])}</td>"
            if turn < len(row[f"{name} answers"])
            else f"{cell}</td>"
            for name in MODELS
        ]
        lines.append(f"<tr>{''.join(sides)}</tr>")
    lines.append(
        "<tr>" + "".join(f"{cell}<small>{_text(_figures(row, name))}</small></td>" for name in MODELS)
    )
    lines.append("</tr>")
    if "reference" in row:
        wanted = "; ".join(part.replace("|", " or ") for part in row["reference"])
        lines.append(f"<tr>{wide}<small><b>A right answer names:</b> {_text(wanted)}</small></td></tr>")
    if "paper" in row:
        lines.append(f"<tr>{wide}<small><b>In the paper:</b> {_text(row['paper'])}</small></td></tr>")
    return f'<table style="width:100%;table-layout:fixed;margin-bottom:1em">{"".join(lines)}</table>'


def _figures(row: dict, name: str) -> str:
    """Language, share of Han, speed and correctness of one side, in a line."""
    figures = [row[f"{name} language"]]
    if row[f"{name} Han"] is not None:
        figures.append(f"{100 * row[f'{name} Han']:.0f} % Han")
    if row[f"{name} tokens/s"] is not None:
        figures.append(f"{row[f'{name} tokens/s']:.0f} tokens/s")
    if row[f"{name} right"] is not None:
        figures.append("names the reference" if row[f"{name} right"] else "does not name the reference")
    return " · ".join(figures)


def _text(text: str) -> str:
    escaped = html.escape(visible(text)) or "…"
    return escaped.replace("  ", "&nbsp; ").replace("\n", "<br>")
