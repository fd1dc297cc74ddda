"""Two processes test at a time: each has a folder of runs of its own, so that no notebook reads what another writes."""

import os
from pathlib import Path

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["AURORA_RUNS"] = str(Path(__file__).parent / "runs" / "tests" / worker)
