"""The ledger against a count of what the stream really gave."""

import itertools

import numpy as np
import pytest

from mypt.streams.ledger import Source, seen_so_far
from mypt.streams.shard_stream import ShardStream


def test_by_hand():
    seen = seen_so_far([Source("a", 1_000, 1.0)], block_size=10, next_sample=250)[0]
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
        seen = seen_so_far(stream.sources, 16, steps * 5)
        assert [entry.samples for entry in seen] == [drawn["low"], drawn["high"]]
