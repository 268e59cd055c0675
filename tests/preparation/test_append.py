"""What is appended comes behind what was there; killed at any point, a directory is as before or as after."""

import os
import shutil
import time

import numpy as np
import pytest

from mypt.conversion.original_dataset import convert_dataset
from mypt.errors import DataError, FolderInUse, TokenizerError
from mypt.preparation.append import append_dataset, only_appender
from mypt.shards.format import read_manifest
from mypt.shards.publishing import APPENDING
from mypt.shards.verify import verify_dataset
from mypt.tokenization.train import build_char_tokenizer
from tests.datasets import contents, die_at, stream, texts
from tests.shards.test_open_dataset import IDS, write_original

OLD = {"train": ["first one " * 9, "second"], "val": ["held out " * 8]}
NEW = {"train": ["third" * 15, "fourth", "fifth one"], "val": ["also held out", "and this"]}


def append(directory, other):
    return append_dataset(directory, other)


def whole(directory):
    return verify_dataset(directory)["problems"] == []


@pytest.mark.parametrize("per_shard", [1, 30, 1_000])
def test_the_streams_are_joined_and_nothing_is_overwritten(make_dataset, per_shard):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW, per_shard=per_shard)
    before, separate = contents(directory), {split: stream(other, split) for split in OLD}
    joined = {split: stream(directory, split) + separate[split] for split in OLD}
    old, added, manifest = read_manifest(directory), read_manifest(other), append(directory, other)
    after = contents(directory)
    assert {name: after[name] for name in before if name.endswith(".bin")} == {
        name: data for name, data in before.items() if name.endswith(".bin")
    }
    for split in OLD:
        assert stream(directory, split) == joined[split]
        assert texts(directory, split) == OLD[split] + NEW[split]
        assert manifest.splits[split].documents == len(OLD[split] + NEW[split])
        assert manifest.splits[split].bytes == sum(len(text) for text in OLD[split] + NEW[split])
        # A resumed training recognises data that only grew by this.
        assert manifest.splits[split].shards[: len(old.splits[split].shards)] == old.splits[split].shards
    assert manifest.sources == old.sources + added.sources
    assert manifest == read_manifest(directory)
    assert manifest.history[-1]["of"] == str(other)
    assert whole(directory) and not (directory / APPENDING).exists()


def test_the_same_call_again_adds_nothing(make_dataset):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW)
    append(directory, other)
    before, said = contents(directory), []
    append_dataset(directory, other, say=said.append)
    assert contents(directory) == before and "already holds" in said[0]


def test_killed_at_any_touch_of_a_file_it_is_as_before_or_as_after(make_dataset, tmp_path):
    old, other = make_dataset("old", **OLD), make_dataset("new", **NEW, per_shard=60)
    expected = shutil.copytree(old, tmp_path / "expected")
    streams = [{split: stream(old, split) for split in OLD}]
    append(expected, other)
    streams.append({split: stream(expected, split) for split in OLD})
    kills, seen = 0, set()
    while True:
        directory = shutil.copytree(old, tmp_path / "killed" / "dir")
        killed = die_at(kills, append, directory, other)
        state = streams.index({split: stream(directory, split) for split in OLD})
        seen.add(state)
        append(directory, other)
        assert contents(directory) == contents(expected)
        assert whole(directory)
        shutil.rmtree(directory)
        if not killed:
            break
        kills += 1
    assert kills > 20 and seen == {0, 1}


def test_what_a_killed_append_left_is_named_by_verify_and_gone_with_the_next_append(make_dataset, tmp_path):
    old, other, third = (
        make_dataset(name, **d) for name, d in (("old", OLD), ("new", NEW), ("third", {"train": ["x"]}))
    )
    kills = 0
    while True:
        directory = shutil.copytree(old, tmp_path / "killed" / "dir")
        assert die_at(kills, append, directory, other)
        if problems := verify_dataset(directory)["problems"]:
            break
        shutil.rmtree(directory)
        kills += 1
    assert problems[0]["file"] == f"train/shard_{len(read_manifest(old).splits['train'].shards):05d}.bin"
    append(directory, third)
    assert texts(directory, "train") == [*OLD["train"], "x"] and whole(directory)


