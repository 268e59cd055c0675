"""Read the whole text before any of it is encoded: for a tokenizer's sample, and for lines that come twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash

from mypt.json_files import Count, FileName
from mypt.preparation.prepare_run import PrepareRun
from mypt.preparation.units import Piece, kept_lines, read_record, save_record
from mypt.shards.scan import read_chunks
from mypt.shards.settings import PrepareSettings
from mypt.text.dedup import first_occurrences
from mypt.tokenization.train import TRAINED, CharacterSet, TextSample
from mypt.versions import version_of


@dataclass(frozen=True)
class PrescanResult:
    """The counts of one unit: the contents of its NNNNN.survey.json."""

    key: str
    documents_read: Count
    bytes: Count  # UTF-8 bytes of the documents that cleaning keeps
    lines: Count  # that are not blank
    files: dict[FileName, str] = field(default_factory=dict)  # name and xxh3-128 of the others


def prescan(
    run: PrepareRun, collected: TextSample | CharacterSet | None = None
) -> Iterator[tuple[Piece, PrescanResult]]:
    """Read each unit once; what a tokenizer is made of is added to `collected`."""
    below = (lambda: collected.below) if collected is not None else (lambda: 2**64)
    shared = run.folder, run.settings, run.corpus()
    for piece, result in run.each("reading", prescan_unit, run.pieces, lambda piece: (*shared, piece, below())):
        if collected is not None:
            collected.merge((run.folder / f"{piece.number:05d}.sample").read_bytes())
        yield piece, result


def mark_lines(run: PrepareRun) -> list[Piece]:
    """The pieces of a run with marks on the lines that came before in the whole text."""
    found = list(prescan(run))
    paths = [run.folder / f"{piece.number:05d}.lines" for piece, _ in found]
    hashes = (chunk for path in paths for chunk in read_chunks(path, np.dtype("<u8")))
    keep = first_occurrences(hashes, run.scratch())
    ends = np.cumsum([result.lines for _, result in found]).tolist()
    starts = [0, *ends]
    return [
        replace(piece, lines=np.packbits(keep[start:end]))
        for (piece, _), start, end in zip(found, starts, ends, strict=False)
    ]


def prescan_unit(folder: Path, settings: PrepareSettings, corpus: str, piece: Piece, below: int) -> PrescanResult:
    """Read a unit, unless that was done before.

    `corpus` changes with any unit: which examples a sample leaves out depends on the others. Only examples whose hash
    is under `below` can be in the sample.
    """
    path, kind = folder / f"{piece.number:05d}", TRAINED.get(settings.tokenizer)
    content = [version_of("mypt"), corpus, piece.number, settings.reading(), settings.training(), settings.tokenizer]
    key = xxhash.xxh3_128_hexdigest(json.dumps([*content, piece.limit], sort_keys=True).encode())
    record = path.with_suffix(".survey.json")
    if (found := read_record(PrescanResult, record, key)) is not None:
        return found
    record.unlink(missing_ok=True)
    collected = kind and kind.collect(settings, below)
    cleaner, text_bytes, line_count = settings.cleaner(), 0, 0
    with open(path.with_suffix(".lines"), "wb") as hashes:
        for text, _ in piece.documents(cleaner, settings.on_fault):
            text_bytes += len(text) if text.isascii() else len(text.encode())
            if collected is not None:
                collected.add(text)
            if settings.dedup == "line":
                lines = [xxhash.xxh3_64_intdigest(line.encode()) for line in kept_lines(text)]
                line_count += len(lines)
                hashes.write(np.array(lines, "<u8").data)
    with open(path.with_suffix(".sample"), "wb") as file:
        if collected is not None:
            collected.write(file)
    result = PrescanResult(key, cleaner.counts["documents"], text_bytes, line_count)
    return save_record(record, result, ("lines", "sample"))
