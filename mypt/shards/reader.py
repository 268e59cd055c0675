"""Read one split of a dataset directory as one logical stream of token ids, memory-mapped."""

from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.shards.format import Manifest, read_manifest


class ShardReader:
    """The tokens of a split across its shards: position 0 is the first token of the first shard.

    Opening reads the metadata and each file's size, never the tokens. Raises DataError for a missing or truncated
    shard (by name), an absent split, or ids outside the vocabulary.
    """

    def __init__(self, directory: str | Path, split: str):
        self.directory = Path(directory)
        self.split = split
        self.manifest: Manifest = read_manifest(directory)
        if split not in self.manifest.splits or not self.manifest.splits[split].shards:
            raise DataError(f"{directory} has no {split} split; prepare it with a --val-fraction above 0")
        self.shards = self.manifest.splits[split].shards
        for shard in self.shards:
            self._check(shard)
        self._ends = np.cumsum([shard.tokens for shard in self.shards])
        self._starts = self._ends - np.array([shard.tokens for shard in self.shards])
        self._maps: dict[int, np.memmap] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fingerprint(self) -> str:
        """Changes with any token of the split."""
        return self.manifest.fingerprint(self.split)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Copy windows out of the stream.

        starts: int64 (n,), each with start + length <= len(self). Returns (n, length) in the shards' own dtype.
        """
        windows = np.empty((len(starts), length), self.manifest.numpy_dtype)
        owners = np.searchsorted(self._ends, starts, side="right")
        offsets = starts - self._starts[owners]
        # A slice per window is a plain memory copy, several times faster than one fancy index over all of them.
        for window, shard, offset in zip(windows, owners.tolist(), offsets.tolist(), strict=True):
            piece = self._map(shard)[offset : offset + length]
            window[: len(piece)] = piece
            filled = len(piece)
            while filled < length:  # the window reaches over one or more shard boundaries
                shard += 1
                piece = self._map(shard)[: length - filled]
                window[filled : filled + len(piece)] = piece
                filled += len(piece)
        return windows

    def _map(self, index: int) -> np.ndarray:
        if index not in self._maps:
            path = self.directory / self.shards[index].file
            self._maps[index] = np.memmap(path, self.manifest.numpy_dtype, mode="r").view(np.ndarray)
        return self._maps[index]

    def _check(self, shard) -> None:
        path = self.directory / shard.file
        expected = shard.tokens * self.manifest.numpy_dtype.itemsize
        if not path.is_file():
            raise DataError(f"shard {path} is missing; restore it or prepare the data again")
        size = path.stat().st_size
        if size != expected:
            raise DataError(
                f"shard {path} holds {size:,} bytes, the metadata says {expected:,}; restore it or prepare again"
            )
        if shard.max_id >= self.manifest.vocab_size:
            raise DataError(
                f"shard {path} holds id {shard.max_id}, outside the vocabulary of {self.manifest.vocab_size}; "
                f"is {self.manifest.dtype} the right dtype?"
            )