def test_a_cut_document_is_ended_before_another_begins(make_dataset):
    directory, other = make_dataset("old", **OLD, cut=True), make_dataset("new", **NEW)
    eos = read_manifest(directory).eos_token_id
    expected = [*stream(directory, "train"), eos, *stream(other, "train")]
    manifest = append(directory, other)
    assert stream(directory, "train") == expected
    assert manifest.splits["train"].documents == len(OLD["train"] + NEW["train"])
    assert whole(directory)


def test_uint16_is_widened(make_dataset):
    directory, other = make_dataset("old", **OLD, dtype="uint32"), make_dataset("new", **NEW, dtype="uint16")
    append(directory, other)
    assert texts(directory, "train") == OLD["train"] + NEW["train"] and whole(directory)


def test_another_tokenizer_is_refused(make_dataset):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW, tokenizer=build_char_tokenizer("abc"))
    before = contents(directory)
    with pytest.raises(TokenizerError, match="different tokenizers"):
        append(directory, other)
    assert contents(directory) == before


@pytest.mark.parametrize("damage", ["byte", "missing"])
def test_damaged_data_is_not_added(make_dataset, damage):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW)
    before, shard = contents(directory), other / "train" / "shard_00001.bin"
    if damage == "byte":
        data = bytearray(shard.read_bytes())
        data[5] ^= 1
        shard.write_bytes(data)
    else:
        shard.unlink()
    with pytest.raises(DataError, match=r"shard_00001\.bin (was changed|is missing)"):
        append(directory, other)
    assert contents(directory) == before


def test_a_file_that_nobody_lists_is_never_overwritten(make_dataset):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW)
    foreign = directory / "train" / f"shard_{len(read_manifest(directory).splits['train'].shards):05d}.bin"
    foreign.write_bytes(b"mine")
    before = contents(directory)
    with pytest.raises(DataError, match=rf"{foreign.name}, which its metadata does not list"):
        append(directory, other)
    assert contents(directory) == before


def test_new_metadata_does_not_vouch_for_a_changed_shard(make_dataset):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW)
    shard, later = directory / "train" / "shard_00000.bin", time.time() + 60
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4] + whole[-2:] + whole[-4:-2])  # two ids change places
    os.utime(shard, (later, later))
    with pytest.raises(DataError, match=r"shard_00000\.bin was changed \(its checksum differs\)"):
        append(directory, other)
    shard.write_bytes(whole)
    os.utime(shard, (later, later))  # the clock of another host: nothing that the data could help
    assert len(append(directory, other).history) == 1


def test_one_append_at_a_time(make_dataset):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW)
    with only_appender(directory), pytest.raises(FolderInUse, match="another process is writing"):
        append(directory, other)


def test_a_directory_is_not_added_to_itself(make_dataset):
    directory = make_dataset("old", **OLD)
    with pytest.raises(DataError, match="itself"):
        append(directory, directory)


def test_numbers_go_on_behind_the_largest(make_dataset):
    directory, other = make_dataset("old", **OLD), make_dataset("new", **NEW)
    held = [shard.file for shard in read_manifest(directory).splits["train"].shards]
    files = [shard.file for shard in append(directory, other).splits["train"].shards]
    assert files == [f"train/shard_{index:05d}.bin" for index in range(len(files))]
    assert files[: len(held)] == held and len(np.unique(files)) == len(files)


def test_a_dataset_of_the_originals_can_be_added_and_not_added_to(tmp_path):
    old = write_original(tmp_path / "old")
    directory, other = tmp_path / "new", write_original(tmp_path / "other", ids=IDS[::-1])
    convert_dataset(old, directory)
    expected = [*stream(directory, "train"), read_manifest(directory).eos_token_id, *stream(other, "train")]
    assert append(directory, other).dtype == "uint16"
    assert stream(directory, "train") == expected and whole(directory)
    before = contents(old)
    with pytest.raises(DataError, match="a dataset of the original MyPT; convert it first"):
        append(old, directory)
    assert contents(old) == before
