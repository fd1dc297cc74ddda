"""Multiple choice against a plain reference, bad files, the bundled questions, and how answers are judged."""

import csv
import json
import signal
import time
import zipfile
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from accelerate import PartialState, debug_launcher
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from aurora_lib import evaluation
from aurora_lib.course.scale import DATA
from aurora_lib.evaluation import EvalResult, Paired, Score, fewshot, multiple_choice, paired
from aurora_lib.evaluation import cache as score_cache
from aurora_lib.evaluation import hub as hub_benchmarks
from aurora_lib.evaluation.benchmarks import TASKS, EvalError, load_questions, load_subjects
from aurora_lib.model import load_adapter, load_model, load_tokenizer

BUNDLED = DATA / "benchmarks"
HEADERS = {
    ("ceval", "dev"): "id,question,A,B,C,D,answer,explanation",
    ("ceval", "val"): "id,question,A,B,C,D,answer",
    ("ceval", "test"): "id,question,A,B,C,D",
    ("cmmlu", "dev"): ",Question,A,B,C,D,Answer",
    ("cmmlu", "test"): ",Question,A,B,C,D,Answer",
}
MMLU_SPLITS = ("dev", "val", "test")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model(len(tokenizer))


def random_model(vocab: int, context: int = 2048, seed: int = 0) -> MixtralForCausalLM:
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=context,
        initializer_range=0.3,  # far from uniform, so that predictions do not hang on rounding
    )
    return MixtralForCausalLM(config).eval()


def watched(model) -> list[dict]:
    """The arguments of every call of the model from now on."""
    seen = []
    model.register_forward_pre_hook(lambda module, args, kw: seen.append(kw), with_kwargs=True)
    return seen


@pytest.fixture
def world(monkeypatch):
    from tools.build import world

    return world


