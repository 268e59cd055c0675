"""Fetch windows of tokens from shard files, and the policy that suits a split: its size, free memory, file system."""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.files import file_system, is_network
from mypt.hardware.main_memory import main_memory

BLOCK_TOKENS = 65_536  # 128 KiB as uint16: a disk's or a server's cost per request is small against reading that much
POOL_BLOCKS = 64  # blocks whose windows are shuffled together
_SAMPLED = 4  # windows by which `Mapped.prefetch` finds out whether the page cache has them already
_MAP_FIXED = 0x10  # Linux, macOS and the BSDs agree; Python's mmap does not name it


class InMemory:
    """All tokens in one array, which has no shard boundaries; read here, once."""

    def __init__(self, paths: list[Path], tokens: list[int], dtype: np.dtype):
        self.tokens = np.empty(sum(tokens), dtype)
        self.parts = np.split(self.tokens, np.cumsum(tokens)[:-1])  # of each shard
        for path, part in zip(paths, self.parts, strict=True):
            with open(path, "rb", buffering=0) as file:
                view, filled = memoryview(part).cast("B"), 0
                while got := file.readinto(view[filled:]):
                    filled += got
            if filled < part.nbytes:
                raise _truncated(path)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int64 (n,) -> (n, length): a copy."""
        return _overlapping(self.tokens, length)[starts]

    def prefetch(self, starts: np.ndarray, length: int) -> None:
        """Nothing is left to fetch."""


class _Shards:
    """The file, and the position in it, of each token of the stream."""

    def __init__(self, paths: list[Path], tokens: list[int], dtype: np.dtype):
        self.paths, self.dtype = paths, dtype
        self.ends = np.cumsum(tokens)
        self.begins = self.ends - tokens
        self._end_list = self.ends.tolist()  # numpy is slow on single numbers
        self._written = [os.stat(path).st_mtime_ns for path in paths]

    def open(self, shard: int) -> _OpenFile:
        """The file of a shard. Hold it while it is read: it is closed when others are opened."""
        return _open(self.paths[shard], self._written[shard])

    def pieces(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """A window as (shard, first token in it, tokens), over as many shards as it takes."""
        shard = bisect_right(self._end_list, start)
        while length:
            count = min(length, self._end_list[shard] - start)
            yield shard, start - (self._end_list[shard - 1] if shard else 0), count
            start, length, shard = start + count, length - count, shard + 1


class Mapped(_Shards):
    """Every shard mapped into one range of addresses, so that one fancy index copies a whole micro-batch.

    The system reads what is touched, and no more (random advice); `prefetch` asks for it in good time. A file that
    is cut short while it is mapped kills the process (SIGBUS).
    """

    def __init__(self, paths: list[Path], tokens: list[int], dtype: np.dtype):
        super().__init__(paths, tokens, dtype)
        page = mmap.ALLOCATIONGRANULARITY
        sizes = [-(-count * dtype.itemsize // page) * page for count in tokens]  # whole pages
        bases = np.cumsum([0, *sizes[:-1]])
        self._memory = mmap.mmap(-1, sum(sizes), mmap.MAP_PRIVATE | mmap.MAP_ANON, mmap.PROT_READ)
        self._tokens = np.frombuffer(self._memory, dtype)
        for path, count, base in zip(paths, tokens, bases.tolist(), strict=True):
            _map_file(path, self._tokens.ctypes.data + base, count * dtype.itemsize)
        self._memory.madvise(mmap.MADV_RANDOM)
        self._shift = bases // dtype.itemsize - self.begins  # place in memory - place in the stream

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int64 (n,) -> (n, length): a copy."""
        owners = self.ends.searchsorted(starts, "right")
        places = starts + self._shift[owners]
        crossing = (starts > self.ends[owners] - length).nonzero()[0]
        places[crossing] = 0
        windows = _overlapping(self._tokens, length)[places]
        for row in crossing.tolist():
            filled = 0
            for shard, first, count in self.pieces(int(starts[row]), length):
                place = int(first + self.begins[shard] + self._shift[shard])
                windows[row, filled : filled + count] = self._tokens[place : place + count]
                filled += count
        return windows

    def prefetch(self, starts: np.ndarray, length: int) -> None:
        """Ask for windows that will be read soon, unless a sample of them is in the page cache already."""
        owners = self.ends.searchsorted(starts, "right")
        sample = slice(None, None, -(-len(starts) // _SAMPLED))
        offsets = (starts - self.begins[owners])[sample] * self.dtype.itemsize
        if all(self._is_cached(shard, at) for shard, at in zip(owners[sample], offsets, strict=True)):
            return
        for begin in ((starts + self._shift[owners]) * self.dtype.itemsize).tolist():
            page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            end = min(begin + length * self.dtype.itemsize, len(self._memory))
            self._memory.madvise(mmap.MADV_WILLNEED, page, end - page)

    def _is_cached(self, shard: int, offset: int) -> bool:
        """Whether a byte of a file comes from memory at once; mincore does not report it for another user's file."""
        try:
            return os.preadv(self.open(shard).number, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except (OSError, AttributeError):  # not in memory, or deleted since; a system without RWF_NOWAIT
            return False


class Pread(_Shards):
    """Read calls: a file that is cut short or replaced under a running job is an error that names it.

    blocks: read whole blocks of consecutive windows and keep a bit more than one pool of them, for `order: blocks`.
    """

    def __init__(self, paths: list[Path], tokens: list[int], dtype: np.dtype, blocks: bool = False):
        super().__init__(paths, tokens, dtype)
        self.blocks = blocks
        self.bytes_read = 0
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int64 (n,) -> (n, length): a copy."""
        windows = np.empty((len(starts), length), self.dtype)
        if not self.blocks:
            for window, start in zip(windows, starts.tolist(), strict=True):
                window[:] = self._read(start, length)
            return windows
        stride = length - 1  # windows overlap by one token
        span = max(1, BLOCK_TOKENS // stride) * stride
        firsts = starts - (starts - starts % stride) % span  # starts % stride: the phase, where the first block begins
        for window, start, first in zip(windows, starts.tolist(), firsts.tolist(), strict=True):
            window[:] = self._block(first, span + 1)[start - first : start - first + length]
        return windows

    def prefetch(self, starts: np.ndarray, length: int) -> None:
        """Network file systems take no advice."""

    def _block(self, first: int, length: int) -> np.ndarray:
        key = (first, length)
        if key not in self._kept:
            self._kept[key] = self._read(first, min(length, int(self.ends[-1]) - first))
            if len(self._kept) > POOL_BLOCKS + POOL_BLOCKS // 8:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _read(self, start: int, length: int) -> np.ndarray:
        parts = [self._read_piece(*piece) for piece in self.pieces(start, length)]
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), self.dtype)

    def _read_piece(self, shard: int, first: int, count: int) -> bytes:
        size, offset = count * self.dtype.itemsize, first * self.dtype.itemsize
        try:
            file = self.open(shard)
            data = os.pread(file.number, size, offset)
            while len(data) < size and (more := os.pread(file.number, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise DataError(f"shard {self.paths[shard]} cannot be read any more ({error.strerror})") from None
        if len(data) < size:
            raise _truncated(self.paths[shard])
        if file.written != self._written[shard]:  # files are opened when they are needed, by their names
            raise DataError(f"shard {self.paths[shard]} was replaced since this process began; restore it")
        self.bytes_read += size
        return data


class _OpenFile:
    """A file descriptor that is closed with the last reference to it."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)
        self.written = os.fstat(self.number).st_mtime_ns
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)  # read what is asked for, no more

    def __del__(self, close=os.close):  # at the interpreter's end `os` may be gone before
        if hasattr(self, "number"):
            close(self.number)


@lru_cache(maxsize=64)  # of all readers of the process: far below any limit on open files
def _open(path: Path, written: int) -> _OpenFile:
    """written: the time at which the reader knows the file, since another may have taken its name."""
    return _OpenFile(path)


def _overlapping(tokens: np.ndarray, length: int) -> np.ndarray:
    """View (n,) tokens as their n - length + 1 windows, (n - length + 1, length)."""
    shape = (len(tokens) - length + 1, length)
    return np.ndarray(shape, tokens.dtype, tokens, strides=(tokens.itemsize, tokens.itemsize))


def _map_file(path: Path, address: int, size: int) -> None:
    """Map a file over reserved addresses. Python's mmap would keep a file open for each: too many at 1,000 shards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        if _libc().mmap(address, size, mmap.PROT_READ, flags, descriptor, 0) != address:
            raise DataError(f"shard {path} cannot be mapped ({os.strerror(ctypes.get_errno())}); use reading: pread")
    finally:
        os.close(descriptor)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    return libc


def _truncated(path: Path) -> DataError:
    return DataError(f"shard {path} ends before it should: it was cut short since it was opened; restore it")


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
        # A page fault on a network file system can hang or kill the process; a read call returns an error.
        chosen = "pread" if is_network(system) or blocks or not _can_map(files) else "readahead"
    how = "read in whole blocks" if chosen == "pread" and blocks else _HOW[chosen]
    return chosen, f"{_human(size)} on {system}, {how}{', as asked' if asked == chosen else ''}"


def available_memory() -> int:
    """Bytes that can be taken without swapping; a quarter of all where the system does not report them."""
    total, free = main_memory()
    return (total or 0) // 4 if free is None else free


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
