"""The stream gives every token of the data, once an epoch, in one order for every way of sharing the work."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mypt.errors import DataError
from mypt.shards.format import Manifest, Shard, Split, write_manifest
from mypt.streams.shard_stream import ShardStream
from mypt.streams.windows import document_positions, phase, window_count

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
    n = window_count(900, BLOCK)
    assert counts.sum() == 1_500 and len(set(rows[rows < 10_000][:n].tolist())) == n


@pytest.mark.parametrize(("world", "micro", "accumulation", "workers"), LAYOUTS)
def test_a_change_of_weights_is_the_same_for_every_layout_and_resume(make_shards, world, micro, accumulation, workers):
    names = [make_shards("low", train=numbered(900)), make_shards("high", train=numbered(5_000) + 10_000)]
    changed = ShardStream(dict(zip(names, (0.9, 0.1), strict=True)), block_size=BLOCK, seed=2)
    changed.change_weights([0.25, 0.75], 80)
    expected = samples(changed, 200)[:, 0]
    assert [(part < 10_000).sum() for part in (expected[:80], expected[80:])] == [72, 30]
    for start in (0, 40, 80, 120):
        mine = torch.empty(8, accumulation, world, micro, dtype=torch.int64)
        for rank in range(world):
            stream = ShardStream(
                dict(zip(names, (0.25, 0.75), strict=True)), block_size=BLOCK, seed=2, micro_batch_size=micro,
                rank=rank, world_size=world, state=changed.state(start),
            )  # fmt: skip
            assert stream.events == changed.events
            loader = DataLoader(stream, batch_size=None, num_workers=workers)
            batches = [batch["input_ids"][:, 0] for batch in itertools.islice(loader, 8 * accumulation)]
            mine[:, :, rank] = torch.stack(batches).view(8, accumulation, micro)
        assert torch.equal(mine.flatten(), expected[start : start + 64])


def test_weights_change_under_a_running_iteration(make_shards):
    """Two ranks, two micro-batches of 3 to a step: after 5 steps both are told, and both go on as one stream."""
    names = [make_shards("low", train=numbered(900)), make_shards("high", train=numbered(5_000) + 10_000)]
    weights = dict(zip(names, (0.9, 0.1), strict=True))
    planned = ShardStream(weights, block_size=BLOCK)
    planned.change_weights([0.5, 0.5], 60)
    streams = [ShardStream(weights, block_size=BLOCK, micro_batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    loaders = [iter(DataLoader(stream, batch_size=None)) for stream in streams]
    rows = []
    for step in range(10):
        if step == 5:
            for stream in streams:
                assert stream.change_weights([0.5, 0.5], 60) == {"sample": 60, "weights": [0.5, 0.5]}
        rows += [next(loader)["input_ids"][:, 0] for _ in range(2) for loader in loaders]
    assert torch.equal(torch.cat(rows), samples(planned, 120)[:, 0])
    for refused in ((119, [0.5, 0.5]), (120, [1.0]), (120, [1.0, 0.0001])):
        with pytest.raises(DataError):
            streams[0].change_weights(refused[1], refused[0])
    assert len(streams[0].events) == 1


@pytest.mark.parametrize("document_mask", [False, True])
def test_a_curriculum_cuts_the_same_windows(make_shards, document_mask):
    directory = make_shards(train=np.random.default_rng(0).integers(0, 9, 3_000))
    options = {"block_size": BLOCK, "micro_batch_size": 4, "document_mask": document_mask}
    plain = ShardStream(directory, **options)
    short = ShardStream(directory, **options, curriculum=[(0, 4), (8, 8), (16, BLOCK)])
    batches = list(itertools.islice(short, 6))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(16, 4)] * 2 + [(8, 8)] * 2 + [(4, BLOCK)] * 2
    for batch, whole in zip(batches, plain, strict=False):
        for name in ("input_ids", "labels", "shift_labels"):
            assert torch.equal(batch[name].flatten(), whole[name].flatten())
        if document_mask:
            assert (batch["position_ids"][:, 0] == 0).all()
            begins = (batch["position_ids"] == 0).flatten()
            documents = (whole["position_ids"] == 0).flatten()
            assert torch.equal(begins | documents, begins), "a document that begins in a row begins there anew, too"
    # a resume has the stages from the state, whatever the batch is now
    again = ShardStream(directory, **options | {"micro_batch_size": 2}, state=short.state(8))
    assert [len(batch["input_ids"]) for batch in itertools.islice(again, 5)] == [4] * 4 + [2]
    with pytest.raises(DataError, match="not None"):
        ShardStream(directory, block_size=BLOCK, micro_batch_size=None, curriculum=[(0, 4), (8, BLOCK)])


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


@pytest.mark.parametrize("order", ["full", "blocks"])
@pytest.mark.parametrize("micro", [1, 7, 300, None])
def test_the_way_of_reading_changes_nothing_that_comes(make_shards, order, micro):
    low = make_shards("low", train=numbered(9_000), per_shard=500)
    high = make_shards("high", train=numbered(4_000) + 70_000, dtype="uint32", per_shard=977)
    options = {"block_size": BLOCK, "micro_batch_size": micro, "order": order, "document_mask": True}
    items = {
        reading: list(
            itertools.islice(ShardStream({low: 0.7, high: 0.3}, reading=reading, start_sample=100, **options), 40)
        )
        for reading in ("auto", "ram", "readahead", "pread")
    }
    for reading in ("ram", "readahead", "pread"):
        for item, expected in zip(items[reading], items["auto"], strict=True):
            assert all(torch.equal(item[name], expected[name]) for name in expected)
            assert all(tensor.is_contiguous() and tensor.dtype == torch.int64 for tensor in item.values())


@pytest.mark.parametrize("micro", [4, None])
def test_items_that_are_kept_and_changed_leave_later_ones_alone(make_shards, micro):
    directory = make_shards(train=numbered(3_000))
    expected = list(itertools.islice(ShardStream(directory, block_size=BLOCK, micro_batch_size=micro), 50))
    kept = []
    for item, right in zip(ShardStream(directory, block_size=BLOCK, micro_batch_size=micro), expected, strict=False):
        assert torch.equal(item["input_ids"], right["input_ids"])
        assert torch.equal(item["shift_labels"], right["shift_labels"])
        kept.append(item)
        item["input_ids"].fill_(-1)
        item["shift_labels"].fill_(-2)
    assert all((item["input_ids"] == -1).all() and (item["shift_labels"] == -2).all() for item in kept)
