"""The second of the two passes over the text: documents to train and val, to token ids, to shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mypt.shards.format import SPLITS, Split
from mypt.shards.settings import PrepareSettings
from mypt.shards.split import FEWEST_FOR_HASH, Part, hashed_to_val, split_at, tail_cut
from mypt.shards.survey import Reading, Survey
from mypt.shards.writer import ShardWriter
from mypt.tokenization.encode import encode_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH_CHARACTERS = 1_000_000


def divide(
    reading: Reading, settings: PrepareSettings, seen: Survey, say: Callable[[str], object]
) -> tuple[np.ndarray, Iterator[tuple[str, Part]]]:
    """Which documents are val, bool (documents,), and lazily the parts of all that are kept, each with its source.

    For a split by tail the array is filled while the parts are read.
    """
    documents, fraction = int(seen.keep.sum()), settings.val_fraction
    by_hash = settings.val_split == "hash" or fraction == 0
    if by_hash and fraction and documents < FEWEST_FOR_HASH:
        say(f"only {documents} documents: val is the tail of the text rather than a share of the documents")
        by_hash = False
    if by_hash:
        is_val = hashed_to_val(seen.hashes, fraction)
        parts = ((doc.source, Part(SPLITS[int(is_val[i])], doc.text, True)) for i, doc, _ in seen.kept(reading))
        return is_val, parts
    is_val = np.zeros(len(seen.hashes), dtype=bool)
    cut = tail_cut(sum(len(doc.text) for _, doc, _ in seen.kept(reading)), fraction)

    def divided() -> Iterator[tuple[str, Part]]:
        start = 0
        for i, doc, _ in seen.kept(reading):
            parts = split_at(doc.text, start, cut)
            is_val[i] = parts[0].split == "val"
            yield from ((doc.source, part) for part in parts)
            start += len(doc.text)

    return is_val, divided()


def encode_parts(
    parts: Iterator[tuple[str, Part]],
    tokenizer: PreTrainedTokenizerFast,
    writers: dict[str, ShardWriter],
    sources: dict[str, dict[str, Any]],
    advance: Callable[[int], object],
) -> dict[str, Split]:
    """Encode and write all parts; adds their counts to `sources`."""
    eos = np.array([tokenizer.eos_token_id], dtype=np.uint32)
    try:
        for batch in _batches(parts):
            encoded = encode_documents(tokenizer, [part.text for _, part in batch])
            for (source, part), ids in zip(batch, encoded, strict=True):
                ids = np.concatenate((ids, eos)) if part.ended else ids
                text_bytes = len(part.text.encode())
                writers[part.split].write(ids, text_bytes)
                counts = sources[source]
                counts["documents"] += part.ended
                counts["bytes"] += text_bytes
                counts["tokens"] += len(ids)
                advance(text_bytes)
        return {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()


def _batches(parts: Iterator[tuple[str, Part]]) -> Iterator[list[tuple[str, Part]]]:
    batch, characters = [], 0
    for source, part in parts:
        batch.append((source, part))
        characters += len(part.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
