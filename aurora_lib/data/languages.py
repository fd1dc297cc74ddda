"""Which language a text is in, by the scripts of its letters: no model, no dictionary."""

import re

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile(r"[\u3041-\u30ff]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+(?:['’][a-z]+)?")
LETTER = re.compile(r"[^\W\d_]")
# Formulas, code and addresses have letters but no language.
CODE = r"(?s)```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n\u4e00-\u9fff]*\$|\\[A-Za-z]+"
NOT_PROSE = re.compile(CODE + r"|https?://[\x21-\x7e]+|<[/!a-zA-Z][^<>\n]*>")


def language(text: str) -> str:
    """The language of `text`: "zh", "en" (any Latin script), "mixed" or "other" (other scripts, no letters).

    A Han character counts as one unit and so does a whole Latin word, as a name or symbol (`Fe`, `GPU`) makes
    Chinese no less Chinese: "zh" from 60 % Han units on, "en" from 90 % Latin ones on, "mixed" between.
    Code, formulas and addresses are not counted unless there is nothing else.
    """
    prose = NOT_PROSE.sub(" ", text)
    if not LETTER.search(prose):
        prose = text
    han, latin = len(HAN.findall(prose)), LATIN.findall(prose)
    letters = len(LETTER.findall(prose))
    others = letters - han - sum(len(LETTER.findall(word)) for word in latin)
    if not letters or others > (letters - others) or len(KANA.findall(prose)) > han / 4:
        return "other"
    share = han / (han + len(latin))
    return "zh" if share >= 0.6 else "mixed" if share > 0.1 else "en"
