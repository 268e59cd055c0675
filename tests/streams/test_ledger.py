"""The ledger against a count of what the stream really gave."""

import itertools

import numpy as np
import pytest
import torch

from mypt.streams.ledger import Ledger, Source
from mypt.streams.shard_stream import ShardStream


def test_by_hand():
    seen = Ledger([Source("a", 1_000, 1.0)], block_size=10).seen(250)[0]
    assert (seen.samples, seen.tokens) == (250, 2_500)
    assert seen.coverage == pytest.approx(2.5)
    assert seen.epochs == pytest.approx(250 / 99)  # (1000 - 10) // 10 windows


def test_it_counts_what_the_stream_gave(make_shards):
    rng = np.random.default_rng(0)
    low = make_shards("low", train=rng.integers(0, 100, 900))
    high = make_shards("high", train=rng.integers(100, 200, 700))
    stream = ShardStream({low: 0.8, high: 0.2}, block_size=16, seed=3, micro_batch_size=5)
    drawn = {"low": 0, "high": 0}
    for steps, batch in enumerate(itertools.islice(stream, 60), start=1):
        for row in batch["input_ids"]:
            drawn["low" if row[0] < 100 else "high"] += 1
        seen = stream.seen(steps * 5)
        assert [entry.samples for entry in seen] == [drawn["low"], drawn["high"]]


def test_it_counts_across_a_change_of_weights(make_shards):
    rng = np.random.default_rng(0)
    low = make_shards("low", train=rng.integers(0, 100, 900))
    high = make_shards("high", train=rng.integers(100, 200, 700))
    stream = ShardStream({low: 0.8, high: 0.2}, block_size=16, micro_batch_size=5)
    stream.change_weights([0.3, 0.7], 150)
    rows = torch.cat([batch["input_ids"][:, 0] for batch in itertools.islice(stream, 60)])
    for next_sample in (0, 75, 150, 155, 300):
        low_drawn = int((rows[:next_sample] < 100).sum())
        assert [entry.samples for entry in stream.seen(next_sample)] == [low_drawn, next_sample - low_drawn]


def test_by_hand_across_appended_data():
    """3 windows an epoch in 41 tokens of blocks of 10; 5 from the second epoch on, in 61."""
    event = {"sample": 4, "appended": {"source": 0, "tokens": 61, "shards": 2, "fingerprint": "f"}}
    ledger = Ledger([Source("a", 41, 1.0)], 10, [event])
    assert [ledger.seen(samples)[0].epochs for samples in (0, 3, 4, 6, 11, 12)] == [0, 1, 4 / 3, 2, 3, 3.2]
    assert ledger.seen(6)[0].coverage == 60 / 61
    assert ledger.state(6)["sources"][0]["tokens"] == 41, "the state holds the sources as they were at sample 0"
