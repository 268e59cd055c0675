"""A cache of folders that were fetched from object stores: below a size limit, the longest unused removed first.

CACHE/DIGEST/NAME is an entry, CACHE/DIGEST.lock its lock: held shared by every process that uses the entry until it
ends, and alone by one that fills or removes it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mypt.errors import DataError
from mypt.files import system_errors
from mypt.terminal import say

try:
    import fcntl
except ImportError:  # Windows: entries are not locked
    fcntl = None

LIMIT = 50.0  # GB
_settings: dict = {"folder": None, "limit": LIMIT}
_held: dict[Path, IO] = {}  # locks of the entries that this process uses


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mypt"


def use_cache(folder: str | None, limit: float = LIMIT) -> None:
    """Set the folder of this process's cache (None: ~/.cache/mypt) and its limit in GB."""
    _settings["folder"], _settings["limit"] = folder, limit


def cached_folder(uri: str, name: str, digest: str, size: int, fill: Callable[[Path], None]) -> Path:
    """The folder CACHE/DIGEST/NAME, filled once; it stays as it is until this process ends.

    Args:
        uri: What it is a copy of, for messages.
        digest: Hex digits that stand for the URI and its content.
        size: Bytes that `fill` will write.
        fill: Called with a folder that may hold what an earlier call left when it was killed.

    Raises:
        DataError: There is no room for it below the limit.
        MyPTError, OSError: As `fill`.
    """
    root, limit = Path(_settings["folder"] or default_folder()).absolute(), _settings["limit"]
    folder = root / digest / name
    if folder in _held:
        return folder
    root.mkdir(parents=True, exist_ok=True)
    lock = open(root / f"{digest}.lock", "a")  # noqa: SIM115 - held until the process ends
    try:
        announced = False
        while True:
            if folder.is_dir():
                _lock(lock, shared=True)
                if folder.is_dir():  # not removed meanwhile
                    break
                _unlock(lock)
            elif _lock(lock, wait=False):
                if not folder.is_dir():
                    with system_errors(folder):
                        _fetch(root, folder, uri, size, limit, fill)
            else:  # which keeps its lock until it ends, shared as soon as the folder is there
                if not announced:
                    say(f"waiting for another process that fetches {uri}")
                announced = True
                time.sleep(0.2)
        os.utime(lock.name)
    except BaseException:
        lock.close()
        raise
    _held[folder] = lock
    return folder


def _fetch(root: Path, folder: Path, uri: str, size: int, limit: float, fill: Callable[[Path], None]) -> None:
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    with open(root / ".fetching.lock", "a") as lock:  # one fetches at a time, so that all keep the limit
        if not _lock(lock, wait=False):
            say(f"waiting for another process that fetches into {root}")
            _lock(lock)
        _make_room(root, uri, size, limit, keep=folder.parent)
        fill(part)
    part.replace(folder)


def _make_room(root: Path, uri: str, size: int, limit: float, keep: Path) -> None:
    """Remove entries that no process uses, the longest unused first, until `size` bytes more are below the limit."""
    advice = "raise --cache-limit, or name a folder on a larger disk with --cache-dir"
    if size > limit * 1e9:
        raise DataError(f"{uri} has {size / 1e9:,.3g} GB, and the cache may hold {limit:g} GB; {advice}")
    while _bytes(root, keep) + size > limit * 1e9:
        if not _remove_oldest(root, keep):
            used = _bytes(root, keep) / 1e9
            raise DataError(
                f"{uri} has {size / 1e9:,.3g} GB, and of the {limit:g} GB of the cache {root} other runs use "
                f"{used:,.3g}; {advice}"
            )


def _remove_oldest(root: Path, keep: Path) -> bool:
    """Whether an entry could be removed."""
    locks = [path for path in root.glob("*.lock") if path.with_suffix("").is_dir() and path.with_suffix("") != keep]
    for path in sorted(locks, key=lambda path: path.stat().st_mtime):
        with open(path, "a") as lock:
            if _lock(lock, wait=False):
                entry = path.with_suffix("")
                for folder in [one for one in entry.iterdir() if one.suffix != ".part" and one.is_dir()]:
                    folder.rename(folder.with_name(f"{folder.name}.part"))  # what a kill leaves is not whole
                shutil.rmtree(entry, ignore_errors=True)
                return not entry.exists()
    return False


def _bytes(root: Path, without: Path) -> int:
    """Bytes on the disk below `root`, a file that has several names once."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != without]
        for name in names:
            status = os.stat(os.path.join(folder, name))
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def _lock(file: IO, *, shared: bool = False, wait: bool = True) -> bool:
    """Take the lock of an open file, or change it; False if another process has it and it is not waited for."""
    if fcntl is None:
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _unlock(file: IO) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
