"""From a benchmark to a score: equal to plain forwards, after kills, too.

With AURORA_BENCHMARKS=/a/folder the released files of C-Eval, CMMLU and MMLU are scored as well.
"""

import os
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from aurora_lib.course import DATA
from aurora_lib.evaluation import evaluate, fewshot, multiple_choice
from aurora_lib.evaluation.benchmarks import TASKS, EvalError, load_questions, load_subjects
from aurora_lib.model import batching, load_tokenizer

GEOGRAPHY = "high_school_geography"  # a subject of all three


def watched(model) -> list[torch.Tensor | None]:
    """`logits_to_keep` and the ids of every call of the model from now on."""
    seen = []
    model.register_forward_pre_hook(lambda module, args, kw: seen.append(kw), with_kwargs=True)
    return seen


def predictions(result) -> list[str]:
    return [row["prediction"] for row in result.predictions]


# ---- equal to plain forwards


@pytest.mark.parametrize("task", TASKS)
def test_letters_equal_one_plain_forward_per_question(random_model, tokenizer, plain_letters, task):
    model, subjects = random_model(), [GEOGRAPHY, next(iter(load_subjects(task)))]
    result = multiple_choice(model, tokenizer, task, subjects=subjects, batch_size=3)
    expected = [(s, *row) for s in subjects for row in plain_letters(model, tokenizer, task, s)]
    got = [(row["subject"], row["index"], row["prediction"], row["answer"]) for row in result.predictions]
    assert got == [row[:4] for row in expected]
    assert len(set(predictions(result))) > 1, "a model that always says the same letter tests nothing"
    for row, (*_, logprobs) in zip(result.predictions, expected, strict=True):
        assert row["logprobs"] == pytest.approx(logprobs, abs=1e-3)
    assert result.overall.accuracy == sum(row[2] == row[3] for row in expected) / len(expected)


def test_cloze_predictions_equal_one_plain_forward_per_choice(random_model, tokenizer, cells):
    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    model, shots = random_model(), cells("mmlu", "dev", GEOGRAPHY)[:2]
    prefix = "".join(f"[INST] {r[0]} [/INST] {r['ABCD'.index(r[5]) + 1]}</s>" for r in shots)
    settings = dict(scoring="cloze", batch_size=5)
    result = multiple_choice(model, tokenizer, "mmlu", subjects=[GEOGRAPHY], shots=2, **settings)
    for row, asked in zip(result.predictions, cells("mmlu", "test", GEOGRAPHY), strict=True):
        expected = []
        for choice in asked[1:5]:
            context = ids(f"<s>{prefix}[INST] {asked[0]} [/INST]")
            whole = ids(f"<s>{prefix}[INST] {asked[0]} [/INST] {choice}")
            with torch.no_grad():
                table = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected.append(sum(table[i - 1, whole[i]].item() for i in range(len(context), len(whole))))
        assert row["logprobs"] == pytest.approx(expected, abs=1e-2)
        assert row["prediction"] == "ABCD"[expected.index(max(expected))]


@pytest.mark.parametrize("task, side", [("cmmlu", "right"), ("mmlu", "left")])
def test_a_4_bit_model_predicts_as_without_cache(model, tokenizer, plain_letters, monkeypatch, task, side):
    """With its adapter on, and off."""
    monkeypatch.setattr(tokenizer, "padding_side", side)
    tuned = multiple_choice(model, tokenizer, task, subjects=[GEOGRAPHY])
    assert predictions(tuned) == [row[1] for row in plain_letters(model, tokenizer, task, GEOGRAPHY)]
    with model.disable_adapter():
        base = multiple_choice(model, tokenizer, task, subjects=[GEOGRAPHY])
        assert predictions(base) == [row[1] for row in plain_letters(model, tokenizer, task, GEOGRAPHY)]
    assert tuned.predictions[0]["logprobs"] != base.predictions[0]["logprobs"]


