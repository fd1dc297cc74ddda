"""How an answer is checked: say what is likely wrong, greet an untouched stub (`...`), and raise nothing.

A checker takes the answer and yields, look by look, None or a sentence that helps; the first one is told.
Typical mistakes are known by their results, `{sentence: result}`. Exercises that ask for one number have no
checker of their own: they are tables in `numbers.toml`.
"""

import copy
import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path

import torch

EXERCISES: dict[str, "exercise"] = {}


@dataclass
class exercise:
    """Registers the checker it decorates: "notebook.number", difficulty 1 to 3, minutes, what it trains."""

    id: str
    difficulty: int
    minutes: int
    trains: str

    def __call__(self, checker: Callable[[object], Iterator[str | None]]):
        self.checker = checker
        EXERCISES[self.id] = self
        return checker


class Untouched(Exception):
    """The answer is still the stub."""


def check(id: str, answer) -> None:
    """Print what the checker of exercise `id` says of `answer`. See `verdict`."""
    print(verdict(id, answer)[1])


def verdict(id: str, answer) -> tuple[str, str]:
    """("untouched" | "wrong" | "right", what is told). Raises KeyError for an unknown exercise only."""
    task = EXERCISES[id]
    try:
        answer = Watched(answer) if callable(answer) else plain(answer)
        if answer is ...:
            raise Untouched
        problem = next(filter(None, task.checker(answer)), None)
    except Untouched:
        about = f"{'★' * task.difficulty}, {task.minutes} min, trains: {task.trains}"
        return "untouched", f"Exercise {id} ({about}). Replace the `...` and run again."
    except Exception as error:
        problem = trouble(answer, error)
    if problem:
        if "_" not in problem.split()[0]:  # a name stays as it is
            problem = problem[0].upper() + problem[1:]
        return "wrong", f"Exercise {id}: not yet. {problem}"
    return "right", f"Exercise {id}: right! ✓"


class Watched:
    """A learner's function: it gets copies, and remembers whether it was running and what it returned."""

    def __init__(self, function):
        self.function, self.running, self.value = function, False, None

    def __call__(self, *args):
        args = copy.deepcopy(args)  # an answer may change what it is given
        self.running = True
        self.value = plain(self.function(*args))
        self.running = False
        if self.value is ...:
            raise Untouched
        return self.value


def trouble(answer, error: Exception) -> str:
    """What to say of `error`: the answer raised it, or gave a checker something it cannot look at."""
    if not isinstance(answer, Watched):
        return f"a {type(answer).__name__} is not what is asked for ({error})."
    if answer.running:
        return f"your answer raised {type(error).__name__}: {error}"
    if answer.value is None:
        return "your function returned None. Is a `return` missing?"
    kind = type(answer.value).__name__
    return f"your function returned a {kind}, which is not what is asked for ({error})."


def normal(*shape: int) -> torch.Tensor:
    """Random numbers that are the same at every check; the notebook's own random numbers stay as they are."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def plain(answer):
    """A tensor of one element as a Python number, anything else as it is."""
    return answer.item() if isinstance(answer, torch.Tensor) and answer.numel() == 1 else answer


def close(a, b, tolerance: float = 1e-5) -> bool:
    """Whether two numbers or tensors (shapes too) agree, within an absolute tolerance."""
    a, b = (torch.as_tensor(value, dtype=torch.float32) for value in (a, b))
    return a.shape == b.shape and torch.allclose(a, b, atol=tolerance)


def compare(made, right, mistakes: dict[str, object], otherwise: str | None = None, same=close) -> str | None:
    """None where `made` is `same` as `right`, else the sentence of the mistake that it is, or `otherwise`."""
    if same(made, right):
        return None
    return next((why for why, wrong in mistakes.items() if same(made, wrong)), otherwise)


def number(answer, right: float, mistakes: dict[str, float], tolerance: float = 1e-3) -> str | None:
    """`compare` of two numbers, within a relative tolerance; for anything but a number it says so."""
    if isinstance(answer, Watched):
        return "a number is wanted, and this is a function. Call it."
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return f"a number is wanted, and this is a {type(answer).__name__}."
    too = "small" if answer < right else "large"
    otherwise = f"{float(answer):g} is too {too}. Write out the formula term by term."
    return compare(answer, right, mistakes, otherwise, lambda a, b: math.isclose(a, b, rel_tol=tolerance))


def _one_number(answer, right, mistakes, tolerance=1e-3, unit=None):
    """The checker of an exercise in `numbers.toml`; a count is taken for a number of `unit`s too."""
    if unit and isinstance(answer, Real) and answer > unit / 1000:
        answer = answer / unit
    yield number(answer, right, {why: wrong for wrong, why in mistakes}, tolerance)


_numbers = Path(__file__).with_name("numbers.toml").read_text(encoding="utf-8")
for _id, _about in tomllib.loads(_numbers).items():
    _task = exercise(_id, *(_about.pop(name) for name in ("difficulty", "minutes", "trains")))
    _task(partial(_one_number, **_about))
