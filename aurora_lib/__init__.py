"""aurora_lib: the reusable code of the Aurora course. Begin with `scale = aurora_lib.start("00")`."""

import logging

from aurora_lib.scale import Scale, ScaleError, start

# On import bitsandbytes warns that an optional CPU kernel of the hub is missing; the course neither needs nor fetches it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["Scale", "ScaleError", "start"]
__version__ = "0.1.0"
