"""What the course asks of the machine: the memory it used, and files that are there whole or not at all."""

import sys
from pathlib import Path

import psutil

GIB = 2**30


def peak_rss() -> float:
    """Highest resident memory of this process so far, in GiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB  # macOS counts bytes, Linux KiB


def write_whole(path: Path, text: str) -> Path:
    """Write `text` (UTF-8) beside `path`, then put it there: a kill or a full disk leaves the old file.

    Makes the folder. Raises OSError where the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        return unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
