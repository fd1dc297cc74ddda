"""Base and tuned model side by side, on prompts of the kinds that the paper shows."""

import re
from itertools import zip_longest

from tqdm.auto import tqdm

from aurora_lib.chat.session import ChatSession
from aurora_lib.course import DATA, html, rows
from aurora_lib.data import language
from aurora_lib.evaluation import says

MODELS = ("base", "tuned")


def prompts(scale: str) -> list[dict]:
    """The bundled prompts for `scale` ("tiny": what the tiny model knows; "mid" and "full" share theirs).

    Each has id, scale, kind, source (where the paper shows it), prompts (what the user says, turn by turn)
    and language (of a good answer; None: any). Some have system (a line before the first question),
    reference (what a right last answer says; "|" parts ways to say it), paper (its own models' answers).
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
    """What one model makes of a prompt: answers, one a turn; their language; right, of the last answer."""
    answers = []
    try:
        for text in row["prompts"]:
            answers.append(session.say(text).strip())
    except ValueError as error:  # too long for the context: the other prompts are not to be lost
        answers.append(f"[not answered: {error}]")
    # of the question, its last line: a text to be read before it is no echo where an answer quotes it
    asked, parts = row["prompts"][-1].splitlines()[-1], row.get("reference")
    right = all(names(answers[-1], asked, part) for part in parts) if parts else None
    return {"answers": answers, "language": language("\n".join(answers)), "right": right}


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
        return "".join(table(_lines(row)) for row in self) + f"<ul>{lines}</ul>"


def _lines(row: dict) -> list[list[tuple[str, str]]]:
    """Prompt, answers side by side, and what is to be said of them, as `table` takes them."""
    lines = [[(row["kind"], row["source"])]] if "kind" in row else []
    lines += [[("System", row["system"])]] if "system" in row else []
    for text, *pair in zip_longest(row["prompts"], *(row[name]["answers"] for name in MODELS), fillvalue=""):
        lines += [[("You", text)], list(zip(MODELS, pair, strict=True))]
    judged = {None: "", True: " · names the reference", False: " · does not name the reference"}
    lines.append([("measured", row[name]["language"] + judged[row[name]["right"]]) for name in MODELS])
    if "reference" in row:
        lines.append([("A right answer names", "; ".join(row["reference"]).replace("|", " or "))])
    return lines + ([[("In the paper", row["paper"])]] if "paper" in row else [])


def table(lines: list[list[tuple[str, str]]]) -> str:
    """HTML of lines of (speaker, text), one across the whole width or some side by side; no text is HTML."""
    columns = max(map(len, lines))
    style, body = f"text-align:left;vertical-align:top;white-space:normal;width:{100 // columns}%", ""
    for line in lines:
        opened = f'<td style="{style}" colspan="{columns // len(line)}">'
        cells = (f"{opened}<b>{html.escaped(who)}:</b> {html.escaped(text)}</td>" for who, text in line)
        body += f"<tr>{''.join(cells)}</tr>"
    # the two classes keep MathJax (3 and 2) from typesetting what stands between dollar signs
    style = "width:100%;table-layout:fixed;margin-bottom:1em"
    return f'<table class="mathjax_ignore tex2jax_ignore" style="{style}">{body}</table>'
