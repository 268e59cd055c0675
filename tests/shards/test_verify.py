"""Any damage is found and named; a whole directory is known to be whole afterwards."""

import json
import os
import time

import pytest

from mypt.errors import CheckFailed, DataError
from mypt.shards.format import METADATA_NAME, read_manifest, write_manifest
from mypt.shards.verify import verify_dataset
from mypt.tokenization.load import save_tokenizer
from mypt.tokenization.train import build_char_tokenizer

DATA = {"train": ["one document " * 9, "another", "", "last of train " * 3], "val": ["held out"]}


def problems(directory, workers=1):
    report = verify_dataset(directory, workers=workers)
    return {problem["file"]: problem["problem"] for problem in report["problems"]}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("per_shard", [1, 7, 50, 1_000])
def test_a_whole_directory(make_dataset, per_shard, cut):
    assert problems(make_dataset(**DATA, per_shard=per_shard, cut=cut)) == {}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_damage_is_named(make_dataset, workers):
    directory = make_dataset(**DATA, per_shard=20)
    shard = lambda index: directory / "train" / f"shard_{index:05d}.bin"  # noqa: E731
    flip(shard(0), 12)
    shard(2).write_bytes(shard(2).read_bytes()[:-2])
    shard(3).unlink()
    (directory / "train" / "shard_00077.bin").write_bytes(b"12")
    (directory / "val" / "more.bin").write_bytes(b"12")
    found = problems(directory, workers)
    assert list(found) == [
        "train/shard_00000.bin", "train/shard_00002.bin", "train/shard_00003.bin",
        "train/shard_00077.bin", "val/more.bin",
    ]  # fmt: skip
    assert found["train/shard_00000.bin"] == "was changed: its checksum differs"
    assert found["train/shard_00002.bin"] == "holds 38 bytes, the metadata says 40"
    assert found["train/shard_00003.bin"] == "is missing"
    assert "does not list" in found["train/shard_00077.bin"]


def test_any_single_flipped_bit_is_found(make_dataset):
    directory = make_dataset(train=["abc"], val=["d"])
    for file in ("train/shard_00000.bin", "val/shard_00000.bin"):
        for place in range((directory / file).stat().st_size):
            flip(directory / file, place)
            assert list(problems(directory)) == [file]
            flip(directory / file, place)
    assert problems(directory) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("min_id", 0, "holds ids from"), ("documents", 9, "beginnings of 4 documents, the metadata says 9")],
)
def test_metadata_that_does_not_fit_the_shard(make_dataset, field, value, message):
    directory = make_dataset(**DATA, per_shard=1_000)
    manifest = read_manifest(directory)
    shard = manifest.splits["train"].shards[0]
    setattr(shard, field, value if getattr(shard, field) != value else value + 1)
    write_manifest(directory, manifest)
    assert message in problems(directory)["train/shard_00000.bin"]


def test_ids_outside_the_vocabulary(make_dataset):
    directory = make_dataset(train=["~" * 5])
    manifest = read_manifest(directory)
    manifest.vocab_size = 300
    write_manifest(directory, manifest)
    with pytest.raises(CheckFailed, match=r"train/shard_00000\.bin holds id 352, outside the vocabulary of 300"):
        problems(directory)


def test_the_tokenizer_is_checked(make_dataset):
    directory = make_dataset(**DATA)
    save_tokenizer(build_char_tokenizer("abc"), directory)
    found = problems(directory)["tokenizer.json"]
    assert "its hash is" in found and "its vocabulary is 260, the metadata says 355" in found
    (directory / "tokenizer.json").write_text("{")
    assert "cannot be read" in problems(directory)["tokenizer.json"]
    (directory / "tokenizer.json").unlink()
    assert problems(directory) == {"tokenizer.json": "is missing"}


def test_a_check_makes_the_metadata_newer_than_the_shards_and_damage_does_not(make_dataset):
    directory = make_dataset(**DATA)
    metadata, shard = directory / METADATA_NAME, directory / "train" / "shard_00000.bin"
    long_ago = time.time() - 1_000
    os.utime(metadata, (long_ago, long_ago))
    flip(shard, 3)
    before = metadata.stat().st_mtime_ns
    assert problems(directory) and metadata.stat().st_mtime_ns == before
    flip(shard, 3)
    time.sleep(0.02)  # the clock of file times is coarser than the one that the check begins with
    began = time.time_ns()
    assert not problems(directory)
    assert began <= metadata.stat().st_mtime_ns <= time.time_ns()
    later = time.time() + 1_000
    os.utime(metadata, (later, later))
    assert not problems(directory) and metadata.stat().st_mtime_ns <= time.time_ns()
    assert shard.stat().st_mtime_ns <= metadata.stat().st_mtime_ns


def test_leftovers_of_a_killed_command_are_mentioned(make_dataset):
    directory = make_dataset(**DATA)
    (directory / ".preparing").mkdir()
    report = verify_dataset(directory)
    assert report["problems"] == [] and ".preparing belongs to" in report["notes"][0]


def test_damaged_metadata_is_a_failed_check_and_no_metadata_bad_input(make_dataset, tmp_path):
    directory = make_dataset(**DATA)
    (directory / METADATA_NAME).write_text(json.dumps({"format": "mypt-shards"}))
    with pytest.raises(CheckFailed, match="damaged"):
        verify_dataset(directory)
    with pytest.raises(DataError, match="holds no dataset_metadata"):
        verify_dataset(tmp_path)
