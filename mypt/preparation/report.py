"""What a preparation read, kept, dropped and changed, as counts; and samples of what it dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mypt.errors import DataError
from mypt.files import replace_text
from mypt.json_files import read_json
from mypt.preparation.assignment import Resolution
from mypt.preparation.units import Finished, Piece, Work, rows, token_ids
from mypt.shards.format import Manifest, Split
from mypt.text.clean import EXAMPLE_CHARACTERS, EXAMPLES
from mypt.text.formats import TEXT_KINDS
from mypt.text.opening import conversion, guess_encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPORT_NAME = "prepare_report.json"
SKIPPED_NAME = "skipped.jsonl"  # in the dataset directory: what could not be read
INVALID_FILES = 10


def count(finished: list[Finished], resolution: Resolution, splits: dict[str, Split], scratch: Path) -> dict:
    """The counts that go into the metadata; equal input and settings give equal ones."""
    tokens, text_bytes = sum(s.tokens for s in splits.values()), sum(s.bytes for s in splits.values())
    encoded = int(resolution.starts[-1])
    first = encoded if resolution.keep is None else resolution.keep.count()
    kept = sum(int(resolution.kept(unit).sum()) for unit in resolution.units)
    report = {
        "documents": kept,
        "bytes": text_bytes,
        "tokens": tokens,
        "bytes_per_token": text_bytes / tokens,
        "documents_read": sum(unit.documents_read for unit in finished),
        "duplicates": encoded - first,
        "dropped": total(unit.dropped for unit in finished),
        **total(unit.counts for unit in finished),
        "contaminated": resolution.contaminated(scratch),
    }
    found = map(resolution.invalid, resolution.units)
    report["invalid_utf8"] = sum(int(sizes[of_rows >= 0].sum()) for of_rows, _, sizes in (part.T for part in found))
    if skipped := total(unit.skipped for unit in finished):
        report["skipped"] = skipped
    if resolution.drop:
        report["near_duplicates"] = first - kept
    if lines := total(unit.dropped_lines for unit in finished):
        report["dropped_lines"] = lines
    return report


def invalid_files(pieces: list[Piece], resolution: Resolution) -> list[dict]:
    """The files with the most bytes that were not UTF-8, 10 at most.

    Each as {file, bytes, dropped: bytes in documents that the filter dropped} and, for a text file whose encoding can
    be guessed, {encoding, convert: a shell command}.
    """
    kept: Counter[tuple[str, str]] = Counter()
    dropped: Counter[tuple[str, str]] = Counter()
    for piece in pieces:
        for row, file, size in resolution.invalid(piece.number).tolist():
            (kept if row >= 0 else dropped)[piece.unit.paths[file], piece.unit.kind] += size
    found = []
    for file, _ in sorted((kept + dropped).items(), key=lambda item: (-item[1], item[0]))[:INVALID_FILES]:
        path, kind = file
        entry = {"file": path, "bytes": kept[file], "dropped": dropped[file]}
        if kind in TEXT_KINDS and (encoding := guess_encoding(path)):
            entry |= {"encoding": encoding, "convert": conversion(path, encoding)}
        found.append(entry)
    return found


def describe_invalid(files: list[dict], total: int) -> list[str]:
    """What to print about bytes that were not UTF-8: a line, and one for each file."""
    lines = [f"{total:,} bytes were not UTF-8 and became U+FFFD; the files with the most:"]
    for entry in files:
        dropped = f" and {entry['dropped']:,} in documents that were dropped" if entry["dropped"] else ""
        guess = f", perhaps {entry['encoding']}: {entry['convert']}" if "encoding" in entry else ""
        lines.append(f"  {entry['file']}: {entry['bytes']:,} bytes{dropped}{guess}")
    return lines


def examples(
    finished: list[Finished], resolution: Resolution, work: Work, tokenizer: PreTrainedTokenizerFast
) -> dict[str, list[str]]:
    """The beginnings of the first documents (or lines) that were dropped for each reason."""
    found: dict[str, list[str]] = {}
    for unit in finished:
        for reason, texts in unit.examples.items():
            found[reason] = (found.get(reason, []) + texts)[:EXAMPLES]
    duplicates: list[str] = []
    for unit in resolution.units:
        if len(duplicates) == EXAMPLES:
            break
        table, ids = rows(resolution.folder, unit), token_ids(work.folder, unit, work.dtype)
        for row in (~resolution.kept(unit)).nonzero()[0][: EXAMPLES - len(duplicates)]:
            start = int(table["tokens"][:row].sum())
            end = start + min(int(table["tokens"][row]) - 1, EXAMPLE_CHARACTERS)
            duplicates.append(tokenizer.decode(ids[start:end].tolist())[:EXAMPLE_CHARACTERS])
    return found | ({"duplicate": duplicates} if duplicates else {})


def write_report(
    directory: Path, manifest: Manifest, dropped_examples: dict[str, list[str]], invalid: list[dict], run: dict
) -> None:
    """`prepare_report.json`: the counts, samples of what was dropped, the files that are not UTF-8, and, under `run`,
    what differs from run to run.
    """
    splits = {
        name: {"tokens": s.tokens, "documents": s.documents, "bytes": s.bytes, "shards": len(s.shards)}
        for name, s in manifest.splits.items()
    }
    content = {
        **manifest.report,
        "splits": splits,
        "sources": manifest.sources,
        "examples": dropped_examples,
        "invalid_utf8_files": invalid,
        "run": run,
    }
    replace_text(directory / REPORT_NAME, json.dumps(content, indent=1, ensure_ascii=False))


class _Report(TypedDict):
    examples: dict[str, list[str]]


def read_examples(directory: Path) -> dict[str, list[str]]:
    """The samples of what was dropped, by reason; none if the report is not there."""
    path = directory / REPORT_NAME
    return read_json(path, _Report, DataError)["examples"] if path.is_file() else {}


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of counts, by name."""
    found: Counter[str] = Counter()
    for counter in counts:
        found.update(counter)
    return dict(sorted(found.items()))
