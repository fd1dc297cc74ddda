"""The questions of notebook 05 for lm-evaluation-harness: an independent program to check our scores with.

    python -m tools.bench.harness --task cmmlu

scores the notebooks' model with its adapter (what notebook 05 has scored is not scored again), and writes
what the model read as a task of the harness. How to run that: notebooks/lm_evaluation_harness.md.
"""

import argparse
import json
from pathlib import Path

from aurora_lib.course import choose
from aurora_lib.evaluation import benchmarks, fewshot, multiple_choice
from aurora_lib.evaluation.evaluate import EvalResult
from aurora_lib.model import batching, find_adapter, load_adapter, load_model, load_tokenizer

YAML = """task: aurora_{task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: target
target_delimiter: "{delimiter}"
metric_list:
  - metric: acc
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(benchmarks.TASKS), default="cmmlu")
    options = parser.parse_args()
    scale = choose()
    model = load_adapter(load_model(scale.base_model, **scale.loading), find_adapter(scale))
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    settings = dict(root=scale.benchmarks or "hub", cache=scale.runs / "scores")
    result = multiple_choice(model, tokenizer, options.task, **settings)
    print(result)
    print("task written:", export(result, tokenizer, scale.runs / "harness"))


def export(result: EvalResult, tokenizer, folder: str | Path) -> Path:
    """Write the prompts of a letter `result`, token for token, as the harness's task `aurora_<task>`.

    `<task>.jsonl` has a line per question (`prompt`, `target` 0 to 3, in the order of `result.predictions`),
    and `<task>.yaml` describes it; returns the latter. Raises EvalError where this tokenizer would read a
    prompt as other tokens than we do.
    """
    task, language = result.task, benchmarks.TASKS[result.task]["language"]
    questions, examples = {}, {}
    for subject in result.subjects:
        split = benchmarks.TASKS[task]["split"]
        examples[subject] = benchmarks.load_questions(task, subject, "dev", result.root)[0][: result.shots]
        for question in benchmarks.load_questions(task, subject, split, result.root)[0]:
            questions[subject, question.index] = question
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file, described = folder / f"{task}.jsonl", folder / f"{task}.yaml"
    with file.open("w", encoding="utf-8") as lines:
        for row in result.predictions:
            subject, question = row["subject"], questions[row["subject"], row["index"]]
            shots = examples[subject][len(examples[subject]) - row["shots"] :]
            text = fewshot.letter_prompt(question, shots, result.subjects[subject]["name"], language)
            prompt = tokenizer.bos_token + text  # the harness leaves <s> to the tokenizer, and ours adds none
            if tokenizer(prompt, add_special_tokens=False).input_ids != batching.encode(tokenizer, text):
                where = f"{subject} {question.index}"
                raise benchmarks.EvalError(f"{where}: the harness would read other tokens than we do.")
            target = benchmarks.LETTERS.index(question.answer)
            lines.write(json.dumps({"prompt": prompt, "target": target}) + "\n")
    delimiter = " " if language == "en" else ""
    described.write_text(YAML.format(task=task, questions=file, delimiter=delimiter), encoding="utf-8")
    return described


if __name__ == "__main__":
    main()
