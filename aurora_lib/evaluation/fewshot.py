"""Few-shot scoring, bottom up: a prompt, its token ids, and the log-probability of what may follow it.

The prompts of one subject begin alike: the same examples, four to five times as long as the question. `Group`
keeps that beginning apart. The model reads it once; every batch goes on from its keys and values (KV cache).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers.cache_utils import Cache, DynamicLayer

from aurora_lib.evaluation.benchmarks import LETTERS, Question
from aurora_lib.model import batching

SYSTEM = {
    "en": "The following are multiple choice questions (with answers) about {subject}.",
    "zh": "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。",
}
ANSWER = {"en": "\nAnswer: ", "zh": "\n答案："}
Asked = tuple[Question, tuple[Question, ...]]  # a question, and the examples that stand before it
Candidate = tuple[list[int], list[int]]  # the ids of a context, and of what may follow it


@dataclass(frozen=True)
class Form:
    """How a question is put; as it is, the paper authors' way (LLaMA-Factory 0.4.0, December 2023).

    `prompt`: "chat", every example a user's turn with its letter as the answer, or "plain" text; `language`
    of the words around question and options; `option`: one line. `scoring`: "letter" (A, B, C or D comes
    next) or "cloze" (no options are shown; which choice is the likeliest answer in a chat?).
    `shuffle`: not 0 where the examples were shuffled for each question; another number, another order.
    """

    prompt: str = "chat"
    language: str = "en"
    option: str = "\n{letter}. {choice}"
    scoring: str = "letter"
    shuffle: int = 0


FORMS = dict(prompt=("chat", "plain"), language=tuple(SYSTEM), scoring=("letter", "cloze"))


def letter_prompt(tokenizer, question: Question, examples, subject_name: str, form: Form) -> str:
    """The few-shot prompt, ending where the letter must follow; the first question names the subject.

    "chat": each example is a conversation of its own in the tokenizer's chat template, with its own <s>, as
    the paper's stack made it; "plain": blocks with a blank line between them.
    """
    blocks = []
    for q in [*examples, question]:
        options = zip(LETTERS, q.choices, strict=True)
        lines = "".join(form.option.format(letter=letter, choice=choice) for letter, choice in options)
        blocks.append(q.text + lines + ANSWER[form.language])
    blocks[0] = f"{SYSTEM[form.language].format(subject=subject_name)}\n\n{blocks[0]}"
    said, asked = [(block, q.answer) for block, q in zip(blocks, examples, strict=False)], blocks[-1].strip()
    if form.prompt == "plain":
        return "\n\n".join([*(block + letter for block, letter in said), asked])
    return _chat(tokenizer, said, asked)


def cloze_prompt(tokenizer, question: Question, examples) -> str:
    """The question as a chat's last turn, after the examples with their right choices as answers."""
    return _chat(tokenizer, [(q.text, q.choices[LETTERS.index(q.answer)]) for q in examples], question.text)


def _chat(tokenizer, said: list[tuple[str, str]], asked: str) -> str:
    return "".join(_turn(tokenizer, tokenizer.chat_template, *turn) for turn in [*said, (asked,)])


@lru_cache(maxsize=4096)  # the examples of a subject are the same for every question
def _turn(tokenizer, template, *said: str) -> str:
    """A question, or a question and its answer, in the chat `template`."""
    turns = zip(("user", "assistant"), said, strict=False)
    return batching.chat_prompt(tokenizer, [dict(role=role, content=text) for role, text in turns])


def _gap(tokenizer) -> str:
    """What a chat template puts between prompt and answer: a space in Mixtral's, nothing in most."""
    prompt, whole = (_turn(tokenizer, tokenizer.chat_template, *said) for said in ("?", "?A"))
    return whole.removeprefix(prompt).partition("A")[0]


def split_ids(alone: list[int], whole: list[int]) -> Candidate:
    """The ids of a context with its continuation, cut where they leave those of the context alone."""
    same = batching.shared_length([alone, whole])
    return whole[:same], whole[same:]


def letter_ids(tokenizer, form: Form) -> list[list[int]]:
    """The ids of A, B, C, D as they follow the prompt: " A" in Mixtral's chat or after "Answer:", else "A".

    With Mixtral's tokenizer one id each: "▁A" and "A" are different pieces, and the wrong one scores noise.
    """
    answer = ANSWER[form.language].strip()
    before = answer if form.prompt == "plain" else _chat(tokenizer, [], answer)
    gap = {"zh": "", "en": " "}[form.language] if form.prompt == "plain" else _gap(tokenizer)
    alone, *wholes = batching.encode_all(tokenizer, [before, *(before + gap + letter for letter in LETTERS)])
    return [split_ids(alone, whole)[1] for whole in wholes]


def candidates(tokenizer, asked: list[Asked], subject_name: str, form: Form) -> list[list[Candidate]]:
    """Per question four (context, continuation): by "letter" the letters, by "cloze" the choices' texts."""
    if not asked:
        return []
    if form.scoring == "letter":
        letters = letter_ids(tokenizer, form)
        prompts = [letter_prompt(tokenizer, *each, subject_name, form) for each in asked]
        return [[(context, ids) for ids in letters] for context in batching.encode_all(tokenizer, prompts)]
    prompts, gap = [cloze_prompt(tokenizer, *each) for each in asked], _gap(tokenizer)
    texts = [p + gap + choice for p, (q, _) in zip(prompts, asked, strict=True) for choice in q.choices]
    alone, wholes = batching.encode_all(tokenizer, prompts), iter(batching.encode_all(tokenizer, texts))
    return [[split_ids(context, next(wholes)) for _ in LETTERS] for context in alone]


