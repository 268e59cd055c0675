"""Counts of the text that a preparation read, kept, dropped and changed; samples of the dropped text."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from mypt.errors import DataError
from mypt.files import replace_text
from mypt.json_files import find_json
from mypt.preparation.assignment import SplitAssignment
from mypt.preparation.prepare_run import PrepareRun
from mypt.preparation.units import EncodedText, EncodedUnit
from mypt.shards.format import Manifest, Split
from mypt.text.clean import EXAMPLE_CHARACTERS, EXAMPLES
from mypt.text.formats import TEXT_KINDS
from mypt.text.opening import conversion, guess_encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPORT_NAME = "prepare_report.json"
SKIPPED_NAME = "skipped.jsonl"  # in the dataset directory: what could not be read
INVALID_FILES = 10


def count(
    encoded: EncodedText, assignment: SplitAssignment, splits: dict[str, Split], scratch: Path, **known: Any
) -> dict:
    """The counts that go into the metadata, and `known`; equal input and settings give equal ones."""
    results = [unit.result for unit in encoded.units]
    tokens, text_bytes = sum(s.tokens for s in splits.values()), sum(s.bytes for s in splits.values())
    documents = int(assignment.starts[-1])
    first = documents if assignment.first is None else assignment.first.count()
    kept = assignment.documents
    invalid = (found.T for _, found in assignment.invalid())
    report = {
        "documents": kept,
        "bytes": text_bytes,
        "tokens": tokens,
        "bytes_per_token": text_bytes / tokens,
        "documents_read": sum(result.documents_read for result in results),
        "duplicates": documents - first,
        "dropped": total(result.dropped for result in results),
        **total(result.counts for result in results),
        "contaminated": assignment.contaminated(scratch),
    }
    report["invalid_utf8"] = sum(int(sizes[rows >= 0].sum()) for rows, _, sizes in invalid)
    if skipped := total(result.skipped for result in results):
        report["skipped"] = skipped
    if assignment.drop:
        report["near_duplicates"] = first - kept
    if lines := total(result.dropped_lines for result in results):
        report["dropped_lines"] = lines
    report |= {"loss": encoded.loss} if encoded.loss else {}
    return report | known | ({"val": assignment.replaced} if assignment.replaced else {})


def require_documents(encoded: EncodedText) -> None:
    """Raise DataError, with the reasons, if cleaning left no document."""
    if any(len(unit.rows) for unit in encoded.units):
        return
    results = [unit.result for unit in encoded.units]
    found = [(n, why) for result in results for why, n in (*result.dropped.items(), *result.skipped.items())]
    reasons = ", ".join(f"{n} {why}" for n, why in found) or "no document"
    files = describe_invalid(invalid_files((unit, unit.invalid) for unit in encoded.units), 0)[1:]
    message = f"the sources hold no text ({reasons}); give other files, or --no-filter to keep it"
    raise DataError("\n".join([message, *files]))


def invalid_files(invalid: Iterable[tuple[EncodedUnit, np.ndarray]]) -> list[dict]:
    """The files with the most bytes that were not UTF-8, 10 at most.

    Each as {file, bytes, dropped: bytes in documents that the filter dropped} and, for a text file whose encoding can
    be guessed, {encoding, convert: a shell command}.
    """
    kept: Counter[tuple[str, str]] = Counter()
    dropped: Counter[tuple[str, str]] = Counter()
    for encoded, found in invalid:
        for row, file, size in found.tolist():
            (kept if row >= 0 else dropped)[encoded.unit.paths[file], encoded.unit.kind] += size
    files = []
    for file, _ in sorted((kept + dropped).items(), key=lambda item: (-item[1], item[0]))[:INVALID_FILES]:
        path, kind = file
        entry = {"file": path, "bytes": kept[file], "dropped": dropped[file]}
        if kind in TEXT_KINDS and (encoding := guess_encoding(path)):
            entry |= {"encoding": encoding, "convert": conversion(path, encoding)}
        files.append(entry)
    return files


def describe_invalid(files: list[dict], total: int) -> list[str]:
    """The lines to print about bytes that were not UTF-8: one for all, and one for each file."""
    lines = [f"{total:,} bytes were not UTF-8 and became U+FFFD; the files with the most:"] if files else []
    for entry in files:
        dropped = f" and {entry['dropped']:,} in documents that were dropped" if entry["dropped"] else ""
        guess = f", perhaps {entry['encoding']}: {entry['convert']}" if "encoding" in entry else ""
        lines.append(f"  {entry['file']}: {entry['bytes']:,} bytes{dropped}{guess}")
    return lines


def write_skipped(run: PrepareRun, encoded: EncodedText, before: Path | None = None) -> bool:
    """Write `skipped.jsonl` to the staging folder, unless nothing was skipped; returns whether it is there.

    It has the lines of the file `before`, then the new ones in the order of the input.
    """
    target = run.staging / SKIPPED_NAME
    target.unlink(missing_ok=True)  # of a call that was killed
    skipped = total(unit.result.skipped for unit in encoded.units)
    if not skipped:
        return False
    paths = [unit.path.with_suffix(".skipped.jsonl") for unit in encoded.units if unit.result.skipped]
    lines: dict[str, None] = {}
    for path in [before, *paths] if before and before.is_file() else paths:
        with open(path, encoding="utf-8", newline="\n") as file:
            lines |= dict.fromkeys(line.rstrip("\n") for line in file)
    replace_text(target, "".join(f"{line}\n" for line in lines))
    found = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
    run.say(f"skipped what cannot be read ({found}); all of it is listed in {SKIPPED_NAME}")
    return True


def examples(
    encoded: EncodedText, assignment: SplitAssignment, tokenizer: PreTrainedTokenizerFast
) -> dict[str, list[str]]:
    """The beginnings of the first documents (or lines) that were dropped for each reason."""
    found: dict[str, list[str]] = {}
    for unit in encoded.units:
        for reason, texts in unit.result.examples.items():
            found[reason] = (found.get(reason, []) + texts)[:EXAMPLES]
    duplicates: list[str] = []
    for index, unit in enumerate(encoded.units):
        if len(duplicates) == EXAMPLES:
            break
        table, ids = unit.rows, unit.ids
        for row in (~assignment.kept(index)).nonzero()[0][: EXAMPLES - len(duplicates)]:
            start = int(table["tokens"][:row].sum())
            end = start + min(int(table["tokens"][row]) - 1, EXAMPLE_CHARACTERS)
            duplicates.append(tokenizer.decode(ids[start:end].tolist())[:EXAMPLE_CHARACTERS])
    return found | ({"duplicate": duplicates} if duplicates else {})


def run_info(run: PrepareRun, encoded: EncodedText) -> dict[str, Any]:
    """Seconds, 10^6 bytes of text a second, the encoder, and the most memory of a process in MB."""
    seconds, units = time.perf_counter() - run.started, encoded.units
    text_bytes = sum(int(unit.rows["bytes"].sum()) for unit in units)
    encode_seconds = sum(unit.result.encode_seconds for unit in units)
    return {
        "seconds": seconds,
        "mb_per_second": text_bytes / 1e6 / seconds,
        "engine": encoded.engine,
        "encode_mb_per_second": text_bytes / 1e6 / max(encode_seconds, 1e-9),
        "workers": min(run.workers, len(units)),
        "units": len(units),
        "peak_memory_mb": _peak_memory(),
    }


def _peak_memory() -> int | None:
    """The most memory of this process or of an ended worker, in 10^6 bytes; None where the system keeps no count."""
    try:
        import resource
    except ImportError:
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak * (1024 if sys.platform == "linux" else 1) / 1e6)


def write_report(
    directory: Path, manifest: Manifest, dropped: dict[str, list[str]], invalid: list[dict], run: dict
) -> None:
    """Write `prepare_report.json`: the counts, samples of what was dropped, the files that are not UTF-8, and, under
    `run`, what differs from run to run.
    """
    splits = {
        name: {"tokens": s.tokens, "documents": s.documents, "bytes": s.bytes, "shards": len(s.shards)}
        for name, s in manifest.splits.items()
    }
    content = {
        **manifest.report,
        "splits": splits,
        "sources": manifest.sources,
        "examples": dropped,
        "invalid_utf8_files": invalid,
        "run": run,
    }
    replace_text(directory / REPORT_NAME, json.dumps(content, indent=1, ensure_ascii=False))


class _Report(TypedDict):
    examples: dict[str, list[str]]


def read_examples(directory: Path) -> dict[str, list[str]]:
    """The samples of what was dropped, by reason; none if the report is not there."""
    report = find_json(directory / REPORT_NAME, _Report, DataError)
    return report["examples"] if report else {}


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of counts, by name."""
    found: Counter[str] = Counter()
    for counter in counts:
        found.update(counter)
    return dict(sorted(found.items()))
