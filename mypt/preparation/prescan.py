"""What must be known of the whole text before any of it is encoded: a tokenizer's sample, and lines that come twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from mypt.files import replace_text
from mypt.json_files import Count, FileName
from mypt.preparation.units import Piece, checksums, kept_lines, read_record
from mypt.shards.scan import read_chunks
from mypt.shards.settings import PrepareSettings
from mypt.tokenization.train import TRAINED
from mypt.versions import version_of


@dataclass
class Surveyed:
    """What one unit showed."""

    key: str
    documents_read: Count
    bytes: Count  # UTF-8 bytes of the documents that cleaning keeps
    lines: Count  # that are not blank
    files: dict[FileName, str] = field(default_factory=dict)  # `checksums` of the others


@dataclass(frozen=True)
class Survey:
    """What to look for: the same for every unit of a preparation."""

    folder: Path
    settings: PrepareSettings
    corpus: str  # changes with any unit: what a sample may leave out depends on the others


def survey_unit(survey: Survey, piece: Piece, below: int = 2**64) -> Surveyed:
    """Read a unit once, unless that was done before. Of the sample only hashes under `below` can still win."""
    settings, index, own = survey.settings, piece.number, version_of("mypt")
    content = [own, survey.corpus, index, settings.reading(), settings.training(), piece.limit]
    key = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    record = survey.folder / f"{index:05d}.survey.json"
    if (found := read_record(Surveyed, record, key)) is not None:
        return found
    record.unlink(missing_ok=True)
    kind = TRAINED.get(settings.tokenizer)
    collected = kind and kind.collect(settings, below)
    found = Surveyed(key, 0, 0, 0)
    cleaner = settings.cleaner()
    with open(survey.folder / f"{index:05d}.lines", "wb") as hashes:
        for text, _ in piece.documents(cleaner, settings.on_fault):
            found.bytes += len(text) if text.isascii() else len(text.encode())
            if collected is not None:
                collected.add(text)
            if settings.dedup == "line":
                lines = [xxhash.xxh3_64_intdigest(line.encode()) for line in kept_lines(text)]
                found.lines += len(lines)
                hashes.write(np.array(lines, "<u8").data)
    found.documents_read = cleaner.counts["documents"]
    with open(survey.folder / f"{index:05d}.sample", "wb") as file:
        if collected is not None:
            collected.write(file)
    found.files = checksums(record, ("lines", "sample"))
    replace_text(record, json.dumps(asdict(found), ensure_ascii=False))
    return found


def line_hashes(folder: Path, pieces: list[Piece]) -> Iterator[np.ndarray]:
    """The hashes of all lines that are not blank, uint64, unit by unit, at most a million at once."""
    for piece in pieces:
        yield from read_chunks(folder / f"{piece.number:05d}.lines", np.dtype("<u8"))
