"""Write token ids to shard files: in order, checksummed on the way, each visible only when it is whole."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.shards.format import DTYPES, Shard, Split
from mypt.shards.scan import piece_lengths


class ShardWriter:
    """Writes the documents of one split to `DIR/SPLIT/shard_00000.bin`, `shard_00001.bin`, ...

    Every shard but the last holds exactly `tokens_per_shard` ids, raw and little-endian; documents run on across
    shards. A shard is a `*.tmp` file until it is complete and on the disk. `first` is the number of the first shard.
    """

    def __init__(
        self, directory: Path, split: str, dtype: str, tokens_per_shard: int = 10_000_000, first: int = 0
    ) -> None:
        self.directory, self.split, self.dtype = directory, split, DTYPES[dtype]
        self.tokens_per_shard = tokens_per_shard
        self.first = first
        self._shards: list[Shard] = []
        self._file: IO[bytes] | None = None
        (directory / split).mkdir(parents=True, exist_ok=True)

    def write(self, ids: np.ndarray, tokens: np.ndarray, text_bytes: np.ndarray, *, continued: bool = False) -> None:
        """Append documents: their ids (n,) one after another, EOS included.

        `tokens` and `text_bytes`, int64 (documents,), are the ids and the UTF-8 bytes of text of each; the ids add up
        to n. `continued`: the first of them began in the last call. A document counts in the shard in which it starts;
        its bytes are shared out in proportion to its ids.
        Raises DataError if an id does not fit the dtype.
        """
        tokens, text_bytes = np.asarray(tokens, np.int64), np.asarray(text_bytes, np.int64)
        ends = np.cumsum(tokens)
        byte_ends = np.cumsum(text_bytes)

        def documents_before(position: int) -> int:
            return int(np.searchsorted(ends - tokens, position))

        def bytes_before(position: int) -> int:
            document = int(np.searchsorted(ends, position, side="right"))
            before = int(byte_ends[document - 1]) if document else 0
            if document == len(ends):
                return before
            inside = position - int(ends[document] - tokens[document])
            return before + int(text_bytes[document]) * inside // int(tokens[document])

        begin = 0
        while begin < len(ids):
            if self._file is None:
                self._open()
            shard = self._shards[-1]
            end = min(len(ids), begin + self.tokens_per_shard - shard.tokens)
            self._put(ids[begin:end])
            shard.documents += documents_before(end) - documents_before(begin) - (continued and begin == 0)
            shard.bytes += bytes_before(end) - bytes_before(begin)
            if shard.tokens == self.tokens_per_shard:
                self._finish()
            begin = end

    def close(self) -> Split:
        """Finish the last shard and return the split's shards in stream order."""
        if self._file is not None:
            self._finish()
        return Split(self._shards)

    def abandon(self) -> None:
        """Close the unfinished file after an error; it stays as `*.tmp`, which no reader looks at."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):  # closing flushes: what failed is being reported already
                file.close()

    def _open(self) -> None:
        name = f"{self.split}/shard_{self.first + len(self._shards):05d}.bin"
        self._file = open(self.directory / f"{name}.tmp", "wb")  # noqa: SIM115
        self._digest = xxhash.xxh3_128()
        self._shards.append(Shard(name, tokens=0, documents=0, bytes=0, min_id=2**32, max_id=0, xxh3_128=""))

    def _put(self, ids: np.ndarray) -> None:
        shard = self._shards[-1]
        shard.tokens += len(ids)
        shard.min_id = min(shard.min_id, int(ids.min()))
        shard.max_id = max(shard.max_id, int(ids.max()))
        if shard.max_id > np.iinfo(self.dtype).max:
            raise DataError(f"token id {shard.max_id} does not fit {self.dtype.name}; write the dataset as uint32")
        data = np.ascontiguousarray(ids, self.dtype).data
        self._digest.update(data)
        self._file.write(data)

    def _finish(self) -> None:
        file, shard = self._file, self._shards[-1]
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._file = None
        shard.xxh3_128 = self._digest.hexdigest()
        os.replace(self.directory / f"{shard.file}.tmp", self.directory / shard.file)


def write_stream(
    chunks: Iterable[np.ndarray],
    writer: ShardWriter,
    eos: int,
    text_bytes: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Write a stream of ids as it is; `text_bytes(ids, tokens)` gives the bytes of text in each piece."""
    continued = False
    for ids in chunks:
        tokens = piece_lengths(ids, eos)
        writer.write(ids, tokens, text_bytes(ids, tokens), continued=continued)
        continued = bool(ids[-1] != eos)
