"""From a benchmark to a score: equal to plain forwards, after kills, too.

With AURORA_BENCHMARKS=/a/folder the released files of C-Eval, CMMLU and MMLU are scored as well.
"""

import os
import signal
from collections import Counter
from contextlib import nullcontext
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from aurora_lib.course import DATA
from aurora_lib.evaluation import evaluate, fewshot, multiple_choice
from aurora_lib.evaluation.benchmarks import TASKS, EvalError, Question, load_questions, load_subjects
from aurora_lib.model import batching, load_tokenizer, memory
from aurora_lib.model.tokenizer import MISTRAL_FILE
from tests.evaluation.conftest import EXAMPLES, GEOGRAPHY, cells, foreseen, plain_letters, random_model

PROMPTS, SPEED = EXAMPLES["prompts"], {evaluate.SPEED: 0.004}  # GFLOP/s
PIECES = SentencePieceProcessor(model_file=str(MISTRAL_FILE))  # nothing of the library's or transformers'


def watched(model) -> list[dict]:
    """What every call of the model from now on is given: `input_ids`, `logits_to_keep` and so on."""
    seen = []
    model.register_forward_pre_hook(lambda module, args, kw: seen.append(kw), with_kwargs=True)
    return seen


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_and_letters_have_the_ids_of_the_authors_stack(name):
    tokenizer, of = load_tokenizer(), PROMPTS[name]
    example, asked = (Question("x", i, *row) for i, row in enumerate(EXAMPLES["questions"]))
    form = fewshot.Form(*name.split(), **of["changes"])
    ids = batching.encode(tokenizer, fewshot.letter_prompt(tokenizer, asked, [example], "x", form))
    apart = [[1, *chain(*map(PIECES.encode, turn)), 2] for turn in of["turns"]]
    assert ids == of["ids"] == [*chain(*apart)][:-1]
    letters = [PIECES.encode(of["before"] + letter)[-1] for letter in "ABCD"]
    assert fewshot.letter_ids(tokenizer, form) == [[each] for each in letters] and letters == of["letters"]


@pytest.mark.parametrize("form", [tuple(name.split()) for name in PROMPTS], ids="-".join)
@pytest.mark.parametrize("task", TASKS)
def test_letters_equal_one_plain_forward_per_question(tokenizer, task, form):
    model, subjects = random_model(), [GEOGRAPHY, next(iter(load_subjects(task)))]
    own = "en" if form[0] == "chat" else TASKS[task]["language"]
    settings = dict(prompt=form[0], language=None if form[1] == own else form[1], batch_size=3)
    for shuffle in (0, 1):
        result = multiple_choice(model, tokenizer, task, subjects=subjects, shuffle=shuffle, **settings)
        asked = [(model, tokenizer.encode, task, subject, form) for subject in subjects]
        expected = [(each[3], *row) for each in asked for row in plain_letters(*each, shuffle=shuffle)]
        got = [(row["subject"], row["index"], row["prediction"], row["answer"]) for row in result.predictions]
        assert got == [row[:4] for row in expected]
        assert len({row[2] for row in expected}) > 1, "a model that always says the same letter tests nothing"
        for row, (*_, logprobs) in zip(result.predictions, expected, strict=True):
            assert row["logprobs"] == pytest.approx(logprobs, abs=1e-3)
        assert result.overall.accuracy == sum(row[2] == row[3] for row in expected) / len(expected)


def test_shuffled_examples_are_drawn_for_each_question_by_a_number():
    asked = [Question("x", index, "", (), "") for index in range(20)]
    one, again, other = ([evaluate.shown([*range(30)], 5, n, each) for each in asked] for n in (1, 1, 2))
    assert one == again and {len(set(few)) for few in one} == {5} and len(set(map(tuple, one + other))) == 40


