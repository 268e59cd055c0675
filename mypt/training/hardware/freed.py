"""What a step frees on a CPU is kept for the next step, which needs as much again."""

import ctypes
import os
import sys

from mypt.planning.memory import GIVEN_BACK

KEPT = 256 * 2**20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Let glibc keep up to KEPT bytes at the end of its heap, and serve blocks below GIVEN_BACK bytes from there.

    By itself it returns the end after every step, and the kernel has to map and clear each page again. False where
    there is no glibc, or where the environment says something of its allocator.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Either setting ends glibc's own adapting of both, so one alone would be worse than none.
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, GIVEN_BACK) and mallopt(_TRIM_THRESHOLD, KEPT))
