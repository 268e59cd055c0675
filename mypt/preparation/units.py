"""A unit of the input, and what a preparation keeps of it, so that a killed run continues unit by unit.

An encoded unit is three files in OUT/.preparing/units: NNNNN.ids (raw token ids), NNNNN.npy (a row per document) and,
written last, NNNNN.json (counts, the key of all that decided them, and the checksums of the others). Where there is
something to report, NNNNN.invalid.npy has the documents with bytes that were not UTF-8, and NNNNN.skipped.jsonl the
records and files that could not be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from mypt.errors import MyPTError
from mypt.files import replace_text, xxh3_128
from mypt.json_files import Count, FileName, read_json
from mypt.shards.format import DTYPES
from mypt.shards.settings import PrepareSettings
from mypt.text.bad_records import OnFault, ignore, stop
from mypt.text.clean import Cleaner
from mypt.text.plain import Document
from mypt.text.sources import Unit, read_documents

ROW = np.dtype([("hash", "<u8"), ("tokens", "<i8"), ("bytes", "<i8"), ("characters", "<i8")])
UNIT_FILES = ("ids", "npy", "signatures.npy", "invalid.npy", "skipped.jsonl")  # suffixes; the record comes last
_CHUNK = 1 << 20


@dataclass(frozen=True)
class EncodeJob:
    """All that decides how units are encoded, the same for every unit of a preparation."""

    folder: Path  # of the encoded units
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
        """Read its documents and clean them; `on_fault` as in `read_documents`."""
        documents = read_documents(self.unit, on_fault)
        if self.limit is not None:
            documents = first_documents(documents, self.limit)
        batches = cleaner.batches(documents)
        return batches if self.lines is None else unrepeated(batches, np.unpackbits(self.lines), cleaner)

    def documents(self, cleaner: Cleaner, on_fault: OnFault = stop) -> Iterator[Document]:
        """The documents of `batches`, one by one."""
        return chain.from_iterable(self.batches(cleaner, on_fault))


@dataclass(frozen=True)
class UnitResult:
    """The counts of an encoded unit: the contents of its NNNNN.json."""

    key: str
    digest: str  # xxh3-128 of the unit's input
    documents_read: Count
    counts: dict[str, Count]  # normalized, invalid_utf8; dropped_ids and unknown_ids where there are any
    dropped: dict[str, Count]  # documents by reason
    dropped_lines: dict[str, Count]
    examples: dict[str, list[str]]
    encode_seconds: float  # spent in the encoder
    files: dict[FileName, str] = field(default_factory=dict)  # name and xxh3-128 of the others
    skipped: dict[str, Count] = field(default_factory=dict)  # records and files that could not be read, by reason


@dataclass(frozen=True)
class EncodedUnit:
    """A unit whose documents are on the disk as token ids."""

    unit: Unit
    result: UnitResult
    path: Path  # of its files, without their suffixes
    dtype: str
    piece: Piece | None = None  # how it was read; None: it cannot be read again

    @property
    def rows(self) -> np.ndarray:
        """A row per document, ROW (documents,), memory-mapped."""
        path = self.path.with_suffix(".npy")
        return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)

    @property
    def ids(self) -> np.ndarray:
        """The ids, EOS included, (tokens,), memory-mapped."""
        path = self.path.with_suffix(".ids")
        return np.memmap(path, DTYPES[self.dtype], mode="r") if path.stat().st_size else np.empty(0, DTYPES[self.dtype])

    @property
    def invalid(self) -> np.ndarray:
        """The array that `save_invalid` wrote, int64 (n, 3)."""
        path = self.path.with_suffix(".invalid.npy")
        return np.load(path) if path.is_file() else np.empty((0, 3), np.int64)

    def hashes(self) -> Iterator[np.ndarray]:
        """The hashes of the documents, uint64, a million at once."""
        table = self.rows
        return (np.array(table["hash"][start : start + _CHUNK]) for start in range(0, len(table), _CHUNK))

    def parts(self, row: int, job: EncodeJob) -> Iterator[Document]:
        """The parts of one document, read again."""
        for document in self.piece.documents(job.settings.cleaner(), ignore):  # its faults are known already
            if row == 0:
                yield document
            row -= document.ended
            if row < 0:
                return


@dataclass(frozen=True)
class EncodedText:
    """All units of a preparation, encoded, in order."""

    job: EncodeJob
    units: list[EncodedUnit]
    engine: str  # that encoded them
    loss: dict = field(default_factory=dict)  # `measure_loss`; empty if a sample lost nothing


def save_invalid(path: Path, unit: Unit, cleaner: Cleaner) -> None:
    """Write PATH.invalid.npy, int64 (n, 3): row, number of the file in the unit, bytes that were not UTF-8."""
    target = path.with_suffix(".invalid.npy")
    if not cleaner.invalid:
        target.unlink(missing_ok=True)
        return
    rows, seen, sizes = np.array(cleaner.invalid, np.int64).T
    ends = []
    if len(unit.paths) > 1:
        files = (replace(unit, paths=(name,)) for name in unit.paths)
        ends = np.cumsum([sum(last for _, last in read_documents(file, ignore)) for file in files])
    np.save(target, np.stack([rows, np.searchsorted(ends, seen, side="right"), sizes], axis=1))


def save_record(record: Path, result, suffixes: Iterable[str] = UNIT_FILES):
    """Write the record of a unit, NNNNN.json, after its other files; returns it with their checksums as `files`."""
    stem = record.name.partition(".")[0]
    paths = (record.with_name(f"{stem}.{suffix}") for suffix in suffixes)
    result = replace(result, files={path.name: xxh3_128(path) for path in paths if path.is_file()})
    replace_text(record, json.dumps(asdict(result), ensure_ascii=False))
    return result


def read_record(kind: type, path: Path, key: str):
    """The record of a unit, if it and its files are there, whole, and were made with this key; else None."""
    try:
        found = read_json(path, kind)
    except MyPTError:  # unfinished, damaged, or of another version of mypt
        return None
    return found if found.key == key and files_are_whole(path.parent, found.files) else None


def files_are_whole(folder: Path, recorded: dict[str, str]) -> bool:
    """Whether the files of a unit are there and have the checksums in its record, which names one at least."""
    paths = {folder / name: checksum for name, checksum in recorded.items()}
    return bool(paths) and all(path.is_file() and xxh3_128(path) == checksum for path, checksum in paths.items())


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
    position, is_open = 0, False
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
            if ended and not is_open and (not text or text.isspace()):
                cleaner.dropped["empty"] += 1
                removed.append(row)
            else:
                left.append(Document(text, ended))
            is_open = not ended
            row += ended
        yield left
    cleaner.lose(removed, lost)
