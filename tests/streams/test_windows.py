"""How a stream is cut: counts worked by hand, every target at most once in an epoch."""

import numpy as np
import pytest

from mypt.errors import DataError
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


def test_evaluation_windows_make_each_token_but_the_first_a_target_once():
    for tokens in (2, 10, 11, 12, 101):
        starts = evaluation_starts(tokens, 10)
        targets = [t for start in starts for t in range(start + 1, min(start + 11, tokens))]
        assert targets == list(range(1, tokens))
    with pytest.raises(DataError):
        evaluation_starts(1, 10)