def cells(task: str, split: str, subject: str) -> list[list[str]]:
    """The rows of a bundled file as question, A, B, C, D, answer; read with nothing of the library's."""
    name = f"{subject}.csv" if task == "cmmlu" else f"{subject}_{split}.csv"
    with (BUNDLED / task / split / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows if task == "mmlu" else [row[1:7] for row in rows[1:]]


def write_task(root: Path, task: str, rows: dict[str, bytes], subject: str = "x") -> Path:
    """A one-subject benchmark: split -> file content."""
    (root / task).mkdir(parents=True)
    (root / task / "mapping.json").write_text(json.dumps({subject: {"name": subject, "category": "STEM"}}))
    for split, content in rows.items():
        (root / task / split).mkdir()
        name = f"{subject}.csv" if task == "cmmlu" else f"{subject}_{split}.csv"
        (root / task / split / name).write_bytes(content)
    return root


# ---- scoring


@pytest.mark.parametrize("task", TASKS)
def test_letter_predictions_equal_one_plain_forward_per_question(model, tokenizer, task):
    language, split = ("en", "test") if task == "mmlu" else ("zh", "val" if task == "ceval" else "test")
    intro, tail, pieces = {
        "en": (
            "The following are multiple choice questions (with answers) about {}.",
            "Answer:",
            "▁A ▁B ▁C ▁D",
        ),
        "zh": ("以下是中国关于{}考试的单项选择题，请选出其中的正确答案。", "答案：", "A B C D"),
    }[language]
    gap = " " if language == "en" else ""
    ids = tokenizer.convert_tokens_to_ids(pieces.split())
    names = json.loads((BUNDLED / task / "mapping.json").read_text(encoding="utf-8"))
    expected = []
    for subject in ("capital", "symbol"):

        def block(row):
            return f"{row[0]}\nA. {row[1]}\nB. {row[2]}\nC. {row[3]}\nD. {row[4]}\n{tail}"

        shots = "".join(block(row) + gap + row[5] + "\n\n" for row in cells(task, "dev", subject)[:5])
        for row in cells(task, split, subject):
            prompt = intro.format(names[subject]["name"]) + "\n\n" + shots + block(row)
            inputs = torch.tensor([[1, *tokenizer(prompt, add_special_tokens=False).input_ids]])
            with torch.no_grad():
                logprobs = model(inputs).logits[0, -1].log_softmax(-1)[ids]
            expected.append((subject, "ABCD"[logprobs.argmax()], row[5], logprobs.tolist()))
    result = multiple_choice(
        model, tokenizer, task, subjects=["capital", "symbol"], batch_size=3, progress=False
    )
    got = [(row["subject"], row["prediction"], row["answer"]) for row in result.predictions]
    assert got == [row[:3] for row in expected]
    assert len({row[1] for row in expected}) > 1, "a model that always says the same letter tests nothing"
    for row, (*_, logprobs) in zip(result.predictions, expected, strict=True):
        assert row["logprobs"] == pytest.approx(logprobs, abs=1e-3)
    assert result.accuracy == sum(row[1] == row[2] for row in expected) / len(expected)


def test_cloze_predictions_equal_one_plain_forward_per_choice(model, tokenizer):
    shots = cells("mmlu", "dev", "home")[:2]
    prefix = "".join(f"[INST] {r[0]} [/INST] {r['ABCD'.index(r[5]) + 1]}</s>" for r in shots)
    result = multiple_choice(
        model, tokenizer, "mmlu", subjects=["home"], shots=2, scoring="cloze", batch_size=5, progress=False
    )
    for row, asked in zip(result.predictions, cells("mmlu", "test", "home"), strict=True):
        expected = []
        for choice in asked[1:5]:
            context = tokenizer(f"<s>{prefix}[INST] {asked[0]} [/INST]", add_special_tokens=False).input_ids
            whole = tokenizer(
                f"<s>{prefix}[INST] {asked[0]} [/INST] {choice}", add_special_tokens=False
            ).input_ids
            with torch.no_grad():
                table = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected.append(sum(table[i - 1, whole[i]].item() for i in range(len(context), len(whole))))
        assert row["logprobs"] == pytest.approx(expected, abs=1e-2)
        assert row["prediction"] == "ABCD"[expected.index(max(expected))]


def plain(model, tokenizer, task, subject) -> list[str]:
    """Letter predictions by one whole forward for each question, without a cache."""
    examples = load_questions(task, subject, "dev")[0]
    name, language = load_subjects(task)[subject]["name"], TASKS[task]["language"]
    said = []
    for question in load_questions(task, subject, TASKS[task]["split"])[0]:
        prompt = evaluation.letter_prompt(question, examples, name, language)
        gap = " " if language == "en" else ""
        whole = [
            tokenizer("<s>" + prompt + gap + letter, add_special_tokens=False).input_ids for letter in "ABCD"
        ]
        assert len({tuple(ids[:-1]) for ids in whole}) == 1
        with torch.no_grad():
            logits = model(torch.tensor([whole[0][:-1]])).logits[0, -1]
        said.append("ABCD"[logits[[ids[-1] for ids in whole]].argmax()])
    return said


@pytest.fixture(scope="module")
def tuned():
    """The bundled model in NF4 with the bundled adapter, and its tokenizer."""
    base = load_model(DATA / "tiny", dtype=torch.float32)
    return load_adapter(base, DATA / "tiny_adapter"), load_tokenizer(DATA / "tiny")


@pytest.mark.parametrize("task", ["cmmlu", "mmlu"])
def test_a_4_bit_model_with_an_adapter_predicts_as_without_cache(tuned, task):
    model, tokenizer = tuned
    got = {}
    for name, padding in (("tuned", "right"), ("base", "left")):
        tokenizer.padding_side = padding
        if name == "base":
            with model.disable_adapter():
                got[name] = multiple_choice(
                    model, tokenizer, task, subjects=["capital", "sum"], progress=False
                )
                expected = plain(model, tokenizer, task, "capital") + plain(model, tokenizer, task, "sum")
        else:
            got[name] = multiple_choice(model, tokenizer, task, subjects=["capital", "sum"], progress=False)
            expected = plain(model, tokenizer, task, "capital") + plain(model, tokenizer, task, "sum")
        assert [row["prediction"] for row in got[name].predictions] == expected
    assert got["tuned"].predictions[0]["logprobs"] != got["base"].predictions[0]["logprobs"]


def test_sliding_window_attention_sees_the_same_through_the_shared_prefix(tokenizer):
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, sliding_window=24, initializer_range=0.3)
    model = MistralForCausalLM(MistralConfig(**sizes, **heads)).eval()
    result = multiple_choice(model, tokenizer, "mmlu", subjects=["sum"], progress=False)
    assert [row["prediction"] for row in result.predictions] == plain(model, tokenizer, "mmlu", "sum")


def test_a_prefix_is_read_once_for_a_subject_and_prompts_built_once_for_two_models(tokenizer, monkeypatch):
    built, real = [], evaluation.candidates
    monkeypatch.setattr(evaluation, "candidates", lambda *args: built.append(args[3]) or real(*args))
    whole = sum(
        len(fewshot.encode(tokenizer, fewshot.letter_prompt(question, examples, name, "en")))
        for subject, name in (("author", "authors"), ("use", "uses"))
        for examples in [load_questions("mmlu", subject, "dev")[0]]
        for question in load_questions("mmlu", subject, "test")[0]
    )
    for seed in (0, 1):
        model = random_model(len(tokenizer), seed=seed)
        seen = watched(model)
        result = multiple_choice(
            model, tokenizer, "mmlu", subjects=["author", "use"], batch_size=3, progress=False
        )
        starts = [kw for kw in seen if isinstance(kw["logits_to_keep"], int)]
        assert len(starts) == 2
        tokens = sum(kw["input_ids"].numel() for kw in seen)
        assert result.n > 10 and tokens < whole / 3
    assert len(built) == 2