@dataclass(frozen=True)
class Group:
    """Questions with `shots` examples, whose prompts begin with the same ids: `prefix`, kept and read once.

    `rest` has the four candidates of each question, with contexts that go on where the prefix ends.
    """

    shots: int
    prefix: list[int]
    rest: dict[Question, list[Candidate]]

    @classmethod
    def of(cls, shots: int, asked: dict[Question, list[Candidate]]) -> "Group":
        """`asked`: questions with their four candidates, whose contexts are whole."""
        contexts = [context for four in asked.values() for context, _ in four]
        # one id must stay: the model's output after it is what the first id of a continuation is scored by
        start = min(batching.shared_length(contexts), min(map(len, contexts)) - 1)
        rest = {q: [(context[start:], ids) for context, ids in four] for q, four in asked.items()}
        return cls(shots, contexts[0][:start], rest)

    def batches(self, questions: list[Question], size: int) -> list[tuple[list[Question], int]]:
        """Some of the questions in batches of at most `size` rows, longest first: little is padding.

        Beside each batch its tokens, padding included.
        """
        inputs = {q: {(*context, *ids[:-1]) for context, ids in four} for q, four in self.rest.items()}
        order = sorted(questions, key=lambda q: -max(map(len, inputs[q])))
        size = max(1, size // max(map(len, inputs.values())))
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        rows = [[len(row) for q in part for row in inputs[q]] for part in parts]
        return [(part, len(lengths) * max(lengths)) for part, lengths in zip(parts, rows, strict=True)]


@lru_cache(maxsize=256)  # base and tuned model, one after the other, read the same prompts
def fit(tokenizer, template, limit, asked: tuple[Asked, ...], *settings) -> tuple[list[Group], list[tuple]]:
    """The questions in groups, and (question, tokens) of those that even alone have more than `limit` tokens.

    Prompts that are too long lose examples from the front, one at a time: the first group has all of them.
    `settings` go to `candidates`; with another chat `template` a prompt is another.
    """
    groups, left, most = [], list(asked), max((len(examples) for _, examples in asked), default=0)
    for shots in range(most, -1, -1):
        fitting, too_long = {}, {}
        few = [(question, examples[len(examples) - shots :]) for question, examples in left]
        for each, four in zip(left, candidates(tokenizer, few, *settings), strict=True):
            length = max(len(context) + len(ids) for context, ids in four)
            if length <= limit:
                fitting[each[0]] = four
            else:
                too_long[each] = length
        groups += [Group.of(shots, fitting)] if fitting else []
        left = list(too_long)
    return groups, [(question, length) for (question, _), length in too_long.items()]


class PrefixLayer(DynamicLayer):
    """A layer's keys and values `[1, heads, prefix, head_dim]`: written once, then read by any batch."""

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            return super().update(keys, values)
        pairs = ((self.keys, keys), (self.values, values))
        return tuple(torch.cat([old.expand(len(new), -1, -1, -1), new], dim=-2) for old, new in pairs)


def read_prefix(model, prefix: list[int]) -> Cache | None:
    """Run the prefix once; what comes back stands for it in any number of later calls of the model."""
    if not prefix:
        return None
    cache, ids = Cache(layer_class_to_replicate=PrefixLayer), torch.tensor([prefix], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def logprobs(model, cache: Cache | None, batch: list[list[Candidate]], pad: int) -> list[list[float]]:
    """Natural log P(ids | prefix, context), summed over the ids, of each candidate: `[len(batch)][4]`.

    Candidates with the same input, as the four letters have, are one row. Rows are padded on the right, where
    no token that counts can see it. The head computes logits only where a continuation is scored.
    """
    rows, places = {}, {}
    for context, ids in (candidate for four in batch for candidate in four):
        tokens = (*context, *ids[:-1])
        row = rows.setdefault(tokens, len(rows))
        for i in range(len(context) - 1, len(tokens)):
            places.setdefault((row, i), len(places))
    longest = max(map(len, rows))
    padded = [[*tokens, *[pad] * (longest - len(tokens))] for tokens in rows]
    keep = sorted({i for _, i in places})
    inputs, columns = torch.tensor(padded, device=model.device), torch.tensor(keep, device=model.device)
    settings = dict(past_key_values=cache, use_cache=cache is not None, logits_to_keep=columns)
    logits = model(input_ids=inputs, **settings).logits
    at = [row for row, _ in places], [keep.index(i) for _, i in places]
    tables = logits[at].float().log_softmax(-1).cpu()  # [places, vocabulary]

    def total(context, ids):
        row = rows[(*context, *ids[:-1])]
        return sum(tables[places[row, i], token].item() for i, token in enumerate(ids, len(context) - 1))

    return [[total(*candidate) for candidate in four] for four in batch]
