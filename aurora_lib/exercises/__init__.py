"""The notebooks' exercises: `check` says what is likely wrong with an answer, or that it is right.

Read `checking` first, which says how a checker is written; then one module of checkers a notebook.
"""

import pkgutil
from importlib import import_module

from aurora_lib.exercises.checking import EXERCISES, check, verdict

for module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")  # each registers its checkers