def test_cloze_predictions_equal_one_plain_forward_per_choice(tokenizer):
    model, ids, shots = random_model(), tokenizer.encode, cells("mmlu", "dev", GEOGRAPHY)[:2]
    prefix = "".join(f"<s>[INST] {r[0]} [/INST] {r['ABCD'.index(r[5]) + 1]}</s>" for r in shots)
    result = multiple_choice(model, tokenizer, "mmlu", subjects=[GEOGRAPHY], shots=2, scoring="cloze")
    for row, asked in zip(result.predictions, cells("mmlu", "test", GEOGRAPHY), strict=True):
        context = f"{prefix}<s>[INST] {asked[0]} [/INST]"
        wholes = [ids(f"{context} {choice}") for choice in asked[1:5]]
        expected = [sum(foreseen(model, whole, len(ids(context)))) for whole in wholes]
        assert row["logprobs"] == pytest.approx(expected, abs=1e-2)
        assert row["prediction"] == "ABCD"[expected.index(max(expected))]


@pytest.mark.parametrize("task, side", [("cmmlu", "right"), ("mmlu", "left")])
def test_a_4_bit_model_predicts_as_without_cache(model, tokenizer, monkeypatch, task, side):
    """With its adapter on, and off."""
    monkeypatch.setattr(tokenizer, "padding_side", side)
    made = []
    for adapter in (nullcontext(), model.disable_adapter()):
        with adapter:
            made.append(multiple_choice(model, tokenizer, task, subjects=[GEOGRAPHY]).predictions)
            expected = plain_letters(model, tokenizer.encode, task, GEOGRAPHY)
        assert [row["prediction"] for row in made[-1]] == [row[1] for row in expected]
    assert made[0][0]["logprobs"] != made[1][0]["logprobs"]


def test_all_that_questions_begin_with_alike_is_read_once_and_one_id_of_each_stays():
    one, two = (Question("x", i, "", (), "") for i in (1, 2))
    group = fewshot.Group.of(5, {one: [([7, 8, 9, 3], [4])], two: [([7, 8, 9, 5, 6], [4])]})
    assert (group.prefix, group.rest) == ([7, 8, 9], {one: [([3], [4])], two: [([5, 6], [4])]})
    assert fewshot.Group.of(5, {one: [([7, 8], [4])], two: [([7, 8, 9], [4])]}).prefix == [7]


def test_what_is_printed_before_the_start_is_then_read(tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.results, "recorded", lambda *where: {("05", "tiny"): SPEED}[where])
    monkeypatch.setattr(evaluate, "time", SimpleNamespace(perf_counter=iter((10, 12)).__next__))
    seen = watched(model := random_model())
    result = multiple_choice(model, tokenizer, "mmlu", subjects=["philosophy", "astronomy"], batch_size=3)
    read = sum(kw["input_ids"].numel() for kw in seen)
    assert sum(isinstance(kw["logits_to_keep"], int) for kw in seen) == 2, "examples are read once a subject"
    # of 2 layers: q and o of 32 x 32, k and v of 32 x 16, two of four experts of 3 x 32 x 32; two for each
    operations = 2 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 2 * 3 * 32 * 32) * read
    said = f"mmlu chat letter en: {(n := result.overall.n)} of {n} questions, {read:,} tokens: about"
    assert capsys.readouterr().out == f"{said} {operations / 4e6:,.0f} s by the speed recorded\n"
    assert result.speed == pytest.approx(operations / 2 / 1e9)


def test_the_floor_for_mixtral_is_arithmetic_that_can_be_followed(monkeypatch):
    monkeypatch.setattr(evaluate.results, "recorded", lambda *where: {("05", "h100"): {}}[where])
    model = SimpleNamespace(device=SimpleNamespace(type="cuda"), config=memory.MIXTRAL_8X7B)
    attention, expert = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024), 32 * 3 * 4096 * 14336
    # 10,000 passes read the layers in NF4, embedding and head in bf16, and write and read the layers in bf16
    seconds = 1e4 * ((attention + 8 * expert) * (0.516 + 4) + 2 * 2 * 32_000 * 4096) / 3e12
    seconds += 1e7 * 2 * (attention + 2 * expert) / 600e12  # 10 million tokens, two of eight experts
    said = evaluate.expected(model, 10_000, 10_000_000)
    assert said == f": on an H100 at least {seconds / 60:.1f} minutes (predicted)" and "18.7 min" in said


