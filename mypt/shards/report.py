"""What a preparation read, kept, dropped and changed, as counts; and samples of what it dropped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.files import replace_text
from mypt.shards.format import Manifest, Split
from mypt.shards.resolve import Resolution
from mypt.shards.units import Finished, Work, rows, token_ids
from mypt.text.clean import EXAMPLE_CHARACTERS, EXAMPLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPORT_NAME = "prepare_report.json"


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
        "dropped": _sum(unit.dropped for unit in finished),
        **_sum(unit.counts for unit in finished),
        "contaminated": resolution.contaminated(scratch),
    }
    if resolution.drop:
        report["near_duplicates"] = first - kept
    if lines := _sum(unit.dropped_lines for unit in finished):
        report["dropped_lines"] = lines
    return report


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


def write_report(directory: Path, manifest: Manifest, dropped_examples: dict[str, list[str]], run: dict) -> None:
    """`prepare_report.json`: the counts, samples of what was dropped and, under `run`, what differs from run to run."""
    splits = {
        name: {"tokens": s.tokens, "documents": s.documents, "bytes": s.bytes, "shards": len(s.shards)}
        for name, s in manifest.splits.items()
    }
    content = {
        **manifest.report,
        "splits": splits,
        "sources": manifest.sources,
        "examples": dropped_examples,
        "run": run,
    }
    replace_text(directory / REPORT_NAME, json.dumps(content, indent=1, ensure_ascii=False))


def read_examples(directory: Path) -> dict[str, list[str]]:
    """The samples of what was dropped, by reason; none if the report is not there."""
    path = directory / REPORT_NAME
    return json.loads(path.read_text(encoding="utf-8"))["examples"] if path.is_file() else {}


def _sum(counts) -> dict[str, int]:
    total: Counter = Counter()
    for counter in counts:
        total.update(counter)
    return dict(sorted(total.items()))
