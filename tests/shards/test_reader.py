"""Reading back what was written, and refusing what is damaged."""

import json

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.shards.format import METADATA_NAME, read_manifest
from mypt.shards.reader import ShardReader


@pytest.mark.parametrize("per_shard", [1, 3, 10, 100, 1_000])
def test_windows_are_slices_of_the_whole_stream(make_shards, per_shard):
    tokens = np.random.default_rng(0).integers(0, 60_000, 200)
    reader = ShardReader(make_shards(train=tokens, per_shard=per_shard), "train")
    assert len(reader) == 200
    starts = np.array([0, 5, 5, 99, 150, 170])
    windows = reader.gather(starts, 30)
    assert windows.dtype == np.uint16
    assert all(
        np.array_equal(window, tokens[start : start + 30]) for start, window in zip(starts, windows, strict=True)
    )


def test_a_truncated_or_missing_shard_is_named(make_shards):
    directory = make_shards(train=np.arange(50), per_shard=20)
    shard = directory / "train" / "shard_00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"shard_00001\.bin holds 38 bytes, the metadata says 40"):
        ShardReader(directory, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"shard_00001\.bin is missing"):
        ShardReader(directory, "train")


def test_ids_outside_the_vocabulary_are_refused(make_shards):
    with pytest.raises(DataError, match=r"holds id 49, outside the vocabulary of 40.*right dtype"):
        ShardReader(make_shards(train=np.arange(50), vocab_size=40), "train")


def test_the_fingerprint_follows_the_tokens(make_shards):
    same = [make_shards(name, train=np.arange(50)) for name in ("a", "b")]
    other = make_shards("c", train=np.arange(50)[::-1].copy())
    prints = [ShardReader(directory, "train").fingerprint for directory in (*same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_a_directory_that_is_none_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="does not exist; make it with: mypt prepare"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"holds no {METADATA_NAME}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["../train/shard_00000.bin", "train/../../secret", "/etc/passwd", "val/shard_00000.bin"]
)
def test_a_manifest_cannot_point_outside_its_directory(make_shards, name):
    directory = make_shards(train=np.arange(50))
    path = directory / METADATA_NAME
    content = json.loads(path.read_text())
    content["splits"]["train"]["shards"][0]["file"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="outside train/"):
        read_manifest(directory)


@pytest.mark.parametrize("damage", ["{", '{"format": "mypt-shards"}', "[]"])
def test_damaged_metadata_is_one_clear_error(make_shards, damage):
    directory = make_shards(train=np.arange(50))
    (directory / METADATA_NAME).write_text(damage)
    with pytest.raises(DataError, match="damaged"):
        read_manifest(directory)
