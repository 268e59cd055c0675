"""The work on one unit of the input: documents to token ids on the disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import xxhash

from mypt.errors import DataError, TokenizerError
from mypt.preparation.units import ROW, Finished, Piece, Work, read_record, save_invalid
from mypt.shards.format import DTYPES
from mypt.text.bad_records import SkippedRecords, stop
from mypt.text.clean import Cleaner
from mypt.text.dedup import text_hash
from mypt.text.plain import Document
from mypt.text.sources import digest, stamp
from mypt.tokenization.fast import Encoder
from mypt.versions import version_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_CHARACTERS = 1_000_000


def finish_unit(work: Work, piece: Piece) -> Finished:
    """Encode a unit, unless that was done before with the same input and settings."""
    before = stamp(piece.unit)
    content = [piece.unit.to_dict(), before, work.settings.reading(), work.tokenizer_hash, work.dtype, piece.limit]
    key = xxhash.xxh3_128(json.dumps([version_of("mypt"), *content], sort_keys=True).encode())
    if piece.lines is not None:
        key.update(piece.lines.tobytes())
    record = work.folder / f"{piece.number:05d}.json"
    skip = work.settings.on_error == "skip"
    finished = read_record(Finished, record, key.hexdigest())
    if finished is not None and (skip or not finished.skipped):
        return finished
    record.unlink(missing_ok=True)
    input_digest, cleaner = digest(piece.unit), work.settings.cleaner()
    writer = UnitWriter(work, piece.number)
    faults = SkippedRecords(f"{writer.path}.skipped.jsonl") if skip else None
    try:
        writer.write(piece.batches(cleaner, faults or stop))
    except TokenizerError as error:
        raise TokenizerError(f"{piece.unit.name}: {error}") from None
    save_invalid(writer.path, piece, cleaner)
    if stamp(piece.unit) != before:
        raise DataError(f"{piece.unit.name} changed while it was being prepared; run the same command again")
    skipped = faults.counts() if faults else {}
    finished = finished_of(cleaner, writer, key=key.hexdigest(), digest=input_digest, skipped=skipped)
    finished.save(record)
    return finished


def finished_of(cleaner: Cleaner, writer: UnitWriter, **known: Any) -> Finished:
    """What the cleaner and the writer of a unit counted; `known`: its other fields, key and digest at least."""
    return Finished(
        documents_read=cleaner.counts["documents"],
        counts={name: cleaner.counts[name] for name in ("normalized", "invalid_utf8")} | writer.special_ids,
        dropped=dict(cleaner.dropped),
        dropped_lines=dict(cleaner.dropped_lines),
        examples=cleaner.examples,
        encode_seconds=writer.seconds,
        **known,
    )


@dataclass
class _OpenDocument:
    """A document whose last part has not come yet."""

    encode: Callable[[str, bool], np.ndarray]
    digest: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)
    bytes: int = 0  # UTF-8
    characters: int = 0


class UnitWriter:
    """Encodes documents in batches into NNNNN.ids, their rows into NNNNN.npy, what near_dedup needs beside them."""

    def __init__(self, work: Work, index: int) -> None:
        self.work, self.path = work, work.folder / f"{index:05d}"
        self.encoder = load_encoder(work)
        self.seconds = 0.0  # in the encoder
        self._special = (self.encoder.special.dropped, self.encoder.special.unknown)  # before this unit
        self._texts: list[str] = []
        self._sizes: list[int] = []  # of the texts, in UTF-8 bytes
        self._ended: list[bool] = []
        self._in_parts: dict[int, np.ndarray] = {}  # the ids of those that are parts of a longer document
        self._characters = 0  # of the batch
        # Of the batch's documents:
        self._hashes: list[int] = []
        self._bytes: list[int] = []
        self._lengths: list[int] = []  # in characters
        self._open: _OpenDocument | None = None
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
            for i, last in enumerate(ended):
                if last and not self._open:
                    self._add_rows([text_hash(data[i])], [sizes[i]], [lengths[i]])
                else:
                    self._in_parts[len(self._texts) + i] = self._add_part(texts[i], data[i], last)
        self._texts += texts
        self._sizes += sizes
        self._ended += ended
        self._characters += sum(lengths)

    def _add_rows(self, hashes: Iterable[int], sizes: Iterable[int], lengths: Iterable[int]) -> None:
        self._hashes += hashes
        self._bytes += sizes
        self._lengths += lengths

    def _add_part(self, text: str, data: bytes, ended: bool) -> np.ndarray:
        """The ids that are certain with this part."""
        document = self._open = self._open or _OpenDocument(self.encoder.document())
        document.digest.update(data)
        document.bytes += len(data)
        document.characters += len(text)
        began = time.perf_counter()
        ids = document.encode(text, ended)
        self.seconds += time.perf_counter() - began
        if ended:
            self._add_rows([document.digest.intdigest()], [document.bytes], [document.characters])
            self._open = None
        return ids

    @property
    def special_ids(self) -> dict[str, int]:
        """What was counted of the unit's ids, where it is not 0: special ids dropped, ids of the unknown token."""
        found = {"dropped_ids": self.encoder.special.dropped, "unknown_ids": self.encoder.special.unknown}
        return {name: n - before for (name, n), before in zip(found.items(), self._special, strict=True) if n > before}

    def _encoded(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the batch, and how many each of its texts has."""
        if not self._in_parts:
            return self.encoder(self._texts, self._sizes)
        whole = [i for i in range(len(self._texts)) if i not in self._in_parts]
        ids, counts = self.encoder([self._texts[i] for i in whole], [self._sizes[i] for i in whole])
        found = dict(zip(whole, np.split(ids, np.cumsum(counts)[:-1]), strict=True)) if whole else {}
        found |= self._in_parts
        parts = [found[i] for i in range(len(self._texts))]
        return np.concatenate(parts), np.array(list(map(len, parts)), np.int64)

    def _flush(self, file: IO[bytes]) -> None:
        if not self._texts:
            return
        ended = np.array(self._ended)
        began = time.perf_counter()
        ids, counts = self._encoded()
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
        self._texts, self._sizes, self._ended, self._in_parts, self._characters = [], [], [], {}, 0
        self._hashes, self._bytes, self._lengths = [], [], []


def _save(path: str, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


_ENCODERS: dict[tuple, Encoder] = {}  # of this process, the last one: loading a large vocabulary takes a second


def load_encoder(work: Work, backend: Tokenizer | None = None) -> Encoder:
    """The encoder of a preparation; `backend` is the tokenizer in `work.tokenizer`, if it is loaded already."""
    # The hash tells that the path holds another tokenizer by now.
    key = (work.tokenizer, work.engine, work.eos_token_id, work.tokenizer_hash)
    if key not in _ENCODERS:
        _ENCODERS.clear()
        _ENCODERS[key] = Encoder(backend or work.tokenizer, work.engine, work.eos_token_id)
    return _ENCODERS[key]
