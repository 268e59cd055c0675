"""Read one split of a dataset directory as one logical stream of token ids."""

import os
from pathlib import Path

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.shards.fetching import InMemory, Mapped, Pread, choose_reading
from mypt.shards.format import Manifest, Shard
from mypt.shards.open_dataset import open_dataset
from mypt.shards.scan import shard_problem


class ShardReader:
    """The tokens of a split across its shards: position 0 is the first token of the first shard.

    reading: how bytes are fetched (docs/reading.md), never which: `ram`, `readahead`, `pread`, or `auto` by size and
    file system. shards: only the first so many (data that was appended later is left out). manifest: what
    `open_dataset` gave for the directory, which is called without it. blocks: the windows come in the order of blocks,
    so that `pread` reads these as wholes.

    Opening looks at the metadata, the names and the sizes of the files. Checksums are verified where it costs little:
    all in `ram`, else those of shards newer than the metadata. Raises DataError for a missing, truncated, changed or
    unlisted shard (by name), an absent split, or ids outside the vocabulary.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str,
        *,
        reading: str = "auto",
        shards: int | None = None,
        manifest: Manifest | None = None,
        blocks: bool = False,
    ):
        self.directory = Path(directory)
        self.split = split
        self.manifest = manifest or open_dataset(directory)
        self.shards, newer = check_files(self.directory, self.manifest, split, shards)
        self._tokens = sum(shard.tokens for shard in self.shards)
        self._options = {"shards": len(self.shards), "blocks": blocks}
        size = self._tokens * self.manifest.numpy_dtype.itemsize
        self.reading, reason = choose_reading(self.directory, size, reading, blocks, len(self.shards))
        paths = [self.directory / shard.file for shard in self.shards]
        layout = paths, [shard.tokens for shard in self.shards], self.manifest.numpy_dtype
        if self.reading == "pread":
            self._fetch = Pread(*layout, blocks)
        else:
            self._fetch = (InMemory if self.reading == "ram" else Mapped)(*layout)
        if self.reading == "ram":
            self._check_sums(zip(self.shards, self._fetch.parts, strict=True))
        else:
            self._check_sums((shard, np.memmap(self.directory / shard.file, mode="r")) for shard in newer)
        # One line for people: where the tokens lie, how they are read, what was verified.
        self.summary = f"{self.directory}/{split}: {reason}"
        if newer and self.reading != "ram":
            self.summary += f"; {len(newer)} shards are newer than the metadata, checksums verified"

    def __len__(self) -> int:
        return self._tokens

    def __reduce__(self):
        """A worker process opens the files itself; it gets no copy of what is mapped or in memory."""
        options = {"reading": self.reading, **self._options}
        return _reopen, (self.directory, self.split, self.manifest.dtype, options)

    @property
    def fingerprint(self) -> str:
        """Changes with any token of the split."""
        return self.manifest.fingerprint(self.split, len(self.shards))

    @property
    def eos_token_id(self) -> int:
        return self.manifest.eos_token_id

    @property
    def largest_id(self) -> int:
        return max(shard.max_id for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text that the tokens encode."""
        return sum(shard.bytes for shard in self.shards)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Copy windows out of the stream.

        starts: int64 (n,), each with 0 <= start and start + length <= len(self). Returns (n, length) in the shards'
        own dtype. Raises DataError with `pread` for a file that was truncated since.
        """
        return self._fetch.windows(starts, length)

    def prefetch(self, starts: np.ndarray, length: int) -> None:
        """Tell the system which windows will be gathered soon; changes nothing but waiting times."""
        if len(starts):
            self._fetch.prefetch(starts, length)

    def _check_sums(self, contents) -> None:
        for shard, data in contents:
            if xxhash.xxh3_128(data).hexdigest() != shard.xxh3_128:
                raise DataError(
                    f"shard {self.directory / shard.file} was changed: its checksum differs from the metadata's; "
                    f"restore it or prepare again (`mypt verify {self.directory}` checks all)"
                )


def check_files(
    directory: Path, manifest: Manifest, split: str, first: int | None = None
) -> tuple[list[Shard], list[Shard]]:
    """Compare the names and sizes of a split's files with the metadata; nothing is read.

    first: only so many shards. Returns the shards, and those of them that are newer than the metadata, which is written
    last and touched by a `mypt verify` without findings.

    Raises:
        DataError: the split is absent, a shard is missing, has another size or ids outside the vocabulary, or a file is
            not listed.
    """
    if split not in manifest.splits or not manifest.splits[split].shards:
        raise DataError(f"{directory} has no {split} split; prepare it with a --val-fraction above 0")
    listed_shards = manifest.splits[split].shards
    if first is not None and not 1 <= first <= len(listed_shards):
        raise DataError(f"the first {first} shards of {directory}/{split} were asked for; it has {len(listed_shards)}")
    shards = listed_shards[:first]
    for shard in shards:
        if problem := shard_problem(directory, shard, manifest):
            raise DataError(f"shard {directory / shard.file} {problem}; restore it or prepare the data again")
    verified = manifest.verified(directory)
    newer = [shard for shard in shards if os.stat(directory / shard.file).st_mtime_ns > verified]
    listed = {directory / shard.file for shard in manifest.shards}
    for folder in {(directory / shard.file).parent for shard in shards}:
        foreign = sorted(path for path in folder.glob("shard_*.bin") if path not in listed and path.stat().st_size)
        if foreign:
            raise DataError(
                f"shard {foreign[0]} is not in the metadata: it is foreign, or left by a `mypt append` that did "
                "not finish; repeat that command, or move the file away"
            )
    return shards, newer


def _reopen(directory: Path, split: str, dtype: str, options: dict) -> ShardReader:
    return ShardReader(directory, split, manifest=open_dataset(directory, dtype), **options)
