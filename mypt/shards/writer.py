"""Token ids to shard files: written in order, checksummed on the way, each visible only when it is whole."""

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.shards.format import DTYPES, Shard, Split

_BUFFERED_TOKENS = 1 << 16


class ShardWriter:
    """Writes the documents of one split to `DIR/SPLIT/shard_00000.bin`, `shard_00001.bin`, ...

    Every shard but the last holds exactly `tokens_per_shard` ids, raw and little-endian; documents run on across
    shards. A shard is a `*.tmp` file until it is complete and on the disk. Memory: 64 Ki tokens and one document.
    """

    def __init__(self, directory: Path, split: str, dtype: str, tokens_per_shard: int = 10_000_000) -> None:
        self.directory, self.split, self.dtype = directory, split, DTYPES[dtype]
        self.tokens_per_shard = tokens_per_shard
        self._shards: list[Shard] = []
        self._buffer: list[np.ndarray] = []
        self._buffered = 0
        self._file: IO[bytes] | None = None
        (directory / split).mkdir(parents=True, exist_ok=True)

    def write(self, ids: np.ndarray, text_bytes: int) -> None:
        """Append one document: its ids (n,), EOS included, and the UTF-8 bytes of the text behind them.

        It counts as a document of the shard in which it starts; its bytes are shared out in proportion to the tokens.
        Raises DataError if an id does not fit the dtype.
        """
        begin, total = 0, len(ids)
        while begin < total:
            if self._file is None:
                self._open()
            shard = self._shards[-1]
            end = min(total, begin + self.tokens_per_shard - shard.tokens)
            self._buffer.append(ids[begin:end])
            self._buffered += end - begin
            shard.tokens += end - begin
            shard.documents += begin == 0
            shard.bytes += text_bytes * end // total - text_bytes * begin // total
            if shard.tokens == self.tokens_per_shard:
                self._finish()
            elif self._buffered >= _BUFFERED_TOKENS:
                self._flush()
            begin = end

    def close(self) -> Split:
        """Finish the last shard and return the split's shards in stream order."""
        if self._file is not None:
            self._finish()
        return Split(self._shards)

    def abandon(self) -> None:
        """Close the unfinished file after an error; it stays behind as `*.tmp`, which no reader looks at."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):  # closing flushes: what failed is being reported already
                file.close()

    def _open(self) -> None:
        name = f"{self.split}/shard_{len(self._shards):05d}.bin"
        self._file = open(self.directory / f"{name}.tmp", "wb")  # noqa: SIM115
        self._digest = xxhash.xxh3_128()
        self._shards.append(Shard(name, tokens=0, documents=0, bytes=0, min_id=2**32, max_id=0, xxh3_128=""))

    def _flush(self) -> None:
        if not self._buffer:
            return
        ids, shard = np.concatenate(self._buffer), self._shards[-1]
        self._buffer, self._buffered = [], 0
        shard.min_id = min(shard.min_id, int(ids.min()))
        shard.max_id = max(shard.max_id, int(ids.max()))
        if shard.max_id > np.iinfo(self.dtype).max:
            raise DataError(f"token id {shard.max_id} does not fit {self.dtype.name}; write the dataset as uint32")
        data = ids.astype(self.dtype).tobytes()
        self._digest.update(data)
        self._file.write(data)

    def _finish(self) -> None:
        self._flush()
        file, shard = self._file, self._shards[-1]
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._file = None
        shard.xxh3_128 = self._digest.hexdigest()
        os.replace(self.directory / f"{shard.file}.tmp", self.directory / shard.file)
