"""Similarity is that of word 5-grams; the first of similar documents stays, whatever the chunks and the buffers."""

import random
import sys

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.text import dedup
from mypt.text.near_dedup import NEIGHBOURS, SLOTS, bands, near_duplicates, signatures

SCALE = 0.05  # half again the standard error of the estimate


def words(count, seed):
    draw = random.Random(seed)
    return [f"w{draw.randrange(10**9)}" for _ in range(count)]


def shingles(text):
    split = text.lower().split()
    return {tuple(split[i : i + 5]) for i in range(max(1, len(split) - 4))}


def jaccard(first, second):
    first, second = shingles(first), shingles(second)
    return len(first & second) / len(first | second)


def random_signatures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (count, SLOTS), dtype=np.uint32)


def altered(signature, slots, seed):
    """The signature with so many slots changed: its similarity is 1 - slots / 128."""
    draw = np.random.default_rng(seed)
    copy = signature.copy()
    copy[draw.permutation(SLOTS)[:slots]] += np.uint32(1)
    return copy


def greedy(table, threshold):
    """The rule itself: against every document kept before."""
    kept: list[int] = []
    for i, row in enumerate(table):
        if not any((table[j] == row).mean() >= threshold for j in kept):
            kept.append(i)
    return [i not in set(kept) for i in range(len(table))]


class TestSignatures:
    @pytest.fixture(autouse=True)
    def rensa(self):
        pytest.importorskip("rensa")

    @pytest.mark.parametrize("changed", [0, 2, 5, 10, 20, 60, 200])
    def test_equal_slots_estimate_the_jaccard_similarity(self, changed):
        pairs = []
        for seed in range(10):
            first = words(400, seed)
            second = list(first)
            for place in random.Random(seed).sample(range(400), changed):
                second[place] = "x"
            pairs.append((" ".join(first), " ".join(second)))
        table = signatures([text for pair in pairs for text in pair])
        estimated = (table[::2] == table[1::2]).mean(axis=1)
        exact = [jaccard(*pair) for pair in pairs]
        assert (table.shape, table.dtype) == ((20, SLOTS), np.uint32)
        assert np.abs(estimated - exact).max() < 3 * SCALE
        assert abs(estimated.mean() - np.mean(exact)) < SCALE

    def test_only_words_and_their_order_count(self):
        same = signatures(["Once upon a time there was", "once  UPON a\ntime there\twas "])
        assert (same[0] == same[1]).all()
        other = signatures(["once upon a time there was", "was there time a upon once"])
        assert (other[0] == other[1]).mean() < 0.1

    def test_each_text_is_for_itself(self):
        texts = ["", "one", "one two three four", "one two three four five", " ".join(words(50, 0)), " \n", "one"]
        together = signatures(texts)
        assert [row.tolist() for row in together] == [signatures([text])[0].tolist() for text in texts]
        assert (together[0] == together[5]).all() and (together[1] == together[6]).all()
        assert (together[0] == together[1]).mean() < 0.1
        assert signatures([]).shape == (0, SLOTS)

    def test_documents_that_differ_in_a_few_words_are_found(self, tmp_path):
        text = words(1000, 1)
        edited = [*text[:500], "another", *text[501:]]
        half = [*text[:500], *words(500, 2)]
        texts = [" ".join(each) for each in (text, half, edited, words(1000, 3), text)]
        assert near_duplicates([signatures(texts)], 0.8, tmp_path)[:].tolist() == [False, False, True, False, True]


def test_without_rensa(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(DataError, match=r"rensa; install it: pip install mypt\[dedup\]"):
        signatures(["a"])


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("buffer", [None, 50])
def test_the_first_stays_and_similarity_is_not_passed_on(threshold, buffer, monkeypatch, tmp_path):
    if buffer:
        monkeypatch.setattr(dedup, "BUFFER", buffer)
    draw = np.random.default_rng(0)
    table = random_signatures(300)
    for i in range(1, 300):
        if draw.random() < 0.6:  # a copy, or a copy of a copy, far from the threshold on one side or the other
            table[i] = altered(table[draw.integers(i)], int(draw.choice([0, 1, 4, 9, 40, 90])), seed=i)
    expected = greedy(table, threshold)
    for chunk in (7, 300):
        chunks = (table[start : start + chunk] for start in range(0, 300, chunk))
        found = near_duplicates(chunks, threshold, tmp_path / "scratch")[:].tolist()
        # Buckets may miss one pair in a hundred that is as similar as the threshold, and never find a wrong one.
        assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 3
    assert not list((tmp_path / "scratch").iterdir())


def test_a_chain(tmp_path):
    """B is like A and C like B, but C is not like A: B goes, C stays."""
    a = random_signatures(1)[0]
    b = a.copy()
    b[:20] += np.uint32(1)  # 0.844 of A
    c = b.copy()
    c[20:40] += np.uint32(1)  # 0.844 of B, 0.688 of A
    assert near_duplicates([np.stack([a, b, c])], 0.8, tmp_path)[:].tolist() == [False, True, False]
    assert near_duplicates([np.stack([b, a, c])], 0.8, tmp_path)[:].tolist() == [False, True, True]


def test_many_copies_of_a_text_and_of_its_variants(tmp_path):
    base = random_signatures(1)[0]
    variants = [altered(base, 5, seed=seed) for seed in range(10 * NEIGHBOURS)]
    table = np.stack([base, *variants, base, *variants])
    assert near_duplicates([table], 0.9, tmp_path).count() == len(table) - 1


def test_nothing_and_one(tmp_path):
    assert len(near_duplicates([], 0.8, tmp_path)) == 0
    assert near_duplicates([random_signatures(1)], 0.8, tmp_path)[:].tolist() == [False]


@pytest.mark.parametrize(("threshold", "expected"), [(1.0, (1, 128)), (0.9, (12, 10)), (0.8, (21, 6)), (0.5, (42, 3))])
def test_bands_find_what_is_as_similar_as_the_threshold(threshold, expected):
    count, rows = bands(threshold)
    assert (count, rows) == expected
    assert 1 - (1 - threshold**rows) ** count >= 0.99
    assert 1 - (1 - threshold ** (rows + 1)) ** (SLOTS // (rows + 1)) < 0.99 or rows == SLOTS
