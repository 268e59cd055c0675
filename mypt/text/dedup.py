"""Exact deduplication of documents by the 64-bit hashes of their texts."""

import numpy as np
import xxhash


def text_hash(text: bytes) -> int:
    """xxh3-64 of a document's UTF-8 bytes; two of 64 million documents collide with a chance of 1 in 9,000."""
    return xxhash.xxh3_64_intdigest(text)


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """Which documents to keep, so that each hash occurs once and its first document wins.

    `hashes` is uint64 (n,) in document order; returns bool (n,).
    """
    keep = np.zeros(len(hashes), dtype=bool)
    if len(hashes):
        order = np.argsort(hashes, kind="stable")
        sorted_hashes = hashes[order]
        keep[order[0]] = True
        keep[order[1:][sorted_hashes[1:] != sorted_hashes[:-1]]] = True
    return keep
