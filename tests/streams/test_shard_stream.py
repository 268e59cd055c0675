"""The stream gives every token of the data, once an epoch, in one order for every way of sharing the work."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mypt.errors import DataError
from mypt.shards.format import Manifest, Shard, Split, write_manifest
from mypt.streams.shard_stream import ShardStream, document_positions
from mypt.streams.windows import phase

BLOCK = 16


def numbered(n: int) -> np.ndarray:
    """Tokens that say their own position, so that a window shows where it came from."""
    return np.arange(n)


def samples(stream: ShardStream, n: int) -> torch.Tensor:
    """The first n samples' inputs and last target, (n, BLOCK + 1)."""
    rows = []
    for batch in stream:
        rows.append(torch.cat([batch["input_ids"], batch["shift_labels"][:, -1:]], dim=1))
        if sum(map(len, rows)) >= n:
            return torch.cat(rows)[:n]
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("per_shard", [10_000, 1_000, 977, 64, 13])
def test_targets_rebuild_the_tokens_on_disk_in_each_epoch(make_shards, per_shard):
    tokens = np.random.default_rng(1).integers(0, 50_000, 3_001)
    stream = ShardStream(make_shards(train=tokens, per_shard=per_shard), block_size=BLOCK, seed=9, micro_batch_size=1)
    n = stream.samples_per_epoch
    order = stream.places(np.arange(3 * n))[1]
    batches = list(itertools.islice(stream, 3 * n))
    for epoch in range(3):
        rebuilt = np.full(len(tokens), -1)
        for place, batch in zip(order[epoch * n :][:n], batches[epoch * n :][:n], strict=True):
            span = slice(place + 1, place + 1 + BLOCK)
            assert (rebuilt[span] == -1).all(), "a target came twice in an epoch"
            rebuilt[span] = batch["shift_labels"][0]
            assert torch.equal(batch["input_ids"][0, 1:], batch["shift_labels"][0, :-1])
        first = phase(epoch, len(tokens), BLOCK, 9) + 1
        covered = slice(first, first + n * BLOCK)
        assert np.array_equal(rebuilt[covered], tokens[covered])
        assert len(tokens) - n * BLOCK < 2 * BLOCK


LAYOUTS = [  # world size, micro-batch, accumulation, workers: each a global batch of 8
    (1, 8, 1, 0),
    (1, 4, 2, 0),
    (2, 4, 1, 0),
    (2, 1, 4, 0),
    (4, 2, 1, 0),
    (8, 1, 1, 0),
    (1, 2, 4, 2),
    (2, 2, 2, 2),
]


@pytest.mark.parametrize(("world", "micro", "accumulation", "workers"), LAYOUTS)
def test_one_global_order_for_every_layout(make_shards, world, micro, accumulation, workers):
    directory = make_shards(train=numbered(3_001), per_shard=500)
    steps, start = 12, 40
    reference = ShardStream(directory, block_size=BLOCK, seed=2, micro_batch_size=1, start_sample=start)
    expected = samples(reference, steps * 8)[:, 0].view(steps, 8)
    seen = torch.empty(steps, 0, dtype=torch.int64)
    in_order = torch.empty(steps, accumulation, world, micro, dtype=torch.int64)
    for rank in range(world):
        stream = ShardStream(
            directory, block_size=BLOCK, seed=2, micro_batch_size=micro, rank=rank, world_size=world, start_sample=start
        )
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        mine = [batch["input_ids"][:, 0] for batch in itertools.islice(loader, steps * accumulation)]
        in_order[:, :, rank] = torch.stack(mine).view(steps, accumulation, micro)
        seen = torch.cat([seen, torch.stack(mine).view(steps, -1)], dim=1)
    assert torch.equal(seen.sort(dim=1).values, expected.sort(dim=1).values)
    assert torch.equal(in_order.view(steps, 8), expected)


def test_a_resume_is_one_number(make_shards):
    directory = make_shards(train=numbered(2_000))
    whole = samples(ShardStream(directory, block_size=BLOCK, seed=5, micro_batch_size=4), 400)
    for start in (0, 4, 77, 123, 300):
        rest = ShardStream(directory, block_size=BLOCK, seed=5, micro_batch_size=4, start_sample=start)
        assert torch.equal(samples(rest, 100), whole[start : start + 100])


