"""`accelerate launch -m aurora_lib.evaluation`: a model on the benchmarks, shared by all processes."""

import argparse

from accelerate import PartialState

from aurora_lib.course import choose
from aurora_lib.evaluation import benchmarks, fewshot, multiple_choice
from aurora_lib.model import find_adapter, load_adapter, load_model, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", choices=list(benchmarks.TASKS), default=list(benchmarks.TASKS))
    parser.add_argument("--scoring", choices=fewshot.SCORING, default="letter")
    parser.add_argument("--shots", type=int, default=5)
    options = parser.parse_args()
    scale = choose()
    state = PartialState(cpu=scale.device == "cpu")
    model = load_model(scale.base_model, **scale.loading | dict(device=str(state.device)))
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    model = load_adapter(model, find_adapter(scale))
    settings = dict(root=scale.benchmarks or "hub", cache=scale.runs / "scores")
    for task in options.task:
        settings |= dict(scoring=options.scoring, shots=options.shots)
        state.print(multiple_choice(model, tokenizer, task, **settings))


if __name__ == "__main__":
    main()
