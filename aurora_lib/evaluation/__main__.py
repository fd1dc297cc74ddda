"""`accelerate launch -m aurora_lib.evaluation`: a model on the benchmarks."""

import argparse

from accelerate import PartialState

from aurora_lib.evaluation.benchmarks import TASKS
from aurora_lib.evaluation.evaluate import multiple_choice


def main() -> None:
    """`accelerate launch -m aurora_lib.evaluation`: a model on the benchmarks, its questions shared by all processes."""
    from aurora_lib.course.scale import choose
    from aurora_lib.model.adapters import find_adapter, load_adapter
    from aurora_lib.model.nf4 import load_model
    from aurora_lib.model.tokenizer import load_tokenizer

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--scoring", choices=["letter", "cloze"], default="letter")
    parser.add_argument("--shots", type=int, default=5)
    options = parser.parse_args()
    scale = choose()
    state = PartialState(cpu=scale.device == "cpu")
    model = load_model(scale.base_model, **scale.loading | dict(device=str(state.device)))
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    model = load_adapter(model, find_adapter(scale))
    for task in options.task:
        settings = dict(scoring=options.scoring, shots=options.shots, cache=scale.runs / "scores")
        result = multiple_choice(model, tokenizer, task, root=scale.benchmarks or "hub", **settings)
        state.print(result)


if __name__ == "__main__":
    main()
