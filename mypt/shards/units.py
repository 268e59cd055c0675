"""The work on one unit of the input: documents to token ids on the disk, so that a killed run goes on unit by unit.

A finished unit is three files in OUT/.preparing/units: NNNNN.ids (raw token ids), NNNNN.npy (a row per document) and,
written last, NNNNN.json (counts, and the key of all that decided them).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.files import replace_text
from mypt.shards.format import DTYPES
from mypt.shards.settings import PrepareSettings
from mypt.text.clean import Cleaner
from mypt.text.dedup import text_hash
from mypt.text.document import Document
from mypt.text.sources import Unit, digest, read_documents, stamp
from mypt.tokenization.fast import Encoder

ROW = np.dtype([("hash", "<u8"), ("tokens", "<i8"), ("bytes", "<i8"), ("characters", "<i8")])
_BATCH_CHARACTERS = 1_000_000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Work:
    """All that decides what becomes of a unit, the same for every unit of a preparation."""

    folder: Path  # of the finished units
    settings: PrepareSettings
    tokenizer: Path  # a tokenizer.json
    tokenizer_hash: str
    engine: str
    dtype: str
    eos_token_id: int


@dataclass(frozen=True)
class Piece:
    """A unit as one preparation reads it."""

    number: int
    unit: Unit
    limit: int | None = None  # documents, from its first
    lines: np.ndarray | None = None  # packed bits: for each line that is not blank whether to keep it

    def batches(self, cleaner: Cleaner) -> Iterator[list[Document]]:
        """What is left of its documents after cleaning."""
        documents = read_documents(self.unit)
        if self.limit is not None:
            documents = first_documents(documents, self.limit)
        batches = cleaner.batches(documents)
        return batches if self.lines is None else unrepeated(batches, np.unpackbits(self.lines), cleaner)

    def documents(self, cleaner: Cleaner) -> Iterator[Document]:
        """The same one by one."""
        return chain.from_iterable(self.batches(cleaner))

    def parts(self, row: int, cleaner: Cleaner) -> Iterator[Document]:
        """The parts of document number `row` of those."""
        for document in self.documents(cleaner):
            if row == 0:
                yield document
            row -= document.ended
            if row < 0:
                return


@dataclass
class Finished:
    """What a finished unit holds: the contents of its NNNNN.json."""

    key: str
    digest: str  # xxh3-128 of the unit's input
    documents_read: int
    counts: dict[str, int]  # normalized, invalid_utf8
    dropped: dict[str, int]  # documents by reason
    dropped_lines: dict[str, int]
    examples: dict[str, list[str]]
    encode_seconds: float  # spent in the encoder

    @classmethod
    def of(cls, cleaner: Cleaner, writer: UnitWriter, **known: str) -> Finished:
        """What the cleaner and the writer of a unit counted, with its key and digest."""
        return cls(
            documents_read=cleaner.counts["documents"],
            counts={name: cleaner.counts[name] for name in ("normalized", "invalid_utf8")},
            dropped=dict(cleaner.dropped),
            dropped_lines=dict(cleaner.dropped_lines),
            examples=cleaner.examples,
            encode_seconds=writer.seconds,
            **known,
        )

    def save(self, record: Path) -> None:
        replace_text(record, json.dumps(asdict(self), ensure_ascii=False))


def rows(folder: Path, index: int) -> np.ndarray:
    """The table of a finished unit, ROW (documents,), memory-mapped."""
    path = folder / f"{index:05d}.npy"
    return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)


def hashes(folder: Path, index: int) -> Iterator[np.ndarray]:
    """The hashes of a finished unit's documents, uint64, a million at once."""
    table = rows(folder, index)
    return (np.array(table["hash"][start : start + _CHUNK]) for start in range(0, len(table), _CHUNK))


def token_ids(folder: Path, index: int, dtype: str) -> np.ndarray:
    """The ids of a finished unit, EOS included, (tokens,), memory-mapped."""
    path = folder / f"{index:05d}.ids"
    return np.memmap(path, DTYPES[dtype], mode="r") if path.stat().st_size else np.empty(0, DTYPES[dtype])


def finish_unit(work: Work, piece: Piece) -> Finished:
    """Encode a unit, unless that was done before with the same input and settings."""
    content = [asdict(piece.unit), stamp(piece.unit), work.settings.reading(), work.tokenizer_hash, work.dtype]
    key = xxhash.xxh3_128(json.dumps([*content, piece.limit], sort_keys=True).encode())
    if piece.lines is not None:
        key.update(piece.lines.tobytes())
    record = work.folder / f"{piece.number:05d}.json"
    if record.is_file():
        finished = Finished(**json.loads(record.read_text(encoding="utf-8")))
        if finished.key == key.hexdigest():
            return finished
    record.unlink(missing_ok=True)
    input_digest, cleaner = digest(piece.unit), work.settings.cleaner()
    writer = UnitWriter(work, piece.number)
    writer.write(piece.batches(cleaner))
    if stamp(piece.unit) != content[1]:
        raise DataError(f"{piece.unit.name} changed while it was being prepared; run the same command again")
    finished = Finished.of(cleaner, writer, key=key.hexdigest(), digest=input_digest)
    finished.save(record)
    return finished


