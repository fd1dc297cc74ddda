"""The questions of notebook 05 for lm-evaluation-harness: an independent program to check our scores with.

    python -m tools.bench.harness --task cmmlu --prompt chat

scores the notebooks' model with its adapter (what notebook 05 has scored is not scored again), and writes
what the model read as a task of the harness. How to run that: notebooks/lm_evaluation_harness.md.
"""

import argparse
import json
from pathlib import Path

from aurora_lib.course import choose
from aurora_lib.evaluation import benchmarks, fewshot, multiple_choice
from aurora_lib.evaluation.evaluate import EvalResult, shown
from aurora_lib.model import batching, find_adapter, load_adapter, load_model, load_tokenizer

YAML = """task: aurora_{name}
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
    parser.add_argument("--prompt", choices=fewshot.FORMS["prompt"], default="chat")
    parser.add_argument("--questions", type=int, help="so many of each subject; all by default")
    options = parser.parse_args()
    scale = choose()
    model = load_adapter(load_model(scale.base_model, **scale.loading), find_adapter(scale))
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    settings = dict(root=scale.benchmarks or "hub", cache=scale.runs / "scores", limit=options.questions)
    result = multiple_choice(model, tokenizer, options.task, prompt=options.prompt, **settings)
    print(result)
    print("task written:", export(result, tokenizer, scale.runs / "harness"))


def export(result: EvalResult, tokenizer, folder: str | Path) -> Path:
    """Write the prompts of a letter `result`, token for token, as the task `aurora_<task>_<prompt>`.

    Its `.jsonl` has a line per question (`prompt`, `target` 0 to 3, in the order of `result.predictions`) and
    its `.yaml` describes that file; returns the latter. Raises
    EvalError where the harness would read other tokens than we do, before a letter or as a letter.
    """
    task, form, bos = result.task, result.form, tokenizer.bos_token
    gap = " " if form.prompt == "chat" or form.language == "en" else ""
    letters = fewshot.letter_ids(tokenizer, form)
    parts, files = ("dev", result.split), {}
    for subject in result.subjects:
        files[subject] = [benchmarks.load_questions(task, subject, part, result.root)[0] for part in parts]
    name, folder = f"{task}_{form.prompt}", Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file, described = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    with file.open("w", encoding="utf-8") as lines:
        for row in result.predictions:
            subject, (dev, questions) = result.subjects[row["subject"]]["name"], files[row["subject"]]
            question = next(question for question in questions if question.index == row["index"])
            examples = shown(dev, result.shots, form.shuffle, question)
            examples = examples[len(examples) - row["shots"] :]
            text = fewshot.letter_prompt(tokenizer, question, examples, subject, form)
            prompt, ours = bos + text.removeprefix(bos), batching.encode(tokenizer, text)
            # the harness adds no <s> to a text that begins with it, and cuts the letter off the whole
            read = [prompt, *(prompt + gap + letter for letter in benchmarks.LETTERS)]
            if tokenizer(read, add_special_tokens=False).input_ids != [
                ours,
                *(ours + ids for ids in letters),
            ]:
                where = f"{row['subject']} {row['index']}"
                raise benchmarks.EvalError(f"{where}: the harness would read other tokens than we do.")
            target = benchmarks.LETTERS.index(question.answer)
            lines.write(json.dumps({"prompt": prompt, "target": target}) + "\n")
    described.write_text(YAML.format(name=name, questions=file, delimiter=gap), encoding="utf-8")
    return described


if __name__ == "__main__":
    main()
