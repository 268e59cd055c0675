"""A keyed permutation of range(n): any entry in O(1), nothing stored."""

from functools import lru_cache

import numpy as np

SMALL = 65_536  # up to here a sort of hashes is cheap and exactly uniform
ROUNDS = 6
_MASK = (1 << 64) - 1


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): uint64 -> uint64, every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """One 64-bit key from several whole numbers, in order."""
    key = 0
    for part in parts:
        state = (key + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        key = int(mix(np.array([state], np.uint64))[0])
    return key


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where the permutation `key` of range(n) sends each position; int64 (k,) -> int64 (k,).

    Small n: argsort of keyed hashes. Large n: a Feistel network over Z_a x Z_b with a * b >= n (Black & Rogaway 2002),
    walked until it lands inside the range again, which is a bijection of range(n).
    """
    if n <= SMALL:
        return _shuffled(n, key)[positions]
    values = _feistel(positions.astype(np.uint64), n, key)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _feistel(values[outside], n, key)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


@lru_cache(maxsize=8)
def _shuffled(n: int, key: int) -> np.ndarray:
    return np.argsort(mix(np.arange(n, dtype=np.uint64) + np.uint64(key)), kind="stable")


def _feistel(values: np.ndarray, n: int, key: int) -> np.ndarray:
    a = int(np.ceil(np.sqrt(n)))
    b = -(-n // a)
    left, right = values // np.uint64(b), values % np.uint64(b)
    for round_ in range(ROUNDS):
        round_key = np.uint64(derive_key(key, round_))
        if round_ % 2 == 0:
            left = (left + _scaled(right, round_key, a)) % np.uint64(a)
        else:
            right = (right + _scaled(left, round_key, b)) % np.uint64(b)
    return left * np.uint64(b) + right


def _scaled(half: np.ndarray, key: np.uint64, size: int) -> np.ndarray:
    """A keyed hash of `half`, scaled to range(size) without a division; size < 2**32."""
    return ((mix(half + key) >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