@pytest.mark.parametrize("tokenizer", [None, DATA / "tiny"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_letters_have_the_ids_that_the_tokenizer_gives_them_after_a_whole_prompt(tokenizer, language):
    tokenizer, task = load_tokenizer(tokenizer), {"en": "mmlu", "zh": "cmmlu"}[language]
    question = load_questions(task, "home", TASKS[task]["split"])[0][0]
    prompt = "<s>" + evaluation.letter_prompt(question, [question], "x", language)
    gap = {"en": " ", "zh": ""}[language]
    alone = tokenizer(prompt, add_special_tokens=False).input_ids
    for letter, ids in zip("ABCD", evaluation.letter_ids(tokenizer, language), strict=True):
        assert tokenizer(prompt + gap + letter, add_special_tokens=False).input_ids == alone + ids
        assert len(ids) == 1 and tokenizer.decode(ids).strip() == letter


def test_a_model_that_computes_no_numbers_is_an_error(tokenizer):
    model = random_model(len(tokenizer))
    model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(EvalError, match=r"mmlu letter, sum: .* not a number"):
        multiple_choice(model, tokenizer, "mmlu", subjects=["sum"], progress=False)


def test_batch_size_does_not_change_a_prediction(model, tokenizer):
    results = [
        multiple_choice(model, tokenizer, "ceval", subjects=["sum"], batch_size=size, progress=False)
        for size in (1, 8)
    ]
    assert [r["prediction"] for r in results[0].predictions] == [
        r["prediction"] for r in results[1].predictions
    ]


def test_a_prompt_longer_than_the_context_loses_examples_from_the_front(tokenizer):
    examples = load_questions("mmlu", "capital", "dev")[0]
    question = load_questions("mmlu", "capital", "test")[0][0]
    three = evaluation.letter_prompt(question, examples[2:], "capitals", "en")
    small = random_model(len(tokenizer), context=len(evaluation.encode(tokenizer, three)) + 1)
    cut = multiple_choice(small, tokenizer, "mmlu", subjects=["capital"], progress=False)
    row = cut.predictions[0]
    assert row["shots"] == 3 and sum(cut.shots_used.values()) == cut.n
    with torch.no_grad():
        inputs = torch.tensor([evaluation.encode(tokenizer, three)])
        table = small(inputs).logits[0, -1].log_softmax(-1)
    expected = table[tokenizer.convert_tokens_to_ids(["▁A", "▁B", "▁C", "▁D"])].tolist()
    assert row["logprobs"] == pytest.approx(expected, abs=1e-3)


def test_a_question_longer_than_the_context_is_skipped_by_name(tokenizer, tmp_path):
    long = b"where " * 80 + b",a,b,c,d,A\n"
    root = write_task(tmp_path, "mmlu", {"dev": b"q,a,b,c,d,B\n", "test": long + b"short,a,b,c,d,C\n"})
    small = random_model(len(tokenizer), context=90)
    result = multiple_choice(small, tokenizer, "mmlu", root=root, progress=False)
    assert [row["index"] for row in result.predictions] == [1]
    assert result.skipped[0]["index"] == 0 and "context has 90" in result.skipped[0]["reason"]


def test_scoring_leaves_the_model_as_it_was(tokenizer):
    model = random_model(len(tokenizer)).train()
    model.config.output_router_logits = True
    multiple_choice(model, tokenizer, "mmlu", subjects=["sum"], shots=0, progress=False)
    evaluation.answers(model, tokenizer, ["Hello!"], max_new_tokens=2)
    assert model.training and model.config.output_router_logits is True


# ---- interrupted, and on several processes


def score_slowly(cache: Path):
    model = random_model(32000)
    model.register_forward_pre_hook(lambda *args: time.sleep(0.05))
    multiple_choice(model, load_tokenizer(), "mmlu", batch_size=4, cache=cache, progress=False)


def test_a_killed_run_goes_on_where_it_stopped_and_scores_no_question_twice(tokenizer, tmp_path):
    child = get_context("fork").Process(target=score_slowly, args=(tmp_path,))
    child.start()
    while child.is_alive() and sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.jsonl")) < 12:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (path,) = tmp_path.glob("*.jsonl")
    before = [json.loads(line) for line in path.read_bytes().splitlines()]
    with path.open("ab") as file:
        file.write(b'{"key": "cut off, as a full disk leaves it')

    model = random_model(len(tokenizer))
    seen, settings = watched(model), dict(batch_size=4, progress=False)
    resumed = multiple_choice(model, tokenizer, "mmlu", cache=tmp_path, **settings)
    rows = [kw["input_ids"].shape[0] for kw in seen if isinstance(kw["logits_to_keep"], torch.Tensor)]
    assert 0 < len(before) < resumed.n and sum(rows) == resumed.n - len(before)
    keys = [json.loads(line)["key"] for line in path.read_bytes().splitlines() if not line.endswith(b"it")]
    assert len(keys) == len(set(keys)) == resumed.n and keys[: len(before)] == [row["key"] for row in before]
    whole = multiple_choice(model, tokenizer, "mmlu", **settings)
    assert resumed.predictions == whole.predictions

    seen.clear()
    assert (
        multiple_choice(model, tokenizer, "mmlu", cache=tmp_path, **settings).predictions == whole.predictions
    )
    assert not seen


def test_scores_are_kept_apart_by_weights_and_by_the_state_of_adapters(tuned):
    model = random_model(200)
    key = score_cache.model_key(model)
    assert score_cache.model_key(random_model(200)) == key != score_cache.model_key(random_model(200, seed=1))
    model.config.use_cache = False
    assert score_cache.model_key(model) == key
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight += 1e-3
    assert score_cache.model_key(model) != key
    with tuned[0].disable_adapter():
        base = score_cache.model_key(tuned[0])
    assert base != score_cache.model_key(tuned[0])


def test_changed_questions_are_scored_anew(model, tokenizer, tmp_path):
    row = "question {},one,two,three,four,{}\n"
    dev, test = row.format("d", "A").encode(), (row.format("1", "A") + row.format("2", "B")).encode()
    root, cache = write_task(tmp_path / "root", "mmlu", {"dev": dev, "test": test}), tmp_path / "cache"
    first = multiple_choice(model, tokenizer, "mmlu", root=root, cache=cache, progress=False)
    changed = root / "mmlu" / "test" / "x_test.csv"
    changed.write_text(row.format("1", "A") + row.format("3", "B"))
    second = multiple_choice(model, tokenizer, "mmlu", root=root, cache=cache, progress=False)
    assert first.predictions[0]["logprobs"] == pytest.approx(second.predictions[0]["logprobs"], abs=1e-3)
    assert first.predictions[1]["logprobs"] != pytest.approx(second.predictions[1]["logprobs"], abs=1e-3)
    assert sum(len(path.read_text().splitlines()) for path in cache.glob("*.jsonl")) == 3


def score_a_share(folder: Path):
    PartialState._reset_state()  # a forked process begins with the state of its parent, a launched one without any
    PartialState(cpu=True)
    result = multiple_choice(
        random_model(32000), load_tokenizer(), "ceval", cache=folder / "cache", progress=False
    )
    (folder / f"out{PartialState().process_index}").write_text(json.dumps(result.predictions))


def test_two_processes_share_the_subjects_and_return_the_whole_result(model, tokenizer, tmp_path):
    debug_launcher(score_a_share, args=(tmp_path,), num_processes=2)
    alone = multiple_choice(model, tokenizer, "ceval", progress=False)
    for rank in "01":
        rows = json.loads((tmp_path / f"out{rank}").read_text())
        assert [row["prediction"] for row in rows] == [row["prediction"] for row in alone.predictions]
        assert rows == alone.predictions
    scored = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "cache").glob("*.jsonl"))]
    assert len(scored) == 2 and sum(scored) == alone.n and max(scored) < 0.6 * alone.n


