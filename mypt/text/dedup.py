"""Deduplicate texts exactly by 64-bit hashes, in memory that hardly grows with their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import xxhash

BUFFER = 1 << 21  # hashes that are sorted at once: about 130 MB


# The hash of a document's UTF-8 bytes, an int: two of 64 million documents collide with a chance of 1 in 9,000.
text_hash = xxhash.xxh3_64_intdigest


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): uint64 -> uint64, every input bit moves every output bit."""
    mixed = value >> np.uint64(30)
    mixed ^= value
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


class Marks:
    """One bit for each of `size` items; `marks[start:stop]` is bool (stop - start,)."""

    def __init__(self, size: int) -> None:
        self._size, self._bits = size, np.zeros((size + 7) // 8, dtype=np.uint8)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, items: slice) -> np.ndarray:
        start, stop, _ = slice(items.start, items.stop).indices(self._size)
        first = start // 8
        bits = np.unpackbits(self._bits[first : (stop + 7) // 8], bitorder="little").view(bool)
        return bits[start - 8 * first : max(start, stop) - 8 * first]

    def count(self) -> int:
        """The number of marked items."""
        return int(np.bitwise_count(self._bits).sum(dtype=np.int64))

    def mark(self, items: np.ndarray) -> None:
        """Mark `items`, int64 (n,), ascending."""
        if len(items):
            places, bits = items >> 3, np.left_shift(1, items & 7).astype(np.uint8)
            starts = np.flatnonzero(np.diff(places, prepend=-1))
            self._bits[places[starts]] |= np.bitwise_or.reduceat(bits, starts)


def first_occurrences(chunks: Iterable[np.ndarray], scratch: Path) -> Marks:
    """Mark the items to keep, so that each hash occurs once and its first item wins.

    `chunks` are uint64 (n,), in the order of the items. More than 2 million hashes go through 256 files in the folder
    `scratch` (16 bytes per hash, removed at the end), by their top 8 bits; each file is sorted for itself.
    Memory: about 130 MB, the distinct hashes of one file and one bit per item.
    """
    with Partitions(scratch) as partitions:
        marks = Marks(partitions.add_numbered(chunks))
        for blocks in partitions:
            seen: list[np.ndarray] = []
            for hashes, items in blocks:
                values, places = _firsts(hashes)
                first = np.zeros(len(hashes), dtype=bool)
                first[places] = True
                first &= ~_among(seen, hashes)
                marks.mark(items[first])
                seen.append(values)
    return marks


def shared(first: Iterable[np.ndarray], second: Iterable[np.ndarray], scratch: Path) -> Marks:
    """Mark the items of `second` whose hash `first` has too; chunks and memory as in first_occurrences."""
    with Partitions(scratch) as partitions:
        for chunk in first:
            partitions.add(chunk, np.full(len(chunk), -1))
        marks = Marks(partitions.add_numbered(second))
        for blocks in partitions:
            seen: list[np.ndarray] = []
            for hashes, items in blocks:
                asked = items >= 0
                seen.append(np.sort(hashes[~asked]))
                marks.mark(items[asked & _among(seen, hashes)])
    return marks


def _firsts(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, sorted, and where each occurs first."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[starts], np.minimum.reduceat(order, starts)


def _among(groups: list[np.ndarray], hashes: np.ndarray) -> np.ndarray:
    """Find the hashes that occur in one of the groups, each of them sorted; bool, the same shape."""
    found = np.zeros(len(hashes), dtype=bool)
    for group in groups:
        if len(group):
            found |= group[np.minimum(np.searchsorted(group, hashes), len(group) - 1)] == hashes
    return found


class Partitions:
    """Pairs of hash and item, divided by the top bits of the hash; within a partition they keep their order."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._folder = Path(scratch), None
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._folder:
            self._folder.cleanup()

    def add(self, hashes: np.ndarray, items: np.ndarray) -> None:
        for start in range(0, len(hashes), BUFFER):
            part = slice(start, start + BUFFER)
            if self._held + len(hashes[part]) > BUFFER:
                self._spill()
            self._waiting.append((hashes[part], items[part]))
            self._held += len(hashes[part])

    def add_numbered(self, chunks: Iterable[np.ndarray]) -> int:
        """Add the hashes of `chunks` with their ordinals as items; returns how many there are."""
        size = 0
        for chunk in chunks:
            self.add(chunk, np.arange(size, size + len(chunk)))
            size += len(chunk)
        return size

    def __iter__(self) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Each partition, in blocks of at most BUFFER pairs; all in one if they fit in memory."""
        if self._folder is None:
            if self._held:
                yield iter([self._joined()])
            return
        self._spill()
        for path in sorted(Path(self._folder.name).iterdir()):
            yield self._blocks(path)

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        hashes, items = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        self._waiting, self._held = [], 0
        return hashes, items

    def _spill(self) -> None:
        if self._folder is None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._folder = TemporaryDirectory(dir=self._scratch, prefix="hashes-")
        hashes, items = self._joined()
        partition = (hashes >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(partition, kind="stable")
        pairs = np.column_stack((hashes[order], items[order].view(np.uint64)))
        stops = np.cumsum(np.bincount(partition, minlength=256))
        for name, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
            if start < stop:
                with open(Path(self._folder.name, f"{name:03d}"), "ab") as file:
                    file.write(pairs[start:stop])

    def _blocks(self, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with open(path, "rb") as file:
            while len(pairs := np.fromfile(file, dtype=np.uint64, count=2 * BUFFER).reshape(-1, 2)):
                yield np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]).view(np.int64)
