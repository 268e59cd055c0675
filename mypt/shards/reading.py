"""Which reading policy suits a split: how large it is against free memory, and what it lies on."""

import os
from contextlib import suppress
from pathlib import Path

from mypt.errors import DataError
from mypt.files import file_system, is_network

READINGS = ("auto", "ram", "readahead", "pread")
# 512 MiB are read and checked in about a second, and eight processes on a machine take at most half of what is free.
RAM_LIMIT, RAM_SHARE = 1 << 29, 16
_HOW = {
    "ram": "read into memory, checksums verified",
    "readahead": "read ahead (random advice)",
    "pread": "read call by call",
}


def choose_reading(
    directory: Path, size: int, asked: str = "auto", blocks: bool = False, files: int = 1
) -> tuple[str, str]:
    """The policy for a split of `size` bytes, and why: ("readahead", "20.0 GB on ext4, read ahead (random advice)").

    blocks: the order is that of blocks, which are read as wholes. files: how many hold the split.
    Raises DataError for a policy that there is not, or not on this system.
    """
    if asked not in READINGS:
        raise DataError(f"reading {asked!r} is none of {', '.join(READINGS)}")
    if not hasattr(os, "pread"):  # Windows
        if asked not in ("auto", "ram"):
            raise DataError(f"reading {asked} needs Linux or macOS; leave it at auto")
        asked = "ram"
    system = file_system(directory)
    chosen = asked
    if asked == "auto" and size <= min(RAM_LIMIT, available_memory() // RAM_SHARE):
        chosen = "ram"
    elif asked == "auto":
        # A page fault behind a network can hang or kill the process; a read call returns an error.
        chosen = "pread" if is_network(system) or blocks or not _can_map(files) else "readahead"
    how = "read in whole blocks" if chosen == "pread" and blocks else _HOW[chosen]
    return chosen, f"{_human(size)} on {system}, {how}{', as asked' if asked == chosen else ''}"


def available_memory() -> int:
    """Bytes that can be taken without swapping; the container's limit where there is one."""
    memory = 0
    with suppress(OSError):
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        memory = int(facts["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # "max": no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if not memory and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return memory


def _can_map(files: int) -> bool:
    """Whether a process may map so many files more and keep half of what Linux grants it for everything else."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        mapped = Path("/proc/self/maps").read_bytes().count(b"\n")
    except (OSError, ValueError):
        return True
    return mapped + files <= limit // 2


def _human(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:,.1f} {unit}" if unit != "bytes" else f"{size} bytes"
        size /= 1000
    return f"{size:,.1f} GB"