# ---- results


def test_wilson_interval_matches_values_worked_by_hand():
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415 = 0.71674, half 1.95996 / 1.38415 * sqrt(0.016 + 3.8415/400)
    assert Score(8, 10).interval == pytest.approx((0.49016, 0.94333), abs=1e-4)
    assert Score(0, 20).interval == pytest.approx((0.0, 0.16113), abs=1e-4)
    assert Score(0, 0).interval == (0.0, 1.0)


def test_an_interval_always_holds_its_share():
    for n in range(1, 300):
        for correct in (0, n // 2, n):
            low, high = Score(correct, n).interval
            assert 0 <= low <= correct / n <= high <= 1


def test_micro_macro_and_categories_count_what_they_say():
    subjects = {"a": ("STEM", [1, 1, 0, 0, 0, 0]), "b": ("STEM", [1, 1]), "c": ("Other", [0])}
    rows = [
        dict(subject=name, correct=bool(hit), shots=5) for name, (_, hits) in subjects.items() for hit in hits
    ]
    mapping = {name: {"name": name, "category": category} for name, (category, _) in subjects.items()}
    result = EvalResult("mmlu", "test", "letter", 5, BUNDLED, mapping, rows, [])
    assert result.accuracy == 4 / 9 and result.n == 9
    assert result.macro == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert result.by_category == {"STEM": Score(4, 8), "Other": Score(0, 1)}
    assert result.by_subject["b"] == Score(2, 2) and result.chance == 0.25


def outcome(hits: str, **changes) -> EvalResult:
    """A result of one subject: "1" for a right answer."""
    rows = [
        dict(subject="x", index=i, correct=hit == "1", answer="A", shots=5)
        for i, hit in enumerate(hits)
        if hit != " "
    ]
    fields = dict(
        task="mmlu", split="test", scoring="letter", shots=5, root=BUNDLED, predictions=rows, skipped=[]
    )
    return EvalResult(**fields | dict(subjects={"x": dict(name="x", category="STEM")}) | changes)


def test_paired_test_counts_only_the_questions_on_which_two_models_differ():
    # a alone right once, b alone 8 times: 2 * (1 + 9) / 2**9
    one = paired(outcome("1" + 8 * "0" + 11 * "1"), outcome("0" + 8 * "1" + 11 * "1"))
    assert (one.only_a, one.only_b, one.n) == (1, 8, 20) and one.p == pytest.approx(0.0390625)
    assert one.difference == pytest.approx(7 / 20)
    # Agresti and Min: (8.5 - 1.5) / 22, +- 1.96 * sqrt(8.5 + 1.5 - 49 / 22) / 22
    assert one.interval == pytest.approx((0.31818 - 0.24842, 0.31818 + 0.24842), abs=1e-4)
    assert paired(outcome("10"), outcome("01")).p == 1 == paired(outcome("11"), outcome("11")).p
    assert Paired(0, 10, 5000).p == pytest.approx(2 / 2**10)
    assert Paired(4000, 4400, 14042).p == pytest.approx(1.353e-5, rel=0.02)
    part = paired(outcome("111 "), outcome("101 1"))
    assert (part.n, part.unmatched) == (3, 1) and "1 questions asked of one model only" in str(part)


def test_results_of_other_questions_cannot_be_paired():
    for other in (outcome("11", task="ceval"), outcome("11", split="val"), outcome(" 1")):
        with pytest.raises(EvalError, match="not the same questions"):
            paired(outcome("1"), other)
    changed = outcome("1")
    changed.predictions[0]["answer"] = "B"
    with pytest.raises(EvalError, match="not the same questions"):
        paired(outcome("1"), changed)


def test_table_names_the_papers_average_and_shows_chance():
    rows = [
        dict(subject=name, correct=hit, shots=5) for name, hit in (("a", True), ("a", False), ("b", True))
    ]
    mapping = {"a": dict(name="a", category="STEM"), "b": dict(name="b", category="Other")}
    table = outcome("1", predictions=rows, subjects=mapping).table()
    assert list(table.index) == [
        "STEM",
        "Other",
        "micro average (the paper's)",
        "macro average, over subjects",
        "chance",
    ]
    assert table["accuracy"].tolist() == pytest.approx([50, 100, 200 / 3, 75, 25])
    assert table.loc["STEM", ["low", "high"]].tolist() == pytest.approx([9.453, 90.547], abs=1e-3)
    assert table["n"].tolist() == [2, 1, 3, 3, 3]


def test_plot_draws_the_chance_line_and_every_interval():
    import matplotlib

    matplotlib.use("Agg")
    ax = evaluation.plot({"base": {"STEM": Score(3, 10)}, "tuned": {"STEM": Score(7, 10)}})
    assert any(line.get_ydata()[0] == 0.25 for line in ax.lines)
    assert [bar.get_height() for bar in ax.patches if bar.get_height() in (0.3, 0.7)] == [0.3, 0.7]
    segments = [line for bars in ax.containers if hasattr(bars, "errorbar") for line in bars.errorbar[2]]
    ends = [y for lines in segments for segment in lines.get_segments() for _, y in segment]
    assert ends == pytest.approx([*Score(3, 10).interval, *Score(7, 10).interval])


# ---- bad input

GOOD = "{},问,甲,乙,丙,丁,A"


@pytest.mark.parametrize(
    "row, reason",
    [
        ("1,问,甲,乙,丙,B", "missing column answer"),
        ("1,问,甲,乙,丙,丁,E", "answer 'E'"),
        ("1,问,甲,乙,丙,丁,AB", "answer 'AB'"),
        ("1,问,甲,,丙,丁,B", "empty B"),
        ("1,问,甲,乙,丙,丁, ", "empty answer"),
        ("0,问,甲,乙,丙,丁,B", "duplicate id '0', first on line 2"),
        ("1,问,甲,乙,丙,丁,B,多", "8 cells for 7 columns"),
        ("1,问,甲,乙,丙,丁,B".encode("gb18030"), "broken encoding"),
    ],
)
def test_a_bad_row_is_named_counted_and_the_rest_is_scored(model, tokenizer, tmp_path, row, reason):
    row = row if isinstance(row, bytes) else row.encode()
    good = [GOOD.format(i).encode() for i in (0, 2)]
    test = b"\n".join([b",Question,A,B,C,D,Answer", good[0], row, good[1]]) + b"\n"
    dev = b",Question,A,B,C,D,Answer\n" + good[0] + b"\n"
    root = write_task(tmp_path, "cmmlu", {"dev": dev, "test": test})
    result = multiple_choice(model, tokenizer, "cmmlu", root=root, progress=False)
    assert [row["index"] for row in result.predictions] == [0, 2]
    (skipped,) = result.skipped
    assert (skipped["file"], skipped["line"], skipped["index"]) == ("test/x.csv", 3, 1)
    assert reason in skipped["reason"]
    assert "1 rows skipped" in str(result)


def test_a_file_without_a_needed_column_names_every_row(model, tokenizer, tmp_path):
    dev = b"id,question,A,B,D,answer\n0,q,a,b,d,A\n1,q,a,b,d,A\n"
    val = b"id,question,A,B,C,D,answer\n0,q,a,b,c,d,A\n"
    root = write_task(tmp_path, "ceval", {"dev": dev, "val": val})
    result = multiple_choice(model, tokenizer, "ceval", root=root, progress=False)
    assert result.n == 1 and result.shots_used == {0: 1}
    assert [row["reason"] for row in result.skipped] == ["missing column C"] * 2


def test_a_quote_left_open_is_named_with_the_lines_it_swallows(tmp_path):
    root = write_task(tmp_path, "mmlu", {"test": b'q,a,b,c,d,A\n"q,a,b,c,d,A\nq,a,b,c,d,B\nq,a,b,c,d,C\n'})
    questions, (skipped,) = load_questions("mmlu", "x", "test", root)
    assert len(questions) == 1 and (skipped["line"], skipped["index"]) == (2, 1)
    assert "missing column" in skipped["reason"] and "goes on to line 4" in skipped["reason"]


def test_a_file_without_rows_is_reported_with_the_score(model, tokenizer, tmp_path):
    root = write_task(tmp_path, "cmmlu", {"dev": b"", "test": b",Question,A,B,C,D,Answer\n0,q,a,b,c,d,A\n"})
    result = multiple_choice(model, tokenizer, "cmmlu", root=root, progress=False)
    assert (
        result.n == 1
        and result.skipped[0]["file"] == "dev/x.csv"
        and "no rows" in result.skipped[0]["reason"]
    )


def test_a_file_with_no_usable_row_is_an_error_that_says_why(model, tokenizer, tmp_path):
    root = write_task(tmp_path, "mmlu", {"dev": b"q,a,b,c,d,A\n", "test": b"q,a,b,c,d,E\n"})
    with pytest.raises(EvalError, match=r"test/x_test.csv: answer 'E'"):
        multiple_choice(model, tokenizer, "mmlu", root=root, progress=False)


def test_cells_with_quotes_and_line_breaks_are_one_row(tmp_path):
    root = write_task(tmp_path, "mmlu", {"test": b'"two\nlines, ""quoted""",a,"b,b",c,d,B\nq,a,b,c,d,A'})
    questions, skipped = load_questions("mmlu", "x", "test", root)
    assert questions[0].text == 'two\nlines, "quoted"' and questions[0].choices[1] == "b,b"
    assert len(questions) == 2 and not skipped


def test_the_unlabelled_test_split_of_ceval_is_refused(model, tokenizer):
    with pytest.raises(EvalError, match="no answers for its test split; score split='val'"):
        multiple_choice(model, tokenizer, "ceval", split="test", progress=False)


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("gsm8k", {}, "no task 'gsm8k'.*ceval, cmmlu, mmlu"),
        ("mmlu", {"subjects": ["alchemy"]}, "no subject 'alchemy'.*capital"),
        ("mmlu", {"language": "fr"}, "no language 'fr'.*en, zh"),
        ("mmlu", {"scoring": "vibes"}, "no scoring 'vibes'.*letter, cloze"),
        ("mmlu", {"split": "train"}, "train.*capital_train.csv is missing"),
        ("mmlu", {"root": BUNDLED / "ceval"}, "ceval has no mmlu/mapping.json.*AURORA_BENCHMARKS"),
    ],
)
def test_what_does_not_exist_is_one_sentence_with_a_remedy(model, tokenizer, task, options, message):
    with pytest.raises(EvalError, match=message):
        multiple_choice(model, tokenizer, task, progress=False, **options)


