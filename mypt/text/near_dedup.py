"""Find documents that share most of their word 5-grams, by MinHash signatures in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.text.dedup import Marks, Partitions, first_occurrences, mix

SLOTS = 128  # of a signature; the standard error of a similarity of 0.8 is 0.035
WORDS = 5  # in a shingle
NEIGHBOURS = 8  # earlier documents of a bucket that a document is compared with, besides the bucket's first
_RECALL = 0.99  # the least chance that two documents just as similar as the threshold meet in some bucket
_ROWS = 1 << 14  # signatures that are worked on at once: 8 MB
_SEED = 42


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures, uint32 (len(texts), 128): the share of equal slots estimates the Jaccard similarity.

    It is that of the sets of shingles: of every five consecutive words, lower-cased, a word being what white space
    divides; a text of fewer words is one shingle. Raises DataError if the package rensa is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError:
        raise DataError("near-duplicates are found by the package rensa; install it: pip install mypt[dedup]") from None
    if not texts:
        return np.zeros((0, SLOTS), dtype=np.uint32)
    words = [text.lower().split() for text in texts]
    counts = np.fromiter(map(len, words), np.int64, len(words))
    stops = np.cumsum(counts)
    hashes = np.fromiter(
        map(xxhash.xxh3_64_intdigest, map(str.encode, chain.from_iterable(words))), np.uint64, stops[-1]
    )
    shingles = np.maximum(counts - WORDS + 1, 1)
    offsets = np.concatenate(([0], np.cumsum(shingles)))
    # Place of each shingle's first word, and of the end of its text.
    first = np.arange(offsets[-1]) + np.repeat(stops - counts - offsets[:-1], shingles)
    end = np.repeat(stops, shingles)
    hashes = np.append(hashes, np.zeros(WORDS, dtype=np.uint64))
    tokens = sum(np.where(first + i < end, hashes[first + i], 0) * _odd(i) for i in range(WORDS))
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(mix(tokens), offsets.astype(np.uint64), SLOTS, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def near_duplicates(chunks: Iterable[np.ndarray], threshold: float, scratch: Path) -> Marks:
    """Mark the documents to drop: those whose similarity with an earlier kept one is at least `threshold`.

    `chunks` are signatures, uint32 (n, 128), in document order. The first document wins, and similarity is not passed
    on: if B is like A, and C like B but not like A, then B goes and C stays. Similarity is the share of equal slots.
    Documents are compared if they are in one bucket, that is, agree in some band of slots; two that are just as
    similar as the threshold meet with a chance of 99% or more. In a bucket of many, a document is compared with the
    first and with the eight before it, so that a few may stay that could go.
    Memory: a few 100 MB up to some 10 million documents, and one byte per document; 0.9 kB per document in `scratch`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix="near-") as folder:
        stored = Path(folder, "signatures")
        with open(stored, "wb") as file:
            # Only the first of equal signatures has to be compared.
            unique = first_occurrences(_stored(chunks, file), scratch)
        if not len(unique):
            return Marks(0)
        table = np.memmap(stored, np.uint32, mode="r").reshape(-1, SLOTS)
        dropped = bytearray(len(unique))
        with Partitions(scratch) as edges:
            for later, earlier in _similar(table, unique, threshold, scratch):
                edges.add(later.astype(np.uint64) << _shift(len(unique)), earlier)
            for later, earlier in _in_order(edges, len(unique)):
                if not dropped[earlier]:
                    dropped[later] = True
        marks = Marks(len(unique))
        for start in range(0, len(unique), 1 << 20):
            part = ~unique[start : start + (1 << 20)]
            part |= np.frombuffer(dropped, bool, len(part), start)
            marks.mark(np.flatnonzero(part) + start)
        del table
    return marks


def bands(threshold: float) -> tuple[int, int]:
    """The number and the length of bands: the longest that find pairs of similarity `threshold` with 99% chance."""
    for rows in range(SLOTS, 1, -1):
        count = SLOTS // rows
        if 1 - (1 - threshold**rows) ** count >= _RECALL:
            return count, rows
    return SLOTS, 1


def _stored(chunks: Iterable[np.ndarray], file) -> Iterator[np.ndarray]:
    """Writes the signatures to a file and yields a hash of each, uint64."""
    for chunk in chunks:
        for start in range(0, len(chunk), _ROWS):
            rows = np.ascontiguousarray(chunk[start : start + _ROWS])
            rows.tofile(file)
            yield _keys(rows)
    file.flush()


def _similar(
    table: np.ndarray, unique: Marks, threshold: float, scratch: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a document and an earlier one, int64 (n,) each, whose signatures are as similar as `threshold`."""
    count, rows = bands(threshold)
    with Partitions(scratch) as buckets:
        for start in range(0, len(table), _ROWS):
            items = np.flatnonzero(unique[start : start + _ROWS]) + start
            part = table[items]
            for band in range(count):
                buckets.add(_keys(part[:, band * rows : (band + 1) * rows], band), items)
        for blocks in buckets:
            keys, items = (np.concatenate(column) for column in zip(*blocks, strict=True))
            order = np.argsort(keys, kind="stable")
            for later, earlier in _pairs(keys[order], items[order]):
                for start in range(0, len(later), _ROWS):
                    pair = later[start : start + _ROWS], earlier[start : start + _ROWS]
                    like = (table[pair[0]] == table[pair[1]]).sum(axis=1) >= threshold * SLOTS
                    yield pair[0][like], pair[1][like]


def _pairs(keys: np.ndarray, items: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(later, earlier) within runs of equal keys: each item with those up to NEIGHBOURS before, and with the first."""
    places = np.arange(len(keys))
    firsts = np.maximum.accumulate(np.where(np.diff(keys, prepend=~keys[:1]) != 0, places, 0))
    for back in range(1, NEIGHBOURS + 1):
        found = np.flatnonzero(places - back >= firsts)
        if not len(found):
            return
        yield items[found], items[found - back]
    far = np.flatnonzero(places - NEIGHBOURS > firsts)
    yield items[far], items[firsts[far]]


def _in_order(edges: Partitions, documents: int) -> Iterator[tuple[int, int]]:
    """(later, earlier) by the later one; both as Python's integers."""
    for blocks in edges:
        keys, items = (np.concatenate(column) for column in zip(*blocks, strict=True))
        pairs = np.unique(np.column_stack(((keys >> _shift(documents)).astype(np.int64), items)), axis=0)
        yield from pairs.tolist()


def _shift(documents: int) -> np.uint64:
    """The shift to the left that spreads document numbers over 64 bits and keeps their order."""
    return np.uint64(64 - max(1, documents.bit_length()))


def _keys(rows: np.ndarray, salt: int = 0) -> np.ndarray:
    """A hash of each row of uint32 (n, slots), uint64 (n,)."""
    constants = np.array([_odd(salt * SLOTS + i) for i in range(rows.shape[1])])
    return mix((rows.astype(np.uint64) + 1) @ constants)


def _odd(i: int) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(i.to_bytes(4, "little")) | 1)
