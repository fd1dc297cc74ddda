"""What a model says when it is simply asked, in Chinese or in English; how well it foresees an answer."""

import math
import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from aurora_lib.course import DATA, rows
from aurora_lib.data import language
from aurora_lib.evaluation import fewshot
from aurora_lib.evaluation.evaluate import Score
from aurora_lib.model import batching

ASKED = {"zh": "Chinese", "en": "English"}
OUTCOMES = dict(in_language="answered in {}", correct="right in {}", understood="right in either language")


def answers(model, tokenizer, prompts: list, *, max_new_tokens=64, batch_size=0, progress=False):
    """The greedy answer to each prompt (a user's message, or a conversation that ends in one), in order."""
    asked = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in prompts]
    rows = batching.encode_all(tokenizer, [batching.chat_prompt(tokenizer, messages) for messages in asked])
    said, end = [""] * len(rows), tokenizer.eos_token_id
    settings = dict(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=end)
    size = batch_size or (128 if model.device.type == "cuda" else 32)  # a step reads all weights in any case
    with batching.ready(model):
        for batch in batching.batches(rows, size, progress, "answers"):
            asked = {"input_ids": [rows[i] for i in batch]}
            inputs = tokenizer.pad(asked, padding_side="left", return_tensors="pt").to(model.device)
            new = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                said[i] = text.strip()
    return said


def load_probes(held_out: bool | None = None, file: str = "probes.jsonl") -> list[dict]:
    """The bundled probes: id, relation, held_out, and en and zh with question, answer, key.

    `held_out`: True for the facts tuning never shows, False for the others, None for all. The questions of
    "follow_ups.jsonl" need the one asked `before`; those of "sums.jsonl" are sums of one and of two steps.
    """
    probes = [row.value for row in rows.read_rows(DATA / file)]
    return [item for item in probes if held_out in (None, item["held_out"])]


def says(answer: str, question: str, key: str) -> bool:
    """Whether `answer` has `key` as a word of its own, beyond what it repeats of the question.

    Beyond: 北极熊生活在沙漠 repeats the polar bear (北极熊) of the question, and does not say 北极. Of the
    answer to a sum the last number counts: those before it are the way there.
    """
    if key.isdigit():
        numbers = re.findall(r"-?\d+(?:[,，]\d{3})*(?:\.\d+)?", answer)
        return bool(numbers) and float(re.sub("[,，]", "", numbers[-1])) == float(key)
    answer, question, key = answer.casefold(), question.casefold(), key.casefold()
    echo = SequenceMatcher(None, answer, question, autojunk=False).find_longest_match()
    repeated = range(echo.a, echo.a + echo.size + 1) if echo.size > len(key) else range(0)
    found = re.finditer(rf"(?<![a-z]){re.escape(key)}(?![a-z])", answer)
    return any(match.start() not in repeated or match.end() not in repeated for match in found)


@dataclass(frozen=True)
class ProbeResult:
    """What a model answered to probes in Chinese and in English.

    `rows` has a dict per answer: id, asked ("zh" or "en"), question, expected, answer, language (of the
    answer), in_language (the one asked in), correct (in that language, and with the key), understood (with
    the key of either language: the fact was found, whatever language it came out in).
    """

    rows: list[dict]

    def hits(self, asked: str, what: str) -> list[bool]:
        """In the order of probes. `asked`: "zh" or "en"; `what`: "in_language", "correct" or "understood"."""
        return [row[what] for row in self.rows if row["asked"] == asked]

    def score(self, asked: str, what: str) -> Score:
        return Score.of(self.hits(asked, what))

    def languages(self, asked: str) -> dict[str, Score]:
        """Of the answers to prompts in `asked`, how many came in zh, en, mixed (both), or other (neither)."""
        spoken = [row["language"] for row in self.rows if row["asked"] == asked]
        return {name: Score.of(each == name for each in spoken) for name in ("zh", "en", "mixed", "other")}

    @property
    def scores(self) -> dict[str, Score]:
        return {
            f"{name} prompts {outcome.format(name)}": self.score(asked, what)
            for asked, name in ASKED.items()
            for what, outcome in OUTCOMES.items()
        }

    def __str__(self) -> str:
        return "\n".join(f"{name:40} {score}" for name, score in self.scores.items())


def probe(model, tokenizer, probes=None, *, history=True, max_new_tokens=48, progress=True) -> ProbeResult:
    """Ask every probe in Chinese and in English (by default those held out of tuning); judge the answers.

    Before a follow-up the model answers the question before it; without `history` it sees only the follow-up.
    """
    probes = load_probes(held_out=True) if probes is None else probes
    asked = [(item, side) for side in ("zh", "en") for item in probes]
    settings = dict(max_new_tokens=max_new_tokens, progress=progress)
    before = list(dict.fromkeys(of[side]["before"] for of, side in asked if history and "before" in of[side]))
    said_first = answers(model, tokenizer, before, **settings) if before else []
    first, prompts, rows = dict(zip(before, said_first, strict=True)), [], []
    for item, side in asked:
        said = first.get(text := item[side].get("before"))
        turns = [dict(role="user", content=text), dict(role="assistant", content=said)] if said else []
        prompts.append([*turns, dict(role="user", content=item[side]["question"])])
    for (item, side), answer in zip(asked, answers(model, tokenizer, prompts, **settings), strict=True):
        question, spoken = item[side]["question"], language(answer)
        right = {each: says(answer, question, item[each]["key"]) for each in ("zh", "en")}
        row = dict(id=item["id"], asked=side, question=question, expected=item[side]["answer"], answer=answer)
        row |= dict(language=spoken, in_language=spoken == side, correct=spoken == side and right[side])
        rows.append(row | dict(understood=any(right.values())))
    return ProbeResult(rows)


def perplexity(model, tokenizer, conversations: list[list[dict]], *, batch_size: int = 8) -> float:
    """exp of the mean negative log-likelihood (nats) of what the assistant says, with its closing </s>.

    `conversations` are lists of messages, each read as far as the model's context goes. Every token weighs
    the same. The chat template's markers tell which are the assistant's; raises ValueError if there are none.
    """
    limit, said = model.config.max_position_embeddings, []
    for messages in conversations:
        row = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = row["input_ids"][:limit], [*row["assistant_masks"][:limit], 0]
        changes = [i for i in range(1, len(mask)) if mask[i] != mask[i - 1]]  # where answers begin, and end
        said += [[(ids[:a], ids[a:b])] for a, b in zip(changes[::2], changes[1::2], strict=True)]
    if not said:
        raise ValueError(f"No conversation has an assistant token within the context of {limit} tokens.")
    said.sort(key=lambda turn: -len(turn[0][0]))  # little padding
    with batching.ready(model):
        parts = (said[i : i + batch_size] for i in range(0, len(said), batch_size))
        found = [fewshot.logprobs(model, None, part, tokenizer.pad_token_id) for part in parts]
    total = sum(value for part in found for (value,) in part)
    return math.exp(-total / sum(len(ids) for ((_, ids),) in said))
