"""Base and tuned model side by side, on prompts of the kinds that the paper shows."""

import re
import unicodedata
from itertools import zip_longest

from tqdm.auto import tqdm

from aurora_lib.chat.session import ChatSession
from aurora_lib.course import DATA, html, rows
from aurora_lib.data import language
from aurora_lib.evaluation import says

MODELS = ("base", "tuned")


def prompts(scale: str) -> list[dict]:
    """The bundled prompts for `scale` ("tiny": what the tiny model knows; "mid" and "full" share theirs).

    Each has id, scale, kind, source (where the paper shows the kind), prompts (what the user says, turn by
    turn) and language (of a good answer; None: any, as in translations). Some have system (a line before the
    first question), reference (what a right last answer says; "|" parts ways to say it) and paper (what the
    paper's two models answered to its own prompt of this kind).
    """
    bundled = [row.value for row in rows.read_rows(DATA / "prompts.jsonl")]
    return [each for each in bundled if each["scale"] == {"mid": "full"}.get(scale, scale)]


def compare_models(prompts: list[dict], base: ChatSession, tuned: ChatSession) -> "Comparison":
    """Put each row of `prompts()`, or of yours, to both models, in a conversation of its own.

    The two sessions lend their model and settings; their conversations stay as they are. A prompt that does
    not fit the context is not answered, and its row says why.
    """
    rows = Comparison(dict(row) for row in prompts)
    for row in tqdm(rows, desc="compare", unit="prompt", delay=2, leave=False):
        for name, lent in zip(MODELS, (base, tuned), strict=True):
            system = row.get("system", lent.system)
            row[name] = _ask(ChatSession(lent.model, lent.tokenizer, system=system, **lent.settings), row)
    return rows


def _ask(session: ChatSession, row: dict) -> dict:
    """What one model makes of a prompt.

    answers (one a turn), language ("zh", "en", "mixed" or "other"), Han (share of the letters, 0..1; None
    without letters), tokens/s (of the last answer), right (whether it says the reference; None without one).
    """
    answers = []
    try:
        for text in row["prompts"]:
            answers.append(session.say(text).strip())
    except ValueError as error:  # too long for the context: the other prompts are not to be lost
        answers.append(f"[not answered: {error}]")
    letters = [character for character in "".join(answers) if character.isalpha()]
    han = [letter for letter in letters if unicodedata.name(letter, "").startswith("CJK")]
    # of the question, its last line: a text to be read before it is no echo where an answer quotes it
    asked, parts = row["prompts"][-1].splitlines()[-1], row.get("reference")
    return {
        "answers": answers,
        "language": language("\n".join(answers)),
        "Han": len(han) / len(letters) if letters else None,
        "tokens/s": session.stats.tokens_per_second,
        "right": all(names(answers[-1], asked, part) for part in parts) if parts else None,
    }


def names(answer: str, question: str, part: str) -> bool:
    """Whether `answer` says one of the "|"-separated ways of `part`; a number only as a number of its own."""
    numbers = re.findall(r"\d+(?:\.\d+)?", answer)
    return any(way in numbers if way.isdigit() else says(answer, question, way) for way in part.split("|"))


class Comparison(list):
    """The rows of the prompts, with what each model made of them under `base` and `tuned`."""

    def summary(self) -> dict[str, str]:
        """In how many prompts each model kept the language of a good answer, and named the reference."""
        kept, right = {}, {}
        for name in MODELS:
            same = [row[name]["language"] == row["language"] for row in self if row["language"]]
            kept[f"answered in the language asked for, {name}"] = f"{sum(same)} of {len(same)}"
            named = [row[name]["right"] for row in self if "reference" in row]
            right[f"names the reference, {name}"] = f"{sum(named)} of {len(named)}"
        return kept | right

    def _repr_html_(self) -> str:
        """A table per prompt; all text is escaped, and nothing depends on a style sheet."""
        lines = "".join(f"<li>{what}: <b>{share}</b></li>" for what, share in self.summary().items())
        body = "".join(map(_table, self)) + f"<ul>{lines}</ul>"
        # the two classes keep MathJax (3 and 2) from typesetting what stands between dollar signs
        return f'<div class="mathjax_ignore tex2jax_ignore">{body}</div>'


def _table(row: dict) -> str:
    """Prompt, answers side by side, and what is to be said of them, as lines of one cell or of two."""
    lines = [[(row["kind"], row["source"])]] if "kind" in row else []
    if "system" in row:
        lines.append([("System", row["system"])])
    for text, *pair in zip_longest(row["prompts"], *(row[name]["answers"] for name in MODELS), fillvalue=""):
        lines += [[("You", text)], list(zip(MODELS, pair, strict=True))]
    lines.append([("measured", _figures(row[name])) for name in MODELS])
    if "reference" in row:
        lines.append([("A right answer names", "; ".join(row["reference"]).replace("|", " or "))])
    if "paper" in row:
        lines.append([("In the paper", row["paper"])])
    style, body = "text-align:left;vertical-align:top;white-space:normal;width:50%", ""
    for line in lines:
        opened = f'<td style="{style}" colspan="{2 // len(line)}">'
        cells = (f"{opened}<b>{html.escaped(who)}:</b> {html.escaped(text)}</td>" for who, text in line)
        body += f"<tr>{''.join(cells)}</tr>"
    return f'<table style="width:100%;table-layout:fixed;margin-bottom:1em">{body}</table>'


def _figures(side: dict) -> str:
    """Language, share of Han, speed and correctness of one side, in a line."""
    han = "" if side["Han"] is None else f" · {100 * side['Han']:.0f} % Han"
    right = {None: "", True: " · names the reference", False: " · does not name the reference"}[side["right"]]
    return f"{side['language']}{han} · {side['tokens/s']:.0f} tokens/s{right}"