def test_a_sample_stands_for_the_whole_and_a_larger_one_keeps_it(tokenizer):
    model = random_model()
    made = [multiple_choice(model, tokenizer, "ceval", limit=limit) for limit in (2, 12, 99, None)]
    few, more, most, whole = ({(r["subject"], r["index"]) for r in result.predictions} for result in made)
    assert few < more < most == whole and len(few) == 20 and str(made[2]) == str(made[3])
    for result in made[:2]:
        assert sum(row["weight"] for row in result.predictions) == pytest.approx(len(whole))
        of = Counter(row["subject"] for row in made[3].predictions)
        scores = result._by({name: name for name in result.subjects})
        right = sum(of[name] * score.accuracy for name, score in scores.items())
        assert result.overall.accuracy == pytest.approx(right / len(whole))


# subjects, questions, by the papers of the benchmarks (C-Eval: its val split)
RELEASED = {"ceval": (52, 1346), "cmmlu": (67, 11582), "mmlu": (57, 14042)}


@pytest.mark.skipif(not os.environ.get("AURORA_BENCHMARKS"), reason="AURORA_BENCHMARKS names no folder")
@pytest.mark.parametrize("prompt", ["chat", "plain"])
@pytest.mark.parametrize("task", RELEASED)
def test_every_tenth_on_released_files_equals_a_plain_forward(task, prompt):
    model, root = random_model(context=4096, vocab=32000), Path(os.environ["AURORA_BENCHMARKS"])
    result = multiple_choice(model, load_tokenizer(), task, root=root, prompt=prompt)
    said = {(row["subject"], row["index"]): [row["prediction"], row["answer"]] for row in result.predictions}
    assert (len({subject for subject, _ in said}), len(said), result.skipped) == (*RELEASED[task], [])
    for subject in result.subjects:
        settings = dict(form=(prompt, result.form.language), root=root, every=10)
        for index, *letters, _ in plain_letters(model, PIECES.encode, task, subject, **settings):
            assert said[subject, index] == letters, (subject, index)


def test_bad_rows_and_questions_too_long_are_skipped_and_counted(tokenizer, write_task):
    test = b"where " * 200 + b",a,b,c,d,A\nq,a,b,c,d,E\nshort,a,b,c,d,C\n"
    root = write_task("mmlu", dev=b"q,a,b,c,d,B\n", test=test)
    result = multiple_choice(random_model(context=150), tokenizer, "mmlu", root=root)
    assert [row["index"] for row in result.predictions] == [2] and "2 rows skipped" in str(result)
    assert [(row["file"], row["index"]) for row in result.skipped] == [("test/x_test.csv", i) for i in (1, 0)]
    assert "tokens without any example, and the model's context has 150" in result.skipped[1]["reason"]


