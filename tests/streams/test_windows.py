"""How a stream is cut: counts worked by hand, every target at most once in an epoch."""

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.shards.fetching import BLOCK_TOKENS, POOL_BLOCKS
from mypt.streams.windows import evaluation_starts, phase, window_count, window_starts


@pytest.mark.parametrize(
    ("tokens", "block", "windows"),
    [(11, 10, 1), (19, 10, 1), (20, 10, 1), (29, 10, 1), (30, 10, 2), (101, 10, 9), (1_000_000, 256, 3905)],
)
def test_window_count_by_hand(tokens, block, windows):
    assert window_count(tokens, block) == windows


def test_a_split_shorter_than_a_window_is_refused():
    with pytest.raises(DataError, match="needs at least 11 tokens, the split has 10"):
        window_count(10, 10)


@pytest.mark.parametrize(("tokens", "block"), [(11, 10), (15, 10), (19, 10), (20, 10), (257, 16), (5_000, 7)])
def test_each_epoch_has_every_window_once_and_stays_inside(tokens, block):
    n = window_count(tokens, block)
    for epoch in range(6):
        starts = window_starts(np.arange(epoch * n, (epoch + 1) * n), tokens, block, seed=4)
        offset = phase(epoch, tokens, block, seed=4)
        assert np.array_equal(np.sort(starts), offset + block * np.arange(n))
        assert starts.max() + block + 1 <= tokens


def test_all_but_fewer_than_two_blocks_of_tokens_are_targets():
    for tokens in range(40, 80):
        left_out = tokens - window_count(tokens, 10) * 10
        assert left_out < 20


def test_the_phase_begins_at_zero_and_then_rotates():
    phases = [phase(epoch, 10_000, 64, seed=1) for epoch in range(40)]
    assert phases[0] == 0
    assert len(set(phases)) > 20
    assert max(phases) < 64


def test_seed_and_epoch_change_the_order():
    n = window_count(5_000, 10)
    orders = [window_starts(np.arange(n), 5_000, 10, seed) for seed in (0, 1)]
    assert not np.array_equal(*orders)
    second = window_starts(np.arange(n, 2 * n), 5_000, 10, 0)
    assert not np.array_equal(orders[0], second - phase(1, 5_000, 10, 0))


BLOCK_ORDERED = [  # tokens, block size: one window; one pool; many with ragged ends; windows longer than a block
    (11, 10),
    (70_000, 64),
    (5_000_000, 1_024),
    (10_000_000, 700),
    (3_000_000, 70_000),
    (300_000, 1),
]


@pytest.mark.parametrize(("tokens", "block"), BLOCK_ORDERED)
def test_in_the_order_of_blocks_too_each_epoch_has_every_window_once(tokens, block):
    n = window_count(tokens, block)
    for epoch in range(3):
        starts = window_starts(np.arange(epoch * n, (epoch + 1) * n), tokens, block, seed=4, order="blocks")
        assert np.array_equal(np.sort(starts), phase(epoch, tokens, block, seed=4) + block * np.arange(n))


@pytest.mark.parametrize("order", ["full", "blocks"])
def test_any_part_of_the_order_is_that_part_of_the_whole(order):
    tokens, block = 12_000_000, 900
    n = window_count(tokens, block)
    whole = window_starts(np.arange(3 * n), tokens, block, 7, order)
    picks = np.random.default_rng(0).integers(0, 3 * n, 500)
    assert np.array_equal(window_starts(picks, tokens, block, 7, order), whole[picks])
    later = window_starts(np.arange(2 * n), tokens, block, 7, order, first_epoch=1)
    assert np.array_equal(later, whole[n:])


def test_blocks_keep_neighbours_together_and_shuffle_the_rest():
    """64 blocks of 64 windows fill a pool; blocks, their pools and the windows inside change with the epoch."""
    tokens, block = 20 * POOL_BLOCKS * BLOCK_TOKENS + 1_024, 1_024
    n, per_pool = window_count(tokens, block), POOL_BLOCKS * 64
    assert n == 20 * per_pool
    epochs = [window_starts(np.arange(n), tokens, block, 1, "blocks", epoch) // BLOCK_TOKENS for epoch in (0, 1)]
    for order in epochs:
        pools = [set(order[begin : begin + per_pool].tolist()) for begin in range(0, n, per_pool)]
        assert [len(pool) for pool in pools] == [POOL_BLOCKS] * 20
        assert set.union(*pools) == set(range(20 * POOL_BLOCKS))
        # in the pool: neighbours are of one block about once in 64 times (4 sigma of 81,919 draws)
        share = (order[1:] == order[:-1]).mean()
        assert abs(share - 63 / 4_095) < 4 * np.sqrt(share / n)
        # the blocks of a pool come from everywhere
        assert all(max(pool) - min(pool) > 1_000 for pool in pools)
    assert len(set(epochs[0][:per_pool]) & set(epochs[1][:per_pool])) < 16  # 3.2 by chance


def test_a_far_sample_of_a_huge_stream_costs_nothing():
    for order in ("full", "blocks"):
        starts = window_starts(np.arange(10**15, 10**15 + 10), 10**13, 1_024, 0, order)
        assert len(set(starts.tolist())) == 10 and starts.min() >= 0 and starts.max() < 10**13


def test_an_unknown_order_is_refused():
    with pytest.raises(DataError, match="order 'random' is none of full, blocks"):
        window_starts(np.arange(3), 100, 10, 0, "random")


def test_evaluation_windows_make_each_token_but_the_first_a_target_once():
    for tokens in (2, 10, 11, 12, 101):
        starts = evaluation_starts(tokens, 10)
        targets = [t for start in starts for t in range(start + 1, min(start + 11, tokens))]
        assert targets == list(range(1, tokens))
    with pytest.raises(DataError):
        evaluation_starts(1, 10)