def test_a_resume_at_a_huge_sample_replays_nothing(make_shards):
    """A replay of 10**15 samples would never return."""
    directory = make_shards(train=numbered(60_000))
    stream = ShardStream(directory, block_size=BLOCK, start_sample=10**15, micro_batch_size=4)
    following = ShardStream(directory, block_size=BLOCK, start_sample=10**15 + 3, micro_batch_size=1)
    assert torch.equal(samples(stream, 4)[3:], samples(following, 1))


def test_a_mixture_takes_exact_shares_from_each_directory(make_shards):
    low, high = make_shards("low", train=numbered(900)), make_shards("high", train=numbered(5_000) + 10_000)
    stream = ShardStream({low: 0.75, high: 0.25}, block_size=BLOCK, micro_batch_size=10)
    rows = samples(stream, 2_000)[:, 0]
    assert ((rows >= 10_000).sum(), (rows < 10_000).sum()) == (500, 1_500)
    # the small source goes round, each of its windows as often as any other, give or take one
    counts = torch.bincount(rows[rows < 10_000])
    n = stream.windows_per_epoch[0]
    assert counts.sum() == 1_500 and len(set(rows[rows < 10_000][:n].tolist())) == n


def test_single_samples_for_a_stock_loader_over_two_workers(make_shards):
    directory = make_shards(train=numbered(2_000))
    stream = ShardStream(directory, block_size=BLOCK, micro_batch_size=None)
    assert next(iter(stream))["input_ids"].shape == (BLOCK,)
    batches = itertools.islice(DataLoader(stream, batch_size=5, num_workers=2), 20)
    firsts = torch.cat([batch["input_ids"][:, 0] for batch in batches])
    assert len(firsts) == 100 and len(set(firsts.tolist())) == 100


def test_dtypes_shapes_and_labels(make_shards):
    tokens = np.array([70_000, 1, 2, 65_536] * 50)
    stream = ShardStream(make_shards(train=tokens, dtype="uint32"), block_size=8, micro_batch_size=3)
    batch = next(iter(stream))
    for name in ("input_ids", "labels", "shift_labels"):
        assert batch[name].shape == (3, 8) and batch[name].dtype == torch.int64 and batch[name].is_contiguous()
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["input_ids"].max() == 70_000
    assert "position_ids" not in batch


def test_document_positions_by_hand(make_shards):
    inputs = np.array([[5, 0, 7, 8, 0, 0, 9, 9], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert document_positions(inputs, eos_token_id=0).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    tokens = np.tile([3, 4, 5, 0], 60)
    stream = ShardStream(make_shards(train=tokens), block_size=8, micro_batch_size=2, document_mask=True)
    batch = next(iter(stream))
    assert batch["position_ids"].shape == (2, 8) and batch["position_ids"].max() == 3


def test_ten_billion_tokens_open_without_reading_them(tmp_path):
    """1,000 sparse shards of 10M tokens: only the metadata and the sizes are looked at."""
    shards = []
    (tmp_path / "train").mkdir()
    for index in range(1_000):
        name = f"train/shard_{index:05d}.bin"
        with open(tmp_path / name, "wb") as file:
            file.truncate(20_000_000)
        shards.append(Shard(name, 10_000_000, 1, 1, 0, 0, "0" * 32))
    manifest = Manifest("uint16", 1, 0, "0" * 32, {"train": Split(shards)})
    write_manifest(tmp_path, manifest)
    stream = ShardStream(tmp_path, block_size=1_024, micro_batch_size=4, start_sample=12_345_678_901)
    assert stream.samples_per_epoch == (10_000_000_000 - 1_024) // 1_024
    assert next(iter(stream))["input_ids"].shape == (4, 1_024)


def test_bad_places_are_refused(make_shards):
    directory = make_shards(train=numbered(100))
    with pytest.raises(DataError, match="rank 2 of 2"):
        ShardStream(directory, block_size=8, rank=2, world_size=2)
    with pytest.raises(DataError, match="needs at least 101 tokens"):
        ShardStream(directory, block_size=100)
    with pytest.raises(DataError, match="no val split"):
        ShardStream(directory, "val", block_size=8)
