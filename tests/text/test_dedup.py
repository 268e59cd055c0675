"""The first of equal hashes is kept, in memory or through files: compared with Python's sets over random input."""

import subprocess
import sys

import numpy as np
import pytest
import xxhash

from mypt.text import dedup
from mypt.text.dedup import Marks, first_occurrences, shared, text_hash


def hashes_of(size, distinct, seed=0):
    """Spread over all 64 bits, so over all partitions."""
    values = np.random.default_rng(seed).integers(0, distinct, size, dtype=np.uint64)
    return values * np.uint64(0x9E3779B97F4A7C15)


def chunked(hashes, size):
    return (hashes[start : start + size] for start in range(0, len(hashes), size))


def firsts(hashes):
    seen: set[int] = set()
    return [not (value in seen or seen.add(value)) for value in hashes.tolist()]


@pytest.fixture(params=[None, 1000, 7], ids=["in memory", "through files", "in many blocks"])
def buffer(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(dedup, "BUFFER", request.param)


@pytest.mark.parametrize(("size", "distinct"), [(0, 1), (1, 1), (1500, 1), (1500, 30), (5000, 4000), (1500, 10**9)])
@pytest.mark.parametrize("chunk", [1, 999, 10_000])
def test_first_occurrences(size, distinct, chunk, buffer, tmp_path):
    hashes = hashes_of(size, distinct)
    marks = first_occurrences(chunked(hashes, chunk), tmp_path / "scratch")
    assert marks[:].tolist() == firsts(hashes)
    assert (len(marks), marks.count()) == (size, len(set(hashes.tolist())))
    assert not list(tmp_path.rglob("*")) or not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 50), (50, 0), (3000, 2000), (10, 3000), (3000, 10)])
def test_shared(first, second, buffer, tmp_path):
    known, asked = hashes_of(first, 5000, seed=1), hashes_of(second, 5000, seed=2)
    marks = shared(chunked(known, 700), chunked(asked, 300), tmp_path)
    assert marks[:].tolist() == [value in set(known.tolist()) for value in asked.tolist()]
    assert not list(tmp_path.iterdir())


def test_extreme_hashes(buffer, tmp_path):
    hashes = np.array([0, 2**64 - 1, 2**63, 0, 2**64 - 1, 2**63 - 1] * 10, dtype=np.uint64)
    assert first_occurrences([hashes], tmp_path)[:8].tolist() == [True, True, True, False, False, True, False, False]
    assert shared([hashes[:1]], [hashes], tmp_path)[:6].tolist() == [True, False, False, True, False, False]


def test_marks_are_read_in_any_slice():
    expected = np.random.default_rng(0).random(1003) < 0.3
    marks = Marks(1003)
    marks.mark(np.flatnonzero(expected[:500]))
    marks.mark(np.flatnonzero(expected[500:]) + 500)  # its first bits share a byte with the last of those before
    marks.mark(np.array([], dtype=np.int64))
    for start, stop in [
        (0, 1003),
        (0, 0),
        (3, 5),
        (7, 9),
        (8, 16),
        (500, 1003),
        (1002, 1003),
        (900, 5000),
        (-5, None),
        (9, 3),
    ]:
        assert marks[start:stop].tolist() == expected[start:stop].tolist()
        assert marks[start:stop].dtype == bool
    assert marks.count() == expected.sum()
    assert len(Marks(0)[:]) == 0


def test_scratch_is_cleared_after_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(dedup, "BUFFER", 10)

    def chunks():
        yield hashes_of(100, 100)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        first_occurrences(chunks(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_is_bounded(tmp_path):
    """Six million hashes, all of them different and then all equal: a set of them would take some 500 MB."""
    code = (
        "import sys, resource, numpy as np; from pathlib import Path; from mypt.text import dedup\n"
        "dedup.BUFFER = 1 << 18\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "def chunks(factor):\n"
        "    return (np.arange(i, i + 100_000, dtype=np.uint64) * factor for i in range(0, 6_000_000, 100_000))\n"
        "factors, scratch = (np.uint64(2**64 // 6_000_000), np.uint64(0)), Path(sys.argv[1])\n"
        "dedup.first_occurrences([np.arange(9, dtype=np.uint64)], scratch); before = peak()\n"
        "print([dedup.first_occurrences(chunks(factor), scratch).count() for factor in factors], peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    counts, added = done.stdout.rsplit(maxsplit=1)
    assert counts == "[6000000, 1]"
    assert float(added) < 60  # MB


def test_text_hash_is_xxh3_64():
    assert text_hash(b"") == 0x2D06800538D394C2  # the published value for no input and seed 0
    assert text_hash("é".encode()) == xxhash.xxh3_64(b"\xc3\xa9").intdigest()
