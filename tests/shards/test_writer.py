"""Shards hold exactly the ids that were written, cut at exact counts, with true counts and checksums."""

import numpy as np
import pytest
import xxhash

from mypt.errors import DataError
from mypt.shards.format import DTYPES, dtype_for
from mypt.shards.writer import ShardWriter


def write(directory, documents, dtype="uint16", tokens_per_shard=10, text_bytes=100):
    writer = ShardWriter(directory, "train", dtype, tokens_per_shard)
    for ids in documents:
        writer.write(np.array(ids, dtype=np.uint32), [len(ids)], [text_bytes])
    return writer.close()


def read(directory, split, dtype):
    return [np.fromfile(directory / shard.file, DTYPES[dtype]).tolist() for shard in split.shards]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("tokens_per_shard", [1, 7, 10, 100_000, 10**7])
def test_shards_are_the_stream(tmp_path, dtype, tokens_per_shard):
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 2**16, draw.integers(1, 30)).tolist() for _ in range(20)]
    if tokens_per_shard >= 100_000:  # more than the writer's buffer
        documents += [draw.integers(0, 2**16, 150_000).tolist() for _ in range(2)]
    stream = [token for ids in documents for token in ids]
    split = write(tmp_path, documents, dtype, tokens_per_shard)
    shards = read(tmp_path, split, dtype)
    assert [token for shard in shards for token in shard] == stream
    assert [len(shard) for shard in shards[:-1]] == [tokens_per_shard] * (len(shards) - 1)
    assert [shard.file for shard in split.shards] == [f"train/shard_{i:05d}.bin" for i in range(len(shards))]
    for entry, ids in zip(split.shards, shards, strict=True):
        assert (entry.tokens, entry.min_id, entry.max_id) == (len(ids), min(ids), max(ids))
        assert entry.xxh3_128 == xxhash.xxh3_128((tmp_path / entry.file).read_bytes()).hexdigest()
    assert split.documents == len(documents)
    assert split.bytes == 100 * len(documents)
    assert not list(tmp_path.rglob("*.tmp"))


def test_little_endian_bytes_by_hand(tmp_path):
    split = write(tmp_path, [[1, 258]], "uint16")
    assert (tmp_path / split.shards[0].file).read_bytes() == b"\x01\x00\x02\x01"
    split = write(tmp_path, [[65536]], "uint32")
    assert (tmp_path / split.shards[0].file).read_bytes() == b"\x00\x00\x01\x00"


def test_a_document_counts_where_it_starts_and_its_bytes_are_shared(tmp_path):
    split = write(tmp_path, [[1] * 8, [2] * 8, [3] * 8], tokens_per_shard=10)
    assert [shard.documents for shard in split.shards] == [2, 1, 0]
    assert [shard.bytes for shard in split.shards] == [125, 125, 50]


def test_a_shard_that_is_exactly_full_starts_no_empty_one(tmp_path):
    assert len(write(tmp_path, [[1] * 10, [2] * 10]).shards) == 2


@pytest.mark.parametrize("per_call", [1, 3, 20])
def test_documents_written_together_or_one_by_one_are_the_same_shards(tmp_path, per_call):
    draw = np.random.default_rng(1)
    documents = [draw.integers(0, 500, draw.integers(1, 40)) for _ in range(20)]
    sizes = draw.integers(0, 200, 20)
    single, batched = (ShardWriter(tmp_path / name, "train", "uint16", 25) for name in ("single", "batched"))
    for ids, size in zip(documents, sizes, strict=True):
        single.write(ids, [len(ids)], [size])
    for start in range(0, 20, per_call):
        part = documents[start : start + per_call]
        batched.write(np.concatenate(part), [len(ids) for ids in part], sizes[start : start + per_call])
    assert single.close() == batched.close()


def test_a_document_may_come_in_parts(tmp_path):
    writer = ShardWriter(tmp_path, "train", "uint16", 10)
    writer.write(np.full(8, 1), [8], [80])
    writer.write(np.full(9, 2), [9], [90], continued=True)
    writer.write(np.full(9, 3), [4, 5], [40, 50], continued=True)
    shards = writer.close().shards
    assert [shard.documents for shard in shards] == [1, 0, 1]  # the second begins with token 21
    assert sum(shard.bytes for shard in shards) == 260


def test_nothing_written_is_no_shard(tmp_path):
    assert write(tmp_path, []).shards == []
    assert list((tmp_path / "train").iterdir()) == []


def test_dtype_boundary(tmp_path):
    assert [dtype_for(id) for id in (65535, 65536)] == ["uint16", "uint32"]
    assert write(tmp_path, [[65535]], "uint16").shards[0].max_id == 65535
    with pytest.raises(DataError, match="65536 does not fit uint16"):
        write(tmp_path, [[65536]], "uint16")
    assert read(tmp_path, write(tmp_path, [[65536]], "uint32"), "uint32") == [[65536]]


def test_an_unfinished_shard_is_only_a_tmp_file(tmp_path):
    writer = ShardWriter(tmp_path, "train", "uint16", 10)
    writer.write(np.arange(15, dtype=np.uint32), [15], [15])
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["shard_00000.bin", "shard_00001.bin.tmp"]
    writer.abandon()
    writer.abandon()
