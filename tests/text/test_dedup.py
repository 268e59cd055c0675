"""The first of equal hashes is kept: compared with a Python set over random input."""

import numpy as np
import pytest
import xxhash

from mypt.text.dedup import first_occurrences, text_hash


@pytest.mark.parametrize(("size", "distinct"), [(0, 1), (1, 1), (1000, 1), (1000, 30), (1000, 10**9)])
def test_first_occurrences(size, distinct):
    hashes = np.random.default_rng(size + distinct).integers(0, distinct, size, dtype=np.uint64)
    hashes += np.uint64(2**64 - 10**9 - 1)
    seen, expected = set(), []
    for value in hashes.tolist():
        expected.append(value not in seen)
        seen.add(value)
    assert first_occurrences(hashes).tolist() == expected


def test_text_hash_is_xxh3_64():
    assert text_hash(b"") == 0x2D06800538D394C2  # the published value for no input and seed 0
    assert text_hash("é".encode()) == xxhash.xxh3_64(b"\xc3\xa9").intdigest()