def test_a_prompt_longer_than_the_context_loses_examples_from_the_front(tokenizer):
    examples, questions = (load_questions("mmlu", GEOGRAPHY, split)[0] for split in ("dev", "test"))
    form, name = fewshot.Form(), "high school geography"
    asked = fewshot.letter_prompt(tokenizer, questions[0], examples[2:], name, form)
    three = batching.encode(tokenizer, asked)
    model = random_model(context=len(three) + 1)
    result = multiple_choice(model, tokenizer, "mmlu", subjects=[GEOGRAPHY])
    assert [row["index"] for row in result.predictions] == list(range(len(questions)))
    assert {row["shots"] for row in result.predictions} > {3} and not result.skipped
    assert "with fewer examples" in str(result)
    letters = tokenizer.convert_tokens_to_ids(["▁A", "▁B", "▁C", "▁D"])
    expected = [foreseen(model, [*three, letter], len(three))[0] for letter in letters]
    first = result.predictions[0]
    assert first["shots"] == 3 and first["logprobs"] == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_scored_is_one_sentence_that_says_why(tokenizer, write_task):
    model, root = random_model(), write_task("mmlu", dev=b"q,a,b,c,d,A\n", test=b"q,a,b,c,d,E\n")
    with pytest.raises(EvalError, match=r"no subject 'alchemy'.*high_school_geography"):
        multiple_choice(model, tokenizer, "mmlu", subjects=["alchemy"])
    with pytest.raises(EvalError, match=r"no prompt 'vibes'.*chat, plain"):
        multiple_choice(model, tokenizer, "mmlu", prompt="vibes")
    with pytest.raises(EvalError, match=r"no split 'dev'.*val, test"):  # the examples are from there
        multiple_choice(model, tokenizer, "mmlu", split="dev")
    with pytest.raises(EvalError, match=r"1 rows skipped; the first is test/x_test.csv: answer 'E'"):
        multiple_choice(model, tokenizer, "mmlu", root=root)
    model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(EvalError, match=r"mmlu chat letter en: .* is no number"):
        multiple_choice(model, tokenizer, "mmlu", subjects=["philosophy"])


def score_until_killed(model, folder):
    calls, kill = [], lambda: os.kill(os.getpid(), signal.SIGKILL)
    model.register_forward_pre_hook(lambda *args: calls.append(0) if len(calls) < 9 else kill())
    multiple_choice(model, load_tokenizer(DATA / "tiny"), "mmlu", batch_size=4, cache=folder)


def test_a_killed_run_goes_on_and_scores_no_question_twice(tokenizer, tmp_path):
    child = get_context("fork").Process(target=score_until_killed, args=(random_model(), tmp_path))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    before = evaluate.KeptScores(path := next(tmp_path.glob("mmlu-chat-letter-en-*.jsonl")))
    with path.open("ab") as file:
        file.write(b'\n{"cut off, as a full disk leaves it')
    seen, settings = watched(model := random_model()), dict(batch_size=4)
    resumed = multiple_choice(model, tokenizer, "mmlu", cache=tmp_path, **settings)
    rows = [kw["input_ids"].shape[0] for kw in seen if isinstance(kw["logits_to_keep"], torch.Tensor)]
    assert 0 < len(before) < resumed.overall.n and sum(rows) == resumed.overall.n - len(before)
    after = evaluate.KeptScores(path)
    assert len(after) == resumed.overall.n and before.items() <= after.items()
    assert resumed.predictions == multiple_choice(model, tokenizer, "mmlu", **settings).predictions
    seen.clear()
    again = multiple_choice(model, tokenizer, "mmlu", cache=tmp_path, **settings)
    assert again.predictions == resumed.predictions and not seen


def test_scores_are_kept_apart_by_weights_adapters_and_every_id_that_is_read(model):
    one, same, other = random_model(vocab=200), random_model(vocab=200), random_model(vocab=200, seed=1)
    key = evaluate.model_key(one)
    one.config.use_cache = False
    assert evaluate.model_key(one) == evaluate.model_key(same) == key != evaluate.model_key(other)
    with torch.no_grad():
        one.model.layers[0].self_attn.q_proj.weight += 1e-3
    assert evaluate.model_key(one) != key
    with model.disable_adapter():
        base = evaluate.model_key(model)
    assert base != evaluate.model_key(model)
    four = [([3, 4], [5])] * 4
    keys = [evaluate.question_key([1, 2], four), evaluate.question_key([1], four)]
    keys += [evaluate.question_key([1, 2], [*four[:3], other]) for other in (([3, 4], [6]), ([3], [4, 5]))]
    assert len(set(keys)) == 4 and keys[0] == evaluate.question_key([1, 2], list(four))
