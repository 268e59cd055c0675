"""A keyed permutation of range(n): any entry in O(1), nothing stored."""

import math
from functools import lru_cache

import numpy as np

from mypt.text.dedup import mix

SMALL = 65_536  # up to here a sort of hashes is cheap and exactly uniform
ROUNDS = 6
_CHUNK = 4_096  # positions: arrays that stay in the first-level cache
_MASK = (1 << 64) - 1


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
    values = np.empty(len(positions), np.uint64)
    for begin in range(0, len(positions), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        values[part] = _feistel(positions[part].astype(np.uint64), n, key)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _feistel(values[outside], n, key)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


@lru_cache(maxsize=8)
def _shuffled(n: int, key: int) -> np.ndarray:
    return np.argsort(mix(np.arange(n, dtype=np.uint64) + np.uint64(key)), kind="stable")


def _feistel(values: np.ndarray, n: int, key: int) -> np.ndarray:
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    left, right = np.divmod(values, np.uint64(b))
    spare = np.empty_like(left)
    for round_, round_key in enumerate(_round_keys(key)):
        if round_ % 2 == 0:
            _add_scaled(left, right, round_key, np.uint64(a), spare)
        else:
            _add_scaled(right, left, round_key, np.uint64(b), spare)
    left *= np.uint64(b)
    left += right
    return left


@lru_cache(maxsize=64)
def _round_keys(key: int) -> list[np.uint64]:
    return [np.uint64(derive_key(key, round_)) for round_ in range(ROUNDS)]


def _add_scaled(half: np.ndarray, other: np.ndarray, key: np.uint64, size: np.uint64, spare: np.ndarray) -> None:
    """half = (half + a keyed hash of `other` scaled to range(size)) % size, in place and without a division."""
    hashed = mix(np.add(other, key, out=spare))
    hashed >>= np.uint64(32)
    hashed *= size
    hashed >>= np.uint64(32)
    half += hashed
    # half < 2 * size, and half - size wraps to something huge below size: the smaller one is the remainder
    np.minimum(half, np.subtract(half, size, out=spare), out=half)
