"""What changed since a state was saved becomes events; other data is refused with what differs."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mypt.errors import DataError
from mypt.streams.shard_stream import ShardStream
from mypt.streams.timeline import describe
from mypt.streams.windows import window_count

BLOCK = 16


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 5_000, 6_000)


def firsts(stream: ShardStream, count: int) -> torch.Tensor:
    """(count, BLOCK) inputs of the next samples."""
    stream.config = replace(stream.config, micro_batch_size=1)
    return torch.cat([batch["input_ids"] for batch in itertools.islice(stream, count)])


def saved(stream: ShardStream, next_sample: int) -> dict:
    """As a checkpoint gives it back."""
    return json.loads(json.dumps(stream.state(next_sample)))


def test_the_same_data_goes_on_without_an_event(make_shards, tokens):
    whole = ShardStream(make_shards("here", train=tokens), block_size=BLOCK, seed=4)
    again = ShardStream(make_shards("moved", train=tokens), block_size=BLOCK, seed=4, state=saved(whole, 123))
    assert again.events == [] and again.start_sample == 123
    assert torch.equal(firsts(again, 50), firsts(whole, 173)[123:])
    names = {"sources": None}  # the directory moved
    assert again.state(200) | names == whole.state(200) | names


def test_other_weights_of_the_same_sources_are_an_event(make_shards, tokens):
    low, high = make_shards("low", train=tokens[:3_000]), make_shards("high", train=tokens[3_000:])
    first = ShardStream({low: 0.9, high: 0.1}, block_size=BLOCK)
    second = ShardStream({low: 0.5, high: 0.5}, block_size=BLOCK, state=saved(first, 40))
    assert second.events == [{"sample": 40, "weights": [0.5, 0.5]}]
    assert describe(second.events[0], second.sources_before(0)) == (
        f'weights {{"{low}": 0.9, "{high}": 0.1}} -> {{"{low}": 0.5, "{high}": 0.5}}'
    )
    # the same ratio in other units changes nothing, and a third session knows of the event
    third = ShardStream({low: 7, high: 7}, block_size=BLOCK, state=saved(second, 60))
    assert third.events == second.events
    assert torch.equal(firsts(third, 30), firsts(second, 50)[20:])
    assert [seen.samples for seen in third.seen(140)] == [36 + 50, 4 + 50]


def test_a_change_on_the_way_survives_a_restart_with_the_weights_as_given(make_shards, tokens):
    low, high = make_shards("low", train=tokens[:3_000]), make_shards("high", train=tokens[3_000:])
    first = ShardStream({low: 0.9, high: 0.1}, block_size=BLOCK)
    first.change_weights([0.6, 0.4], 20)
    for given, weights in (((0.9, 0.1), None), ((9, 1), None), ((0.6, 0.4), None), ((0.5, 0.5), [0.5, 0.5])):
        again = ShardStream(dict(zip((low, high), given, strict=True)), block_size=BLOCK, state=saved(first, 40))
        assert again.events[1:] == ([{"sample": 40, "weights": weights}] if weights else [])


def test_appended_shards_are_an_event_and_enter_at_the_next_epoch(make_shards, tokens):
    old = ShardStream(make_shards("old", train=tokens[:2_000], per_shard=500), block_size=BLOCK, seed=1)
    grown = make_shards("grown", train=tokens[:3_500], per_shard=500)
    n, more = window_count(2_000, BLOCK), window_count(3_500, BLOCK)
    new = ShardStream(grown, block_size=BLOCK, seed=1, state=saved(old, 50))
    assert len(new.events) == 1 and new.events[0]["sample"] == 50
    assert new.events[0]["appended"] == {
        "source": 0, "tokens": 3_500, "shards": 7, "fingerprint": new.readers[0].fingerprint,
    }  # fmt: skip
    assert "2,000 -> 3,500 tokens (4 -> 7 shards)" in describe(new.events[0], new.sources_before(0))
    rows = firsts(new, n - 50 + more)
    assert torch.equal(rows[: n - 50], firsts(old, n)[50:]), "the epoch under way goes on as it was"
    assert len({tuple(row) for row in rows[n - 50 :].tolist()}) == more, "the next one has every window of all shards"
    assert new.seen(n + more)[0].epochs == 2
    # a later session from the first state finds more; one from a state with the event finds nothing new
    assert ShardStream(grown, block_size=BLOCK, seed=1, state=saved(new, 77)).events == new.events


def test_what_is_not_the_recorded_data_is_refused(make_shards, tokens):
    first = ShardStream(make_shards(train=tokens[:2_000], per_shard=500), block_size=BLOCK)
    state = saved(first, 10)
    changed = tokens[:3_000].copy()
    changed[700] += 1
    cases = {
        "changed": make_shards("changed", train=changed, per_shard=500),
        "shorter": make_shards("shorter", train=tokens[:1_500], per_shard=500),
        "cut elsewhere": make_shards("cut", train=tokens[:2_000], per_shard=400),
        "wider": make_shards("wider", train=tokens[:2_500], per_shard=500, dtype="uint32"),
    }
    for directory in cases.values():
        with pytest.raises(DataError, match="nor an extension of it: 2,000 tokens in 4 shards"):
            ShardStream(directory, block_size=BLOCK, state=state)
    with pytest.raises(DataError, match="saved with 1 sources, now there are 2"):
        ShardStream({first.sources[0].name: 1, cases["changed"]: 1}, block_size=BLOCK, state=state)
    for options in ({"seed": 9}, {"block_size": 8}):
        with pytest.raises(DataError, match=f"saved with {next(iter(options))}"):
            ShardStream(first.sources[0].name, **{"block_size": BLOCK} | options, state=state)
