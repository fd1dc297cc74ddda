"""aurora_lib: the reusable code of the Aurora course. Begin with `scale = aurora_lib.start("00")`."""

import logging
import os

if os.environ.get("AURORA_SCALE") not in ("mid", "full"):
    # The tiny model's matrices are small: one thread is as fast as two, and on a busy machine much faster.
    # Results then do not depend on the number of cores. torch and bitsandbytes read this on import.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from aurora_lib.course import Scale, ScaleError, start

# On import bitsandbytes warns that an optional CPU kernel of the hub is missing; the course does not need it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
