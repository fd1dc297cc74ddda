"""What a model says when it is simply asked: greedy answers, and bundled facts in Chinese and in English."""

import json
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from aurora_lib.course.scale import DATA
from aurora_lib.data.languages import language as language_of
from aurora_lib.evaluation.benchmarks import EvalError
from aurora_lib.evaluation.scores import Score
from aurora_lib.model.batching import batches, chat_prompt, encode, left_pad, ready

OUTCOMES = {
    "in_language": "answered in {}",
    "correct": "right in {}",
    "understood": "right in either language",
}


def answers(
    model,
    tokenizer,
    prompts: list[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    progress: bool = False,
) -> list[str]:
    """The model's greedy answer to each prompt (a user's message), in the order of `prompts`."""
    rows = [
        encode(tokenizer, chat_prompt(tokenizer, [{"role": "user", "content": text}])) for text in prompts
    ]
    said = [""] * len(rows)
    with ready(model):
        for batch in batches(rows, batch_size, progress, "answers"):
            inputs = left_pad([rows[i] for i in batch], tokenizer, model.device)
            out = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
            new = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, new, strict=True):
                said[i] = text.strip()
    return said


def load_probes(held_out: bool | None = None, path=None) -> list[dict]:
    """The bundled probes: id, relation, held_out, and en and zh with question, answer, key.

    `held_out`: True for the facts tuning never shows, False for the others, None for all. Raises EvalError.
    """
    path = Path(path or DATA / "probes.jsonl")
    if not path.is_file():
        raise EvalError(f"{path} is missing; restore it with `git checkout -- data`.")
    probes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            item = json.loads(line)
            [item[side][key] for side in ("en", "zh") for key in ("question", "answer", "key")]
            if held_out in (None, item["held_out"]):
                probes.append(item)
        except (ValueError, KeyError, TypeError) as error:
            raise EvalError(f"{path}, line {number} is no probe ({error!r}); restore the file.") from None
    return probes


def says(answer: str, question: str, key: str) -> bool:
    """Whether `answer` has `key` as a word of its own, beyond what it repeats of the question.

    Beyond: 北极熊生活在沙漠 repeats the polar bear (北极熊) of the question, and does not say 北极. Of a sum, what counts
    stands behind the equals: 四加二等于六 does not say 四.
    """
    answer, question, key = answer.casefold(), question.casefold(), key.casefold()
    answer = re.split(r"等于|\bequals\b|=", answer)[-1]
    echo = SequenceMatcher(None, answer, question, autojunk=False).find_longest_match()
    repeated = range(echo.a, echo.a + echo.size + 1) if echo.size > len(key) else range(0)
    found = re.finditer(rf"(?<![a-z]){re.escape(key)}(?![a-z])", answer)
    return any(match.start() not in repeated or match.end() not in repeated for match in found)


@dataclass(frozen=True)
class ProbeResult:
    """What a model answered to probes in Chinese and in English.

    `rows` has a dict per answer: id, relation, held_out, asked ("zh" or "en"), question, expected, answer,
    language (of the answer), in_language (the one asked in), correct (in that language, and with the key),
    understood (with the key of either language: the fact was found, whatever language it came out in).
    """

    rows: list[dict]

    def score(self, asked: str, what: str) -> Score:
        """`asked`: "zh" or "en"; `what`: "in_language", "correct" or "understood"."""
        return Score.of(row[what] for row in self.rows if row["asked"] == asked)

    def languages(self, asked: str) -> dict[str, Score]:
        """Of the answers to prompts in `asked`, how many came in zh, in en, mixed (both), or in neither (other)."""
        spoken = [row["language"] for row in self.rows if row["asked"] == asked]
        return {name: Score.of(each == name for each in spoken) for name in ("zh", "en", "mixed", "other")}

    @property
    def scores(self) -> dict[str, Score]:
        return {
            f"{name} prompts {outcome.format(name)}": self.score(asked, what)
            for asked, name in (("zh", "Chinese"), ("en", "English"))
            for what, outcome in OUTCOMES.items()
        }

    def __str__(self) -> str:
        return "\n".join(f"{name:40} {score}" for name, score in self.scores.items())


def probe(
    model, tokenizer, probes: list[dict] | None = None, *, max_new_tokens=40, batch_size=32, progress=True
) -> ProbeResult:
    """Ask every probe in Chinese and in English (by default those held out of tuning); judge the answers."""
    probes = load_probes(held_out=True) if probes is None else probes
    asked = [(item, side) for side in ("zh", "en") for item in probes]
    said = answers(
        model,
        tokenizer,
        [item[side]["question"] for item, side in asked],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    rows = []
    for (item, side), answer in zip(asked, said, strict=True):
        question, expected = item[side]["question"], item[side]["answer"]
        spoken, right = language_of(answer), {k: says(answer, question, item[k]["key"]) for k in ("zh", "en")}
        row = dict(id=item["id"], relation=item["relation"], held_out=item["held_out"], asked=side)
        row |= dict(question=question, expected=expected, answer=answer, language=spoken)
        row |= dict(in_language=spoken == side, correct=spoken == side and right[side])
        rows.append(row | dict(understood=any(right.values())))
    return ProbeResult(rows)