def first_documents(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    """The first `limit` documents, all their parts included."""
    for document in documents:
        if limit == 0:
            return
        yield document
        limit -= document.ended


def kept_lines(text: str) -> list[str]:
    """The lines of a text that take part in the deduplication of lines: those that are not blank."""
    return [line for line in text.split("\n") if line and not line.isspace()]


def unrepeated(batches: Iterable[list[Document]], keep: np.ndarray, cleaner: Cleaner) -> Iterator[list[Document]]:
    """The documents without the lines that came before; `keep` is 0 or 1 for each line that is not blank."""
    position, going_on = 0, False
    for batch in batches:
        left = []
        for text, ended in batch:
            kept = []
            for line in text.split("\n"):
                if line and not line.isspace():
                    position += 1
                    if not keep[position - 1]:
                        cleaner.dropped_lines["duplicate"] += 1
                        continue
                kept.append(line)
            text = "\n".join(kept)
            if ended and not going_on and (not text or text.isspace()):
                cleaner.dropped["empty"] += 1
            else:
                left.append(Document(text, ended))
            going_on = not ended
        yield left


class UnitWriter:
    """Encodes documents in batches into NNNNN.ids, their rows into NNNNN.npy, what near_dedup needs beside them."""

    def __init__(self, work: Work, index: int) -> None:
        self.work, self.path = work, work.folder / f"{index:05d}"
        self.encoder = load_encoder(work)
        self.seconds = 0.0  # in the encoder
        self._texts: list[str] = []
        self._sizes: list[int] = []  # of the texts, in UTF-8 bytes
        self._ended: list[bool] = []
        self._characters = 0  # of the batch
        # Of the batch's documents:
        self._hashes: list[int] = []
        self._bytes: list[int] = []
        self._lengths: list[int] = []  # in characters
        self._open: list = []  # of a document that goes on: its digest, bytes, characters
        self._open_tokens = 0
        self._tables: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []

    def write(self, batches: Iterable[list[Document]]) -> None:
        """Write all of them to the disk."""
        with open(f"{self.path}.ids", "wb") as file:
            for batch in batches:
                if batch:
                    self._add(batch)
                if self._characters >= _BATCH_CHARACTERS:
                    self._flush(file)
            self._flush(file)
            file.flush()
            os.fsync(file.fileno())
        _save(f"{self.path}.npy", np.concatenate([np.empty(0, ROW), *self._tables]))
        if self._signatures:
            _save(f"{self.path}.signatures.npy", np.concatenate(self._signatures))

    def _add(self, batch: list[Document]) -> None:
        texts, ended = zip(*batch, strict=True)
        data, lengths = list(map(str.encode, texts)), list(map(len, texts))
        sizes = list(map(len, data))
        if all(ended) and not self._open:
            self._add_rows(map(text_hash, data), sizes, lengths)
        else:
            for part, length, last in zip(data, lengths, ended, strict=True):
                self._add_part(part, length, last)
        self._texts += texts
        self._sizes += sizes
        self._ended += ended
        self._characters += sum(lengths)

    def _add_rows(self, hashes: Iterable[int], sizes: Iterable[int], lengths: Iterable[int]) -> None:
        self._hashes += hashes
        self._bytes += sizes
        self._lengths += lengths

    def _add_part(self, data: bytes, length: int, ended: bool) -> None:
        self._open = self._open or [xxhash.xxh3_64(), 0, 0]
        self._open[0].update(data)
        self._open[1] += len(data)
        self._open[2] += length
        if ended:
            self._add_rows([self._open[0].intdigest()], self._open[1:2], self._open[2:])
            self._open = []

    def _flush(self, file: IO[bytes]) -> None:
        if not self._texts:
            return
        ended = np.array(self._ended)
        began = time.perf_counter()
        ids, counts = self.encoder(self._texts, self._sizes)
        self.seconds += time.perf_counter() - began
        ends = np.cumsum(counts + ended)  # in the batch, EOS included
        stream = np.full(ends[-1], self.work.eos_token_id, DTYPES[self.work.dtype])
        is_text = np.ones(len(stream), bool)
        is_text[ends[ended] - 1] = False
        stream[is_text] = ids
        file.write(stream.data)
        table = np.empty(len(self._hashes), ROW)
        table["hash"], table["bytes"] = np.array(self._hashes, np.uint64), self._bytes
        table["characters"] = self._lengths
        table["tokens"] = np.diff(ends[ended], prepend=-self._open_tokens)
        self._open_tokens = int(ends[-1] - ends[ended][-1]) if len(table) else self._open_tokens + int(ends[-1])
        self._tables.append(table)
        if self.work.settings.near_dedup is not None:
            from mypt.text.near_dedup import signatures

            # A document in parts is known by its last one.
            self._signatures.append(signatures([text for text, last in zip(self._texts, ended, strict=True) if last]))
        self._texts, self._sizes, self._ended, self._characters = [], [], [], 0
        self._hashes, self._bytes, self._lengths = [], [], []


def _save(path: str, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


def load_encoder(work: Work) -> Encoder:
    """One per process: loading a large vocabulary takes a second."""
    return _encoder(work.tokenizer, work.engine, work.tokenizer_hash)


@lru_cache(maxsize=1)
def _encoder(tokenizer: Path, engine: str, tokenizer_hash: str) -> Encoder:
    # The hash tells that the path holds another tokenizer by now.
    return Encoder(tokenizer, engine)
