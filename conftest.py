"""Two processes test at a time: each has its own folder of runs; no notebook reads what another writes."""

import os
from pathlib import Path

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["AURORA_RUNS"] = str(Path(__file__).parent / "runs" / "tests" / worker)
