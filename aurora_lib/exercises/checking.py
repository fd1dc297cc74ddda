"""Checkers for the notebooks' exercises: they say what is likely wrong, greet an untouched stub, and raise nothing.

A stub is `...`, as a value or as what a function returns. A checker takes the answer and returns None when it is right,
else a sentence that helps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch


@dataclass(frozen=True)
class Exercise:
    """One exercise: difficulty 1 to 3, expected minutes, what it trains, and its checker."""

    id: str
    difficulty: int
    minutes: int
    trains: str
    checker: Callable[[object], str | None]


EXERCISES: dict[str, Exercise] = {}


def exercise(id: str, difficulty: int, minutes: int, trains: str):
    """Register the decorated checker under `id` ("notebook.number")."""

    def register(checker):
        EXERCISES[id] = Exercise(id, difficulty, minutes, trains, checker)
        return checker

    return register


class Untouched(Exception):
    pass


def check(id: str, answer) -> None:
    """Print what the checker of exercise `id` says of `answer`. See `verdict`."""
    print(verdict(id, answer)[1])


def verdict(id: str, answer) -> tuple[str, str]:
    """("untouched" | "wrong" | "right", what to tell the learner).

    Raises KeyError for an exercise that does not exist; nothing an answer does raises.
    """
    task = EXERCISES[id]
    answer = Watched(answer) if callable(answer) else answer
    try:
        if answer is ...:
            raise Untouched
        problem = task.checker(answer)
    except Untouched:
        about = f"{'★' * task.difficulty}, {task.minutes} min, trains: {task.trains}"
        return "untouched", f"Exercise {id} ({about}). Replace the `...` and run again."
    except Exception as error:
        problem = _trouble(answer, error)
    if problem:
        starts_with_a_name = "_" in problem.split()[0]
        told = problem if starts_with_a_name else problem[0].upper() + problem[1:]
        return "wrong", f"Exercise {id}: not yet. {told}"
    return "right", f"Exercise {id}: right! ✓"


class Watched:
    """A learner's function: notices an untouched stub, and remembers whether it was running and what it returned."""

    def __init__(self, function):
        self.function, self.running, self.value = function, False, None

    def __call__(self, *args):
        self.running = True
        self.value = self.function(*args)
        self.running = False
        if self.value is ...:
            raise Untouched
        return self.value


def _trouble(answer, error: Exception) -> str:
    """What to say of `error`: the learner's function raised it, or gave a checker something it cannot look at."""
    if not isinstance(answer, Watched):
        return f"a {type(answer).__name__} is not what is asked for ({error})."
    if answer.running:
        return f"your answer raised {type(error).__name__}: {error}"
    if answer.value is None:
        return "your function returned None. Is a `return` missing?"
    return (
        f"your function returned a {type(answer.value).__name__}, which is not what is asked for ({error})."
    )


def plain(answer):
    """A tensor of one element as a Python number, anything else as it is."""
    return answer.item() if isinstance(answer, torch.Tensor) and answer.numel() == 1 else answer


def number(answer, right: float, mistakes: dict[float, str], tolerance: float = 1e-3) -> str | None:
    """Compare a number with the right one and with the results of typical mistakes, all within a relative tolerance."""
    answer = plain(answer)
    if isinstance(answer, Watched):
        return "a number is wanted, and this is a function. Call it."
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return f"a number is wanted, and this is a {type(answer).__name__}."
    answer = float(answer)
    if math.isclose(answer, right, rel_tol=tolerance):
        return None
    for value, why in mistakes.items():
        if math.isclose(answer, value, rel_tol=tolerance):
            return why
    return f"{answer:g} is too {'small' if answer < right else 'large'}. Write out the formula term by term."


def close(a, b: torch.Tensor) -> bool:
    a = torch.as_tensor(a, dtype=torch.float32)
    return a.shape == b.shape and torch.allclose(a, b.float(), atol=1e-5)
