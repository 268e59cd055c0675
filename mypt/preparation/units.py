"""A unit of the input as a preparation reads it, and what is kept of it, so that a killed run goes on unit by unit.

A finished unit is three files in OUT/.preparing/units: NNNNN.ids (raw token ids), NNNNN.npy (a row per document) and,
written last, NNNNN.json (counts, the key of all that decided them, and the checksums of the others). Where there is
something to tell, NNNNN.invalid.npy has the documents with bytes that were not UTF-8, and NNNNN.skipped.jsonl what
could not be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash

from mypt.errors import MyPTError
from mypt.files import replace_text
from mypt.json_files import Count, FileName, read_json
from mypt.shards.format import DTYPES
from mypt.shards.settings import PrepareSettings
from mypt.text.bad_records import OnFault, ignore, stop
from mypt.text.clean import Cleaner
from mypt.text.plain import Document
from mypt.text.sources import Unit, read_documents

ROW = np.dtype([("hash", "<u8"), ("tokens", "<i8"), ("bytes", "<i8"), ("characters", "<i8")])
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

    def batches(self, cleaner: Cleaner, on_fault: OnFault = stop) -> Iterator[list[Document]]:
        """What is left of its documents after cleaning; `on_fault` as in `read_documents`."""
        documents = read_documents(self.unit, on_fault)
        if self.limit is not None:
            documents = first_documents(documents, self.limit)
        batches = cleaner.batches(documents)
        return batches if self.lines is None else unrepeated(batches, np.unpackbits(self.lines), cleaner)

    def documents(self, cleaner: Cleaner, on_fault: OnFault = stop) -> Iterator[Document]:
        """The same one by one."""
        return chain.from_iterable(self.batches(cleaner, on_fault))

    def parts(self, row: int, cleaner: Cleaner) -> Iterator[Document]:
        """The parts of document number `row` of those."""
        for document in self.documents(cleaner, ignore):  # its faults are known already
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
    documents_read: Count
    counts: dict[str, Count]  # normalized, invalid_utf8; dropped_ids and unknown_ids where there are any
    dropped: dict[str, Count]  # documents by reason
    dropped_lines: dict[str, Count]
    examples: dict[str, list[str]]
    encode_seconds: float  # spent in the encoder
    files: dict[FileName, str] = field(default_factory=dict)  # `checksums` of the others
    skipped: dict[str, Count] = field(default_factory=dict)  # records and files that could not be read, by reason

    def save(self, record: Path) -> None:
        """Write the record, the last file of a unit, with the checksums of the others."""
        self.files = checksums(record, ("ids", "npy", "signatures.npy", "invalid.npy", "skipped.jsonl"))
        replace_text(record, json.dumps(asdict(self), ensure_ascii=False))


def save_invalid(path: str, piece: Piece, cleaner: Cleaner) -> None:
    """Write PATH.invalid.npy, int64 (n, 3): row, number of the file in the unit, bytes that were not UTF-8."""
    target = Path(f"{path}.invalid.npy")
    if not cleaner.invalid:
        target.unlink(missing_ok=True)
        return
    rows, seen, sizes = np.array(cleaner.invalid, np.int64).T
    ends = []
    if len(piece.unit.paths) > 1:
        files = (replace(piece.unit, paths=(name,)) for name in piece.unit.paths)
        ends = np.cumsum([sum(last for _, last in read_documents(unit, ignore)) for unit in files])
    np.save(target, np.stack([rows, np.searchsorted(ends, seen, side="right"), sizes], axis=1))


def invalid_bytes(folder: Path, index: int) -> np.ndarray:
    """What `save_invalid` wrote, (n, 3)."""
    path = folder / f"{index:05d}.invalid.npy"
    return np.load(path) if path.is_file() else np.empty((0, 3), np.int64)


def checksums(record: Path, suffixes: Iterable[str]) -> dict[str, str]:
    """xxh3-128 of the files of a unit that are there, by name; `record` is its NNNNN.json."""
    stem = record.name.partition(".")[0]
    paths = (record.with_name(f"{stem}.{suffix}") for suffix in suffixes)
    return {path.name: _checksum(path) for path in paths if path.is_file()}


def changed_files(folder: Path, recorded: dict[str, str]) -> list[str]:
    """The files of a unit that are missing, or are not those that its record is of."""
    return [
        name
        for name, checksum in recorded.items()
        if not (folder / name).is_file() or _checksum(folder / name) != checksum
    ]


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def read_record(kind: type, path: Path, key: str):
    """The record of a finished unit, if it and its files are there, whole, and were made with this key; else None."""
    try:
        found = read_json(path, kind)
    except MyPTError:  # unfinished, damaged, or of another version of mypt
        return None
    return found if found.key == key and found.files and not changed_files(path.parent, found.files) else None


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
    row, removed, lost = 0, [], {}  # rows are counted as the cleaner counts them; lost: U+FFFD, by row
    for batch in batches:
        left = []
        for text, ended in batch:
            kept = []
            for line in text.split("\n"):
                if line and not line.isspace():
                    position += 1
                    if not keep[position - 1]:
                        cleaner.dropped_lines["duplicate"] += 1
                        if cleaner.invalid and "\ufffd" in line:
                            lost[row] = lost.get(row, 0) + line.count("\ufffd")
                        continue
                kept.append(line)
            text = "\n".join(kept)
            if ended and not going_on and (not text or text.isspace()):
                cleaner.dropped["empty"] += 1
                removed.append(row)
            else:
                left.append(Document(text, ended))
            going_on = not ended
            row += ended
        yield left
    cleaner.lose(removed, lost)
