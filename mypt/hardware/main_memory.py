"""Main memory that a process may use: the machine's, less what control groups and limits forbid; glibc's heap."""

import ctypes
import os
import sys
from pathlib import Path

from mypt.planning.memory import GIVEN_BACK, KEPT

GROUPS = Path("/sys/fs/cgroup")
# Control groups: the folder below GROUPS, the files of the limit and of the use. Version 2, then 1.
_VERSIONS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
_UNLIMITED = 2**60  # version 1 writes a number near 2**63


def main_memory() -> tuple[int | None, int | None]:
    """Bytes that this process and its like may have in all, and that are free now; None where it is not known."""
    totals, frees = [_physical()], [_available()]
    for limit, used in _group_limits(Path("/proc/self/cgroup"), GROUPS):
        totals.append(limit)
        frees.append(max(0, limit - used))
    frees.append(_address_space())
    return _least(totals), _least(frees)


def _least(sizes: list[int | None]) -> int | None:
    return min((size for size in sizes if size is not None), default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _available() -> int | None:
    """Bytes that the kernel could hand out without swapping, page cache included."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _group_limits(membership: Path, groups: Path) -> list[tuple[int, int]]:
    """(limit, bytes used) of the process's control group and of those above it, where there is a limit."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        for folder, limit, use in _VERSIONS:
            if folder not in controllers.split(","):
                continue
            place = Path(groups, folder, path.lstrip("/"))
            for group in (place, *place.parents):
                pair = _bytes(group / limit), _bytes(group / use)
                if None not in pair and pair[0] < _UNLIMITED:
                    found.append((pair[0], pair[1] - _reclaimable(group)))
                if group in (groups, groups / folder):
                    break
    return found


def _bytes(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group from inside a container, or "max"
        return None


def _reclaimable(group: Path) -> int:
    """Page cache, which counts as used and is given up for a process that needs it."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError):
        return 0


def _address_space() -> int | None:
    """Bytes that `ulimit -v` leaves."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
    except (ImportError, OSError, ValueError):
        return None


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Let glibc keep up to KEPT bytes at the end of its heap, and serve blocks below GIVEN_BACK bytes from there.

    By itself it returns the end after every step, and the kernel has to map and clear each page again. False where
    there is no glibc, or where the environment sets its allocator.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Either setting ends glibc's own adapting of both, so one alone would be worse than none.
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, GIVEN_BACK) and mallopt(_TRIM_THRESHOLD, KEPT))
