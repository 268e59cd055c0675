"""Read shards from end to end, a chunk at a time, and compare them with the metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.shards.format import Manifest, Shard

CHUNK_TOKENS = 1 << 20

Advance = Callable[[int], object]  # called with the bytes that were read


@dataclass(frozen=True)
class Contents:
    """The findings of one reading of a shard."""

    tokens: int
    ends: int  # end-of-text ids
    last_id: int
    min_id: int
    max_id: int
    xxh3_128: str

    def documents(self, begins: bool, eos: int) -> int:
        """How many documents begin in it; begins: whether one does with its first id."""
        return begins + self.ends - (self.last_id == eos)


def read_chunks(path: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The ids (or hashes) in a file, at most CHUNK_TOKENS at once."""
    with open(path, "rb") as file:
        while len(ids := np.fromfile(file, dtype, CHUNK_TOKENS)):
            yield ids


def scan_shard(path: Path, dtype: np.dtype, eos: int, see: Callable[[np.ndarray], object]) -> Contents:
    """Read a shard that is not empty and report what it holds; `see` is shown every chunk of it."""
    digest, tokens, ends, lowest, highest = xxhash.xxh3_128(), 0, 0, 2**32, 0
    for ids in read_chunks(path, dtype):
        digest.update(ids.data)
        tokens += len(ids)
        ends += int(np.count_nonzero(ids == eos))
        lowest, highest = min(lowest, int(ids.min())), max(highest, int(ids.max()))
        last = int(ids[-1])
        see(ids)
    return Contents(tokens, ends, last, lowest, highest, digest.hexdigest())


def checked_chunks(directory: Path, manifest: Manifest, split: str, advance: Advance = lambda size: None):
    """The ids of a split in stream order, chunk by chunk, ndarray (tokens,).

    Raises DataError for a shard that is missing or is not what the metadata says: after its last chunk, so nothing made
    from the chunks may be kept then.
    """
    for shard in manifest.splits[split].shards:
        require_size(directory, shard, manifest)
        digest = xxhash.xxh3_128()
        for ids in read_chunks(directory / shard.file, manifest.numpy_dtype):
            digest.update(ids.data)
            yield ids
            advance(ids.nbytes)
        if digest.hexdigest() != shard.xxh3_128:
            raise changed(directory, shard)


def changed(directory: Path, shard: Shard) -> DataError:
    """The error of a shard that has another checksum than its metadata."""
    return DataError(f"{directory}: {shard.file} was changed (its checksum differs); restore it or prepare again")


def require_size(directory: Path, shard: Shard, manifest: Manifest) -> None:
    """Raise DataError for a `shard_problem`."""
    if problem := shard_problem(directory, shard, manifest):
        raise DataError(f"{directory}: {shard.file} {problem}; restore it or prepare the data again")


def shard_problem(directory: Path, shard: Shard, manifest: Manifest) -> str | None:
    """Compare file and metadata by size: None, or "is missing", or "holds 38 bytes, the metadata says 40"."""
    file, expected = directory / shard.file, shard.tokens * manifest.numpy_dtype.itemsize
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != expected:
        return f"holds {size:,} bytes, the metadata says {expected:,}"
    return None


def piece_lengths(ids: np.ndarray, eos: int) -> np.ndarray:
    """The lengths, int64, of the parts of `ids` that end with EOS, and of what follows the last one."""
    ends = np.flatnonzero(ids == eos) + 1
    if not len(ends) or ends[-1] != len(ids):
        ends = np.append(ends, len(ids))
    return np.diff(ends, prepend=0)
