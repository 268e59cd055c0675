"""Evaluation windows: in order, every token but the first a target once, shared out without loss."""

import numpy as np
import pytest
import torch

from mypt.streams.eval_windows import EvalWindows


@pytest.mark.parametrize("tokens", [2, 16, 17, 18, 100, 161])
def test_the_targets_are_the_split_without_its_first_token(make_shards, tokens):
    ids = np.random.default_rng(0).integers(0, 99, tokens)
    windows = EvalWindows(make_shards(train=[1, 2], val=ids, per_shard=23, eos=7), block_size=16)
    items = [windows[i] for i in range(len(windows))]
    inputs, labels, targets = (torch.cat([item[name] for item in items]).numpy() for name in items[0])
    assert len(inputs) == 16 * len(windows), "items of one length stack in any DataLoader"
    assert np.array_equal(inputs[: tokens - 1], ids[:-1]) and (inputs[tokens - 1 :] == 7).all()
    for filled, wanted in ((labels, ids[:-1]), (targets, ids[1:])):
        assert np.array_equal(filled[: tokens - 1], wanted) and (filled[tokens - 1 :] == -100).all()
    assert windows.lengths.sum() == tokens - 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_all_windows(make_shards, world):
    windows = EvalWindows(make_shards(train=[1, 2], val=np.arange(170)), block_size=16)
    batches = [batch for rank in range(world) for batch in windows.batches(4, rank, world)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(windows)))
    assert all(len(set(windows.lengths[batch].tolist())) == 1 for batch in batches)


def test_a_limit_takes_evenly_spaced_windows(make_shards):
    windows = EvalWindows(make_shards(train=[1, 2], val=np.arange(1_601)), block_size=16, max_windows=5)
    assert windows.starts[0] == 0 and windows.starts[-1] == 99 * 16
    gaps = np.diff(windows.starts)
    assert gaps.max() - gaps.min() <= 16


def test_bytes_per_token(make_shards):
    assert EvalWindows(make_shards(train=[1, 2], val=np.arange(100)), block_size=16).bytes_per_token == 3