def test_the_examples_of_a_subject_are_read_once(random_model, tokenizer):
    model, known = random_model(), load_subjects("mmlu")
    seen = watched(model)
    result = multiple_choice(model, tokenizer, "mmlu", subjects=["philosophy", "astronomy"], batch_size=3)
    whole = 0
    for subject in ("philosophy", "astronomy"):
        questions, examples = (load_questions("mmlu", subject, split)[0] for split in ("test", "dev"))
        asked = fewshot.candidates(tokenizer, questions, examples, known[subject]["name"], "en", "letter")
        whole += sum(len(four[0][0]) for four in asked)
    assert len([kw for kw in seen if isinstance(kw["logits_to_keep"], int)]) == 2
    assert result.overall.n > 10 and sum(kw["input_ids"].numel() for kw in seen) < whole / 3


@pytest.mark.parametrize("path", [None, DATA / "tiny"])
@pytest.mark.parametrize("task, language, gap", [("mmlu", "en", " "), ("cmmlu", "zh", "")])
def test_letters_have_the_ids_that_the_tokenizer_gives_them_after_a_whole_prompt(path, task, language, gap):
    tokenizer = load_tokenizer(path)
    question = load_questions(task, GEOGRAPHY, "test")[0][0]
    prompt = "<s>" + fewshot.letter_prompt(question, [question], "x", language)
    alone = tokenizer(prompt, add_special_tokens=False).input_ids
    for letter, ids in zip("ABCD", fewshot.letter_ids(tokenizer, language), strict=True):
        assert tokenizer(prompt + gap + letter, add_special_tokens=False).input_ids == alone + ids
        assert len(ids) == 1 and tokenizer.decode(ids).strip() == letter


# subjects, questions, by the papers of the benchmarks (C-Eval: its val split)
RELEASED = {"ceval": (52, 1346), "cmmlu": (67, 11582), "mmlu": (57, 14042)}


@pytest.mark.skipif(not os.environ.get("AURORA_BENCHMARKS"), reason="AURORA_BENCHMARKS names no folder")
@pytest.mark.parametrize("task", RELEASED)
def test_every_tenth_prediction_on_released_files_equals_a_plain_forward(random_model, plain_letters, task):
    model, tokenizer = random_model(context=4096, vocab=32000), load_tokenizer()
    root = Path(os.environ["AURORA_BENCHMARKS"])
    result = multiple_choice(model, tokenizer, task, root=root)
    assert (len(result.by_subject), result.overall.n, result.skipped) == (*RELEASED[task], [])
    assert {entry["category"] for entry in result.subjects.values()} == set(evaluate.CATEGORIES)
    said = {(row["subject"], row["index"]): (row["prediction"], row["answer"]) for row in result.predictions}
    for subject in result.subjects:
        for index, letter, right, _ in plain_letters(model, tokenizer, task, subject, root, every=10):
            assert said[subject, index] == (letter, right)


# ---- bad input


def test_what_does_not_exist_is_one_sentence_with_a_remedy(random_model, tokenizer):
    with pytest.raises(EvalError, match=r"no subject 'alchemy'.*high_school_geography"):
        multiple_choice(random_model(), tokenizer, "mmlu", subjects=["alchemy"])
    with pytest.raises(EvalError, match=r"no scoring 'vibes'.*letter, cloze"):
        multiple_choice(random_model(), tokenizer, "mmlu", scoring="vibes")


def test_bad_rows_and_questions_too_long_are_skipped_and_counted(random_model, tokenizer, write_task):
    test = b"where " * 200 + b",a,b,c,d,A\nq,a,b,c,d,E\nshort,a,b,c,d,C\n"
    root = write_task("mmlu", dev=b"q,a,b,c,d,B\n", test=test)
    result = multiple_choice(random_model(context=150), tokenizer, "mmlu", root=root)
    assert [row["index"] for row in result.predictions] == [2] and "2 rows skipped" in str(result)
    assert [(row["file"], row["index"]) for row in result.skipped] == [("test/x_test.csv", i) for i in (1, 0)]
    assert "tokens without any example, and the model's context has 150" in result.skipped[1]["reason"]


