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
        owner = np.searchsorted(self._ends, starts, side="right")
        inside = starts + length <= self._ends[owner]
        for index in np.unique(owner[inside]):
            rows = np.flatnonzero(inside & (owner == index))
            tokens = self._map(int(index))
            views = np.lib.stride_tricks.as_strided(
                tokens, (len(tokens) - length + 1, length), (tokens.itemsize, tokens.itemsize), writeable=False
            )
            windows[rows] = views[starts[rows] - self._starts[index]]
        for row in np.flatnonzero(~inside):
            self._copy_across(int(starts[row]), windows[row])
        return windows

    def _copy_across(self, start: int, window: np.ndarray) -> None:
        """Fill one window that reaches over one or more shard boundaries."""
        filled = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while filled < len(window):
            offset = start + filled - int(self._starts[index])
            piece = self._map(index)[offset : offset + len(window) - filled]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1

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