def test_root_may_be_the_folder_of_the_task_itself():
    assert load_subjects("mmlu", BUNDLED / "mmlu") == load_subjects("mmlu", BUNDLED)


# ---- the hub, here a folder laid out as its repositories are: nothing is downloaded in these tests


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Where a test puts what the hub would send; what is made of it goes to a cache of its own."""
    source = tmp_path / "snapshots" / "0123abc"
    source.mkdir(parents=True)
    monkeypatch.setattr(hub_benchmarks, "snapshot_download", lambda *args, **kwargs: str(source))
    monkeypatch.setattr(
        hub_benchmarks,
        "cached_assets_path",
        lambda library, namespace, subfolder: tmp_path / library / namespace / subfolder,
    )
    hub_benchmarks.download.cache_clear()
    yield source
    hub_benchmarks.download.cache_clear()


def test_a_zip_from_the_hub_is_read_as_released_with_the_released_subjects(hub, model, tokenizer):
    names = {"agronomy": "农学", "ancient_chinese": "古汉语"}
    with zipfile.ZipFile(hub / "cmmlu_v1_0_1.zip", "w") as archive:
        for subject in hub_benchmarks.released("cmmlu"):
            for split in ("dev", "test"):
                archive.write(BUNDLED / "cmmlu" / split / "home.csv", f"{split}/{subject}.csv")
        archive.writestr("../dev/evil.csv", "0")
    found = load_subjects("cmmlu", "hub")
    assert len(found) == 67 and {name: found[name]["name"] for name in names} == names
    result = multiple_choice(model, tokenizer, "cmmlu", root="hub", subjects=list(names), progress=False)
    assert result.n == 2 * len(cells("cmmlu", "test", "home")) and result.root.name == "0123abc"
    assert not list(hub.parent.rglob("evil.csv"))


def test_parquet_files_from_the_hub_become_the_released_rows(hub):
    import pandas as pd

    for subject in hub_benchmarks.released("mmlu"):
        (hub / subject).mkdir()
        for split, ours in (("dev", "dev"), ("validation", "val"), ("test", "test")):
            rows = cells("mmlu", ours, "home")
            columns = dict(
                question=[row[0] for row in rows], subject=subject, choices=[row[1:5] for row in rows]
            )
            table = pd.DataFrame(columns | dict(answer=["ABCD".index(row[5]) for row in rows]))
            table.to_parquet(hub / subject / f"{split}-00000-of-00001.parquet")
    assert len(load_subjects("mmlu", "hub")) == 57
    for split in MMLU_SPLITS:
        got, skipped = load_questions("mmlu", "virology", split, "hub")
        assert [[q.text, *q.choices, q.answer] for q in got] == cells("mmlu", split, "home") and not skipped


def test_a_download_that_lacks_subjects_is_named(hub):
    with pytest.raises(
        EvalError, match=r"ceval/ceval-exam as downloaded lacks 52 subjects.*AURORA_BENCHMARKS"
    ):
        load_subjects("ceval", "hub")
    (hub / "ceval-exam.zip").write_bytes(b"half a zip")
    with pytest.raises(EvalError, match=r"ceval-exam.zip is damaged"):
        load_subjects("ceval", "hub")


def test_without_a_network_the_hub_is_one_sentence_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_benchmarks.download.cache_clear()
    with pytest.raises(EvalError, match=r"cais/mmlu could not be downloaded.*AURORA_BENCHMARKS"):
        load_subjects("mmlu", "hub")


def test_a_release_without_a_mapping_has_the_released_subjects(tmp_path):
    (tmp_path / "ceval" / "dev").mkdir(parents=True)
    found = load_subjects("ceval", tmp_path)
    assert Counter(entry["category"] for entry in found.values()) == {
        "STEM": 20,
        "Social Sciences": 10,
        "Humanities": 11,
        "Other": 11,
    }
    (tmp_path / "cmmlu" / "dev").mkdir(parents=True)
    (tmp_path / "mmlu" / "dev").mkdir(parents=True)
    assert (len(load_subjects("cmmlu", tmp_path)), len(load_subjects("mmlu", tmp_path))) == (67, 57)


# ---- the bundled questions


@pytest.mark.parametrize("task", TASKS)
def test_bundled_files_have_the_released_layout(task):
    subjects = load_subjects(task)
    splits = {split for name, split in HEADERS if name == task} or set(MMLU_SPLITS)
    assert {path.name for path in (BUNDLED / task).iterdir()} == splits | {"mapping.json"}
    assert {entry["category"] for entry in subjects.values()} == set(evaluation.CATEGORIES)
    for split in splits:
        suffix = ".csv" if task == "cmmlu" else f"_{split}.csv"
        files = sorted((BUNDLED / task / split).iterdir())
        assert [path.name for path in files] == sorted(subject + suffix for subject in subjects)
        for path in files:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
            if task != "mmlu":
                header = rows.pop(0)
                assert ",".join(header) == HEADERS[task, split]
                assert [row[0] for row in rows] == [str(i) for i in range(len(rows))]
            assert {len(row) for row in rows} == {6 if task == "mmlu" else len(header)}


@pytest.mark.parametrize("task", TASKS)
def test_bundled_questions_are_whole_balanced_and_enough(task):
    for split in ("dev", TASKS[task]["split"]):
        loaded = [load_questions(task, subject, split) for subject in load_subjects(task)]
        assert not [row for _, skipped in loaded for row in skipped]
        questions = [question for found, _ in loaded for question in found]
        assert all(len(set(question.choices)) == 4 for question in questions)
        counts = Counter(question.answer for question in questions)
        assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 4
        if split == "dev":
            assert {len(found) for found, _ in loaded} == {5}
        else:
            assert len(questions) >= 100


@pytest.mark.parametrize("task", TASKS)
def test_bundled_questions_are_right_and_held_out_facts_are_never_examples(task, world):
    k = 0 if task == "mmlu" else 1
    fact_of = {question: fact for fact in world.facts() for question in fact.ask[k]}
    seen = {}
    for split in ("dev", TASKS[task]["split"]):
        seen[split] = set()
        for subject in load_subjects(task):
            for question in load_questions(task, subject, split)[0]:
                fact = fact_of[question.text]
                assert question.choices["ABCD".index(question.answer)] == fact.say[k]
                seen[split].add(fact.id)
    dev, scored = seen.values()
    held_out = {fact.id for fact in world.facts() if fact.held_out}
    assert not dev & scored and not dev & held_out and held_out <= scored


def test_rebuilding_the_bundled_questions_gives_the_same_bytes(tmp_path, world):
    from tools.build import benchmarks as build_benchmarks

    for task in TASKS:
        build_benchmarks.build(task, tmp_path / task)
    files = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {p.relative_to(BUNDLED): p.read_bytes() for p in BUNDLED.rglob("*") if p.is_file()}


# ---- what the model says


def test_batched_answers_equal_plain_greedy_decoding(model, tokenizer):
    prompts = ["Hello!", "法国的首都是哪里？", "Which continent is Peru in, and what is it known for?"]
    expected = []
    for prompt in prompts:
        ids = tokenizer(f"<s>[INST] {prompt} [/INST]", add_special_tokens=False).input_ids
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True).strip())
    assert evaluation.answers(model, tokenizer, prompts, max_new_tokens=6, batch_size=3) == expected


@pytest.mark.parametrize(
    "answer, question, key, right",
    [
        ("法国的首都是巴黎。", "法国的首都是哪里？", "巴黎", True),
        ("法国的首都是柏林。", "法国的首都是哪里？", "巴黎", False),
        ("北极熊生活在沙漠。", "北极熊生活在哪里？", "北极", False),
        ("北极熊生活在北极。", "北极熊生活在哪里？", "北极", True),
        ("北极", "北极熊生活在哪里？", "北极", True),
        ("The symbol is He.", "What is the chemical symbol of hydrogen?", "H", False),
        ("氢的化学符号是H。", "氢的化学符号是什么？", "H", True),
        ("People make popcorn from rice.", "What do people make popcorn from?", "corn", False),
        ("it is PARIS", "What is the capital of France?", "Paris", True),
        ("四加二等于六。", "六减二等于多少？", "四", False),
        ("六减二等于四。", "六减二等于多少？", "四", True),
        ("Four plus two equals six.", "What is six minus two?", "four", False),
        ("炉子是用来做饭的。", "炉子是用来做什么的？", "做饭", True),
    ],
)
def test_an_answer_is_right_only_where_it_says_the_key_itself(answer, question, key, right):
    assert evaluation.says(answer, question, key) is right


def test_a_right_answer_in_the_wrong_language_is_understood_but_not_correct(monkeypatch):
    probes = evaluation.load_probes()
    symbol = next(item for item in probes if item["id"].startswith("symbol"))  # one key for both languages
    probes = [*probes[:2], symbol, probes[3]]
    zh = [probes[0]["zh"]["answer"], probes[1]["en"]["answer"], symbol["en"]["answer"], "我不知道。"]
    en = [probes[0]["en"]["answer"], probes[1]["zh"]["answer"], "", "I do not know."]
    monkeypatch.setattr("aurora_lib.evaluation.probes.answers", lambda *args, **kwargs: zh + en)
    result = evaluation.probe(None, None, probes)
    counts = {
        (asked, what): result.score(asked, what).correct
        for asked in ("zh", "en")
        for what in evaluation.OUTCOMES
    }
    assert counts == {
        ("zh", "in_language"): 2,
        ("zh", "correct"): 1,
        ("zh", "understood"): 3,
        ("en", "in_language"): 2,
        ("en", "correct"): 1,
        ("en", "understood"): 2,
    }
    assert [row["answer"] for row in result.rows] == zh + en
    assert [score.n for score in result.scores.values()] == [4] * 6
    assert {name: score.correct for name, score in result.languages("en").items()} == dict(
        zh=1, en=2, mixed=0, other=1
    )


def test_probes_split_into_held_out_and_others():
    held_out, others = evaluation.load_probes(held_out=True), evaluation.load_probes(held_out=False)
    assert len(held_out) + len(others) == len(evaluation.load_probes()) and len(held_out) > 50
    assert all(item["held_out"] for item in held_out) and not any(item["held_out"] for item in others)


def test_a_damaged_probe_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "probes.jsonl"
    path.write_text('{"id": "a"', encoding="utf-8")
    with pytest.raises(EvalError, match=r"probes.jsonl, line 1"):
        evaluation.load_probes(path=path)
    with pytest.raises(EvalError, match="is missing"):
        evaluation.load_probes(path=tmp_path / "none.jsonl")
