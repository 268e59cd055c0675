"""Reading back what was written, and refusing what is damaged."""

import json
import os
import pickle

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.shards.fetching import READINGS
from mypt.shards.format import METADATA_NAME, read_manifest
from mypt.shards.reader import ShardReader


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("per_shard", [1, 3, 10, 100, 1_000])
def test_windows_are_slices_of_the_whole_stream(make_shards, per_shard, reading):
    tokens = np.random.default_rng(0).integers(0, 60_000, 200)
    reader = ShardReader(make_shards(train=tokens, per_shard=per_shard), "train", reading=reading)
    assert len(reader) == 200
    starts = np.array([0, 5, 5, 99, 150, 170])
    reader.prefetch(starts, 30)
    windows = reader.gather(starts, 30)
    assert windows.dtype == np.uint16
    assert all(
        np.array_equal(window, tokens[start : start + 30]) for start, window in zip(starts, windows, strict=True)
    )
    assert reader.gather(np.array([0]), 200)[0].tolist() == tokens.tolist()
    with pytest.raises((IndexError, DataError)):
        reader.gather(np.array([200]), 1)


@pytest.mark.parametrize("reading", READINGS[1:])
def test_windows_are_copies(make_shards, reading):
    reader = ShardReader(make_shards(train=np.arange(50)), "train", reading=reading)
    kept = reader.gather(np.array([3]), 5)
    kept[:] = 0
    assert reader.gather(np.array([3]), 5).tolist() == [[3, 4, 5, 6, 7]]


@pytest.mark.parametrize("reading", READINGS[1:])
def test_only_the_first_shards(make_shards, reading):
    directory = make_shards(train=np.arange(50), per_shard=20)
    reader = ShardReader(directory, "train", shards=2, reading=reading)
    assert len(reader) == 40 and reader.gather(np.array([15]), 25)[0].tolist() == list(range(15, 40))
    assert reader.fingerprint != ShardReader(directory, "train").fingerprint
    for shards in (0, 4):
        with pytest.raises(DataError, match=f"the first {shards} shards .* it has 3"):
            ShardReader(directory, "train", shards=shards)


@pytest.mark.parametrize("reading", READINGS)
def test_a_reader_crosses_processes_by_being_opened_again(make_shards, reading):
    reader = ShardReader(make_shards(train=np.arange(5_000), per_shard=300), "train", shards=10, reading=reading)
    packed = pickle.dumps(reader)
    assert len(packed) < 1_000
    again = pickle.loads(packed)
    assert again.reading == reader.reading and len(again) == 3_000
    assert np.array_equal(again.gather(np.array([290]), 20), reader.gather(np.array([290]), 20))


def test_a_truncated_or_missing_shard_is_named(make_shards):
    directory = make_shards(train=np.arange(50), per_shard=20)
    shard = directory / "train" / "shard_00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"shard_00001\.bin holds 38 bytes, the metadata says 40"):
        ShardReader(directory, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"shard_00001\.bin is missing"):
        ShardReader(directory, "train")


@pytest.mark.parametrize("reading", READINGS)
def test_a_shard_that_the_metadata_does_not_list_is_named(make_shards, reading):
    directory = make_shards(train=np.arange(50), per_shard=20)
    (directory / "train" / "shard_00003.bin").write_bytes(b"12")
    with pytest.raises(DataError, match=r"shard_00003\.bin is not in the metadata.*`mypt append` that did not finish"):
        ShardReader(directory, "train", reading=reading)


def flip_a_byte(shard) -> None:
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize("age", [-10, 10], ids=["older than the metadata", "newer"])
def test_in_memory_every_checksum_is_verified(make_shards, age):
    directory = make_shards(train=np.arange(50), per_shard=20)
    shard = directory / "train" / "shard_00001.bin"
    flip_a_byte(shard)
    moment = (directory / METADATA_NAME).stat().st_mtime + age
    os.utime(shard, (moment, moment))
    with pytest.raises(DataError, match=r"shard_00001\.bin was changed.*mypt verify"):
        ShardReader(directory, "train", reading="ram")


@pytest.mark.parametrize("reading", ["readahead", "pread"])
def test_elsewhere_those_of_shards_newer_than_the_metadata(make_shards, reading):
    directory = make_shards(train=np.arange(50), per_shard=20)
    written = (directory / METADATA_NAME).stat().st_mtime
    shard = directory / "train" / "shard_00001.bin"
    os.utime(shard, (written + 10, written + 10))
    assert "1 shards are newer than the metadata" in ShardReader(directory, "train", reading=reading).summary
    flip_a_byte(shard)
    os.utime(shard, (written + 10, written + 10))
    with pytest.raises(DataError, match=r"shard_00001\.bin was changed"):
        ShardReader(directory, "train", reading=reading)
    os.utime(shard, (written - 10, written - 10))
    assert "newer" not in ShardReader(directory, "train", reading=reading).summary


@pytest.mark.parametrize("blocks", [False, True])
def test_with_pread_a_file_cut_short_later_is_an_error_that_names_it(make_shards, blocks):
    directory = make_shards(train=np.arange(50_000), per_shard=20_000)
    reader = ShardReader(directory, "train", reading="pread", blocks=blocks)
    os.truncate(directory / "train" / "shard_00001.bin", 30_000)
    with pytest.raises(DataError, match=r"shard_00001\.bin ends before it should"):
        reader.gather(np.array([39_000]), 101)


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


@pytest.mark.parametrize(("split", "name"), [("..", "../secret"), ("/", "/secret"), ("//", "//secret")])
def test_nor_can_the_name_of_a_split(make_shards, split, name):
    directory = make_shards(train=np.arange(50), val=np.arange(50))
    path = directory / METADATA_NAME
    content = json.loads(path.read_text())
    content["splits"][split] = content["splits"].pop("val")
    content["splits"][split]["shards"][0]["file"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"outside {split}/"):
        read_manifest(directory)


DAMAGED_SPLITS = json.dumps({"format": "mypt-shards", "version": 1, "splits": []})


@pytest.mark.parametrize("damage", [DAMAGED_SPLITS, "{", '{"format": "mypt-shards"}', "[]"])
def test_damaged_metadata_is_one_clear_error(make_shards, damage):
    directory = make_shards(train=np.arange(50))
    (directory / METADATA_NAME).write_text(damage)
    with pytest.raises(DataError, match="damaged"):
        read_manifest(directory)
