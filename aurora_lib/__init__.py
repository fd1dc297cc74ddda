"""aurora_lib: the reusable code of the Aurora course. Begin with `scale = aurora_lib.start("00")`."""

from aurora_lib.scale import Scale, ScaleError, start

__all__ = ["Scale", "ScaleError", "start"]
__version__ = "0.1.0"
