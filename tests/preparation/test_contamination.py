"""Evaluation text among the training data: found with its share, by samples of a large split, and not where none is."""

import numpy as np
import pytest

from mypt.preparation import contamination
from mypt.preparation.contamination import contamination_line, find_contamination
from mypt.shards.open_dataset import open_dataset

LENGTH = 67  # tokens of a piece: 200 bytes at the 3 bytes a token of `make_shards`


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(1, 5_000, 400_000).astype(np.uint16)


@pytest.fixture
def search():
    """search({name: directory}, [directory, ...]): what of the val splits is in the train splits."""

    def find(sets, *train):
        manifests = {directory: open_dataset(directory) for directory in {*sets.values(), *train}}
        return find_contamination({name: (place, "val") for name, place in sets.items()}, train, manifests)

    return find


@pytest.mark.parametrize("length", [1, 2, 50, LENGTH, 256])
def test_the_rolling_hash_is_that_of_each_piece(length):
    values = contamination._mixed(np.arange(600, dtype=np.uint16))
    powers = np.array([pow(int(contamination._BASE), length - 1 - i, 2**64) for i in range(length)], np.uint64)
    pieces = np.lib.stride_tricks.sliding_window_view(values, length)
    rolled = contamination._rolling(values, length)
    assert np.array_equal(rolled, (pieces * powers).sum(axis=1, dtype=np.uint64))


@pytest.mark.parametrize("shared", [0, 0.03, 0.4, 1])
def test_the_share_of_a_guard_that_is_trained_on(shared, ids, make_shards, search):
    """Passages of the val split of `guard`, moved to odd places of `data`'s train split."""
    val, count = ids[:20_100], round(300 * shared)
    train = ids[100_000:300_000].copy()
    train[1_234 : 1_234 + count * LENGTH] = val[: count * LENGTH]
    data = str(make_shards("data", train=train, val=ids[390_000:], per_shard=30_000))
    guard = str(make_shards("guard", train=ids[300_000:310_000], val=val))
    found = search({"kept": guard, "own": data}, data)
    if not shared:
        assert found == [] and contamination_line(found) is None
        return
    assert [(each.name, each.directory, each.sampled) for each in found] == [("kept", data, 1.0)]
    assert found[0].share == pytest.approx(shared, abs=0.01)
    line = contamination_line(found)
    assert f"{shared:.0%} of kept is in the training data of {data}" in line and "\n" not in line


def test_a_sample_of_a_large_split_finds_what_is_spread_in_it(ids, make_shards, search, monkeypatch):
    monkeypatch.setattr(contamination, "MOST_TOKENS", 60_000)
    monkeypatch.setattr(contamination, "_SAMPLE", 512)
    train = ids[100_000:].copy()
    for number in range(100):  # half of the val split, in passages of 100 tokens
        train[3_000 * number : 3_000 * number + 100] = ids[200 * number : 200 * number + 100]
    data = str(make_shards("data", train=train, per_shard=100_000))
    guard = str(make_shards("guard", train=ids[:10], val=ids[:20_000]))
    (found,) = search({"kept": guard}, data)
    assert found.sampled == pytest.approx(0.2, rel=0.01)
    assert str(found).startswith("about ")


def test_passages_that_a_corpus_repeats_are_its_own(ids, make_shards, search):
    val = np.concatenate([ids[:2_010], ids[200_000:208_040]])  # a fifth is in train, too
    data = str(make_shards("data", train=ids[:50_000], val=val))
    assert search({"own": data}, data) == []
    other = str(make_shards("other", train=ids[300_000:310_000], val=val))
    assert [found.name for found in search({"own": other}, data)] == ["own"]


def test_rules_and_blanks_are_no_shared_text(ids, make_shards, search):
    blank = np.full(20_000, 7, np.uint16)
    data = str(make_shards("data", train=np.concatenate([ids[:50_000], blank])))
    guard = str(make_shards("guard", train=ids[:10], val=np.concatenate([blank, ids[300_000:301_000]])))
    assert search({"kept": guard}, data) == []


def test_a_split_shorter_than_a_piece_is_passed_over(ids, make_shards, search):
    data = str(make_shards("data", train=ids[:30]))
    guard = str(make_shards("guard", train=ids[:10], val=ids[:20]))
    long = str(make_shards("long", train=ids[:10], val=ids[:20_000]))
    assert search({"kept": guard, "long": long}, data) == []
