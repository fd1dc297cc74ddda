"""The same questions for lm-evaluation-harness: an independent program to check our scores with.

How to run it: notebooks/lm_evaluation_harness.md.
"""

import json
from pathlib import Path

from aurora_lib.evaluation.benchmarks import LETTERS, TASKS, EvalError, load_questions
from aurora_lib.evaluation.fewshot import letter_prompt
from aurora_lib.evaluation.scores import EvalResult
from aurora_lib.model import batching

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


def export(result: EvalResult, tokenizer, folder: str | Path) -> Path:
    """Write the prompts of a letter `result`, token for token, as the harness's task `aurora_<task>`.

    `<task>.jsonl` has a line per question (`prompt`, `target` 0 to 3, in the order of `result.predictions`),
    and `<task>.yaml` describes it; returns the latter. Raises EvalError for a cloze result, and where this
    tokenizer would read a prompt as other tokens than we do.
    """
    if result.scoring != "letter":
        raise EvalError(f"Only letter scores can be exported, and this one is {result.scoring}.")
    task, language, split = result.task, TASKS[result.task]["language"], TASKS[result.task]["split"]
    scored = {(row["subject"], row["index"]) for row in result.predictions}
    lines = []
    for subject, entry in result.subjects.items():
        examples = load_questions(task, subject, "dev", result.root)[0][: result.shots]
        for question in load_questions(task, subject, split, result.root)[0]:
            if (subject, question.index) not in scored:
                continue
            text = letter_prompt(question, examples, entry["name"], language)
            prompt = tokenizer.bos_token + text  # the harness leaves <s> to the tokenizer, and ours adds none
            if tokenizer(prompt, add_special_tokens=False).input_ids != batching.encode(tokenizer, text):
                raise EvalError(
                    f"{subject} {question.index}: the harness would read other tokens than we do."
                )
            lines.append(json.dumps({"prompt": prompt, "target": LETTERS.index(question.answer)}) + "\n")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    questions, described = folder / f"{task}.jsonl", folder / f"{task}.yaml"
    questions.write_text("".join(lines), encoding="utf-8")
    delimiter = " " if language == "en" else ""
    described.write_text(YAML.format(task=task, questions=questions, delimiter=delimiter), encoding="utf-8")
    return described