def test_a_prompt_longer_than_the_context_loses_examples_from_the_front(random_model, tokenizer):
    examples, questions = (load_questions("mmlu", GEOGRAPHY, split)[0] for split in ("dev", "test"))
    asked = fewshot.letter_prompt(questions[0], examples[2:], "high school geography", "en")
    three = batching.encode(tokenizer, asked)
    model = random_model(context=len(three) + 1)
    result = multiple_choice(model, tokenizer, "mmlu", subjects=[GEOGRAPHY])
    assert [row["index"] for row in result.predictions] == list(range(len(questions)))
    assert {row["shots"] for row in result.predictions} > {3} and not result.skipped
    with torch.no_grad():
        table = model(torch.tensor([three])).logits[0, -1].log_softmax(-1)
    expected = table[tokenizer.convert_tokens_to_ids(["▁A", "▁B", "▁C", "▁D"])].tolist()
    first = result.predictions[0]
    assert first["shots"] == 3 and first["logprobs"] == pytest.approx(expected, abs=1e-3)


def test_no_usable_row_or_no_number_is_an_error_that_says_why(random_model, tokenizer, write_task):
    model, root = random_model(), write_task("mmlu", dev=b"q,a,b,c,d,A\n", test=b"q,a,b,c,d,E\n")
    with pytest.raises(EvalError, match=r"1 rows skipped; the first is test/x_test.csv: answer 'E'"):
        multiple_choice(model, tokenizer, "mmlu", root=root)
    model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(EvalError, match=r"mmlu letter, philosophy: .* not a number"):
        multiple_choice(model, tokenizer, "mmlu", subjects=["philosophy"])


# ---- interrupted


def score_until_killed(model, folder):
    calls, kill = [], lambda: os.kill(os.getpid(), signal.SIGKILL)
    model.register_forward_pre_hook(lambda *args: calls.append(0) if len(calls) < 9 else kill())
    multiple_choice(model, load_tokenizer(DATA / "tiny"), "mmlu", batch_size=4, cache=folder)


def test_a_killed_run_goes_on_and_scores_no_question_twice(random_model, tokenizer, tmp_path):
    child = get_context("fork").Process(target=score_until_killed, args=(random_model(), tmp_path))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (path,) = tmp_path.glob("mmlu-letter-*.jsonl")
    before = evaluate.KeptScores(path)
    with path.open("ab") as file:
        file.write(b'\n{"cut off, as a full disk leaves it')

    model = random_model()
    seen, settings = watched(model), dict(batch_size=4)
    resumed = multiple_choice(model, tokenizer, "mmlu", cache=tmp_path, **settings)
    rows = [kw["input_ids"].shape[0] for kw in seen if isinstance(kw["logits_to_keep"], torch.Tensor)]
    assert 0 < len(before) < resumed.overall.n and sum(rows) == resumed.overall.n - len(before)
    after = evaluate.KeptScores(path)
    assert len(after) == resumed.overall.n and before.items() <= after.items()
    assert resumed.predictions == multiple_choice(model, tokenizer, "mmlu", **settings).predictions

    seen.clear()
    again = multiple_choice(model, tokenizer, "mmlu", cache=tmp_path, **settings)
    assert again.predictions == resumed.predictions and not seen


def test_scores_are_kept_apart_by_weights_and_by_the_state_of_adapters(random_model, model):
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


def test_scores_are_kept_apart_by_every_id_of_prompt_and_continuation():
    four = [([3, 4], [5])] * 4
    keys = [evaluate.question_key([1, 2], four), evaluate.question_key([1], four)]
    keys += [evaluate.question_key([1, 2], [*four[:3], other]) for other in (([3, 4], [6]), ([3], [4, 5]))]
    assert len(set(keys)) == 4 and keys[0] == evaluate.question_key([1, 2], list(four))
