"""The two ways to split, by hand."""

import numpy as np
import pytest

from mypt.preparation.assignment import Part, hashed_to_val, split_at, tail_cut


def test_hash_split_is_a_threshold():
    hashes = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert hashed_to_val(hashes, 0.5).tolist() == [True, True, False, False]
    assert hashed_to_val(hashes, 0.0).tolist() == [False] * 4


def test_hash_split_takes_its_share():
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    assert hashed_to_val(hashes, 0.1).mean() == pytest.approx(0.1, abs=0.004)  # 4 standard deviations


def test_tail_cut_is_nanogpts():
    assert 1_115_394 - tail_cut(1_115_394, 0.1) == 111_540
    assert tail_cut(10, 0.5) == 5


@pytest.mark.parametrize(
    ("start", "parts"),
    [
        (0, [Part("train", "abcd")]),
        (6, [Part("train", "abcd")]),
        (7, [Part("train", "abc"), Part("val", "d")]),
        (9, [Part("train", "a"), Part("val", "bcd")]),
        (10, [Part("val", "abcd")]),
        (11, [Part("val", "abcd")]),
    ],
)
def test_split_at_character_ten(start, parts):
    assert split_at("abcd", start, 10) == parts
