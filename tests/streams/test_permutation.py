"""The keyed permutation: a bijection at any size, and not to be told from a true shuffle."""

import math

import numpy as np
import pytest

from mypt.streams.permutation import SMALL, derive_key, permute


@pytest.mark.parametrize("n", [1, 2, 3, 10, 999, SMALL, SMALL + 1, 100_003, 300_000])
def test_every_entry_comes_exactly_once(n):
    for key in (0, 1, derive_key(7, 3)):
        assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@pytest.mark.parametrize("n", [1_000, 200_000])
def test_single_entries_agree_with_the_whole(n):
    whole = permute(np.arange(n), n, key=5)
    picks = np.random.default_rng(0).integers(0, n, 50)
    assert all(permute(np.array([pick]), n, key=5)[0] == whole[pick] for pick in picks)


def test_it_looks_like_a_true_shuffle():
    """Serial correlation, agreement between keys and descents at n = 200,000 lie within 4 sigma of a true shuffle's."""
    n = 200_000
    first, second = permute(np.arange(n), n, derive_key(1, 0)), permute(np.arange(n), n, derive_key(1, 1))
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)
    assert (first == second).sum() <= 8  # Poisson with mean 1
    assert (first == np.arange(n)).sum() <= 8
    descents = (np.diff(first) < 0).sum()
    assert abs(descents - (n - 1) / 2) < 4 * np.sqrt((n + 1) / 12)


def test_pairs_of_neighbours_spread_evenly():
    """Chi-squared over a 20 x 20 grid of (value, next value): mean 399, standard deviation 28."""
    n = 400_000
    values = permute(np.arange(n), n, key=11) * 20 // n
    counts = np.bincount(values[:-1] * 20 + values[1:], minlength=400)
    expected = (n - 1) / 400
    assert ((counts - expected) ** 2 / expected).sum() < 399 + 4 * 28.2


def test_keys_depend_on_every_part_and_on_the_order():
    keys = {derive_key(*parts) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0), (1, 3), (0, 2)]}
    assert len(keys) == 6
    assert derive_key(1, 2) == derive_key(1, 2)


def test_a_far_position_of_a_huge_range_needs_no_table():
    n = 10**12
    values = permute(np.arange(n - 1_000, n), n, key=3)
    assert len(set(values.tolist())) == 1_000
    assert values.min() >= 0 and values.max() < n


@pytest.mark.parametrize("n", [70_001, 2**32 + 1, 10**15])
def test_it_is_the_network_that_it_says_it_is(n):
    """The same in Python's own integers, with real divisions: orders of earlier runs stay what they were."""

    def hashed(value: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ value >> shift) * factor % 2**64
        return value ^ value >> 31

    def walked(value: int, key: int) -> int:
        a = math.isqrt(n - 1) + 1
        sizes = (a, -(-n // a))
        halves = list(divmod(value, sizes[1]))
        for step in range(6):
            moved, other = step % 2, 1 - step % 2
            keyed = hashed((halves[other] + derive_key(key, step)) % 2**64) >> 32
            halves[moved] = (halves[moved] + (keyed * sizes[moved] >> 32)) % sizes[moved]
        value = halves[0] * sizes[1] + halves[1]
        return value if value < n else walked(value, key)

    picks = np.random.default_rng(0).integers(0, n, 300)
    assert permute(picks, n, key=9).tolist() == [walked(pick, 9) for pick in picks.tolist()]
