"""Datasets as the original MyPT and nanoGPT wrote them are read as they are, and refused when they cannot be meant."""

import json
import pickle

import numpy as np
import pytest

from mypt.errors import DataError, TokenizerError
from mypt.inspection.dataset import inspect_dataset
from mypt.shards.open_dataset import open_dataset
from mypt.shards.reader import ShardReader
from mypt.shards.verify import verify_dataset
from mypt.tokenization.load import load_tokenizer

TEXT = "the cat sat on the mat; the döG sat on the lög.\n" * 40
CHARS = sorted(set(TEXT))
IDS = np.array([CHARS.index(character) for character in TEXT])
CUT = int(len(TEXT) * 0.9)


def write_original(directory, layout="split", ids=IDS, dtype="uint32", per_shard=300, **metadata):
    """A dataset as the original's prepare_dataset.py wrote it: val shards go on with train's numbers."""
    parts = {"train": ids[:CUT], "val": ids[CUT:]} if layout == "split" else {"": ids}
    number = 0
    for folder, part in parts.items():
        (directory / folder).mkdir(parents=True, exist_ok=True)
        for start in range(0, len(part), per_shard):
            part[start : start + per_shard].astype(dtype).tofile(directory / folder / f"shard_{number:05d}.bin")
            number += 1
    counts = metadata or {"total_tokens": len(ids), "num_shards": number}
    (directory / "dataset_metadata.json").write_text(json.dumps({"tokenization": "char", **counts}))
    state = {"token_kind": "char", "chars": CHARS, "base_vocab_size": None, "model_vocab_size": len(CHARS)}
    (directory / "tokenizer_state.json").write_text(json.dumps(state))
    return directory


def write_nanogpt(directory, ids=IDS):
    """train.bin, val.bin and meta.pkl, as nanoGPT's data/shakespeare_char/prepare.py writes them."""
    directory.mkdir()
    ids[:CUT].astype(np.uint16).tofile(directory / "train.bin")
    ids[CUT:].astype(np.uint16).tofile(directory / "val.bin")
    letters = dict(enumerate(CHARS))
    meta = {"vocab_size": len(CHARS), "itos": letters, "stoi": {text: id for id, text in letters.items()}}
    (directory / "meta.pkl").write_bytes(pickle.dumps(meta))
    return directory


def check_char(directory, dtype=None):
    """The manifest of a directory that holds TEXT in train and val, checked against the text itself."""
    manifest = open_dataset(directory, dtype)
    for split, part in {"train": slice(None, CUT), "val": slice(CUT, None)}.items():
        reader = ShardReader(directory, split, manifest=manifest)
        assert reader.gather(np.array([0]), len(reader))[0].tolist() == IDS[part].tolist()
        assert manifest.splits[split].bytes == len(TEXT[part].encode())
        assert manifest.splits[split].documents == 1
        assert manifest.splits[split].shards[0].max_id == int(IDS[part].max())
    assert manifest.eos_token_id == len(CHARS) and manifest.vocab_size == len(CHARS) + 257
    tokenizer = load_tokenizer(directory)
    assert tokenizer.decode(IDS.tolist(), clean_up_tokenization_spaces=False) == TEXT
    return manifest


@pytest.mark.parametrize("metadata", [{"total_tokens": 9}, {"total_tokens_written": 9}, {}])
def test_the_original_with_train_and_val(tmp_path, metadata):
    manifest = check_char(write_original(tmp_path / "old", **metadata))
    assert (manifest.dtype, manifest.origin) == ("uint32", "the original MyPT")
    assert manifest.splits["val"].shards[0].file == f"val/shard_{-(-CUT // 300):05d}.bin"
    assert manifest.report["tokenizer"] == "char"


def test_a_flat_directory_is_all_train(tmp_path):
    manifest = open_dataset(write_original(tmp_path / "old", layout="flat"))
    assert [shard.file for shard in manifest.splits["train"].shards][:2] == ["shard_00000.bin", "shard_00001.bin"]
    assert (manifest.splits["train"].tokens, manifest.splits["val"].shards) == (len(IDS), [])
    reader = ShardReader(tmp_path / "old", "train")
    assert reader.gather(np.array([250]), 100)[0].tolist() == IDS[250:350].tolist()
    with pytest.raises(DataError, match="has no val split"):
        ShardReader(tmp_path / "old", "val")


def test_shards_come_in_the_order_of_their_numbers(tmp_path):
    directory = write_original(tmp_path / "old", layout="flat", per_shard=1_000)
    (directory / "shard_00001.bin").rename(directory / "shard_100000.bin")
    files = [shard.file for shard in open_dataset(directory).splits["train"].shards]
    assert files == ["shard_00000.bin", "shard_100000.bin"]


def test_metadata_may_be_missing_where_the_tokenizer_tells_whose_it_is(tmp_path):
    directory = write_original(tmp_path / "old")
    (directory / "dataset_metadata.json").unlink()
    check_char(directory)
    (directory / "tokenizer_state.json").unlink()
    with pytest.raises(DataError, match="holds no dataset_metadata"):  # it may be an unfinished preparation
        open_dataset(directory)


def test_end_of_text_ids_divide_documents(tmp_path):
    ids = IDS.copy()
    ids[[10, 299, 300, CUT - 1]] = 0
    state = {"token_kind": "char", "chars": CHARS[1:], "special_tokens": {"<|endoftext|>": len(CHARS) - 1}}
    directory = write_original(tmp_path / "old", ids=np.where(ids == 0, len(CHARS) - 1, ids - 1))
    (directory / "tokenizer_state.json").write_text(json.dumps(state))
    manifest = open_dataset(directory)
    newlines = TEXT[:CUT].count("\n")  # character 0 became the end of text everywhere
    changed = sum(TEXT[place] != "\n" for place in (10, 299, 300, CUT - 1))
    assert manifest.eos_token_id == len(CHARS) - 1
    assert manifest.splits["train"].documents == newlines + changed
    assert verify_dataset(directory)["problems"] == []


def test_nanogpt(tmp_path):
    manifest = check_char(write_nanogpt(tmp_path / "nano"), dtype="uint16")
    assert (manifest.dtype, manifest.origin) == ("uint16", "nanoGPT")


@pytest.mark.parametrize("write", [write_nanogpt, lambda path: write_original(path, dtype="uint16", per_shard=200)])
def test_the_wrong_dtype_is_refused_with_a_hint(tmp_path, write):
    with pytest.raises(
        DataError, match=r"outside the vocabulary of 18.*data\.dtype: uint16 in a recipe, or `mypt convert"
    ):
        open_dataset(write(tmp_path / "data"))
    assert len(CHARS) == 18


def test_a_size_that_is_no_multiple_is_named(tmp_path):
    directory = write_original(tmp_path / "old")
    shard = directory / "train" / "shard_00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"shard_00001\.bin holds 1,199 bytes, no multiple of uint32"):
        open_dataset(directory)


def test_a_dtype_in_the_metadata_counts_unless_another_is_asked_for(tmp_path):
    directory = write_original(tmp_path / "old", dtype="uint16", total_tokens=1)
    metadata = json.loads((directory / "dataset_metadata.json").read_text()) | {"dtype": "uint16"}
    (directory / "dataset_metadata.json").write_text(json.dumps(metadata))
    check_char(directory)
    with pytest.raises(DataError, match="outside the vocabulary"):
        open_dataset(directory, "uint32")
    with pytest.raises(DataError, match="asked to be read as int8"):
        open_dataset(directory, "int8")


def test_dtype_decides_nothing_where_the_metadata_is_todays(make_shards):
    assert open_dataset(make_shards(train=np.arange(50)), "uint32").dtype == "uint16"


def test_changed_files_are_read_again(tmp_path):
    directory = write_original(tmp_path / "old")
    before = open_dataset(directory).fingerprint("train")
    assert open_dataset(directory).fingerprint("train") == before
    np.zeros(300, np.uint32).tofile(directory / "train" / "shard_00002.bin")
    assert open_dataset(directory).fingerprint("train") != before


def test_without_a_tokenizer_it_says_what_is_missing(tmp_path):
    directory = write_original(tmp_path / "old")
    (directory / "tokenizer_state.json").unlink()
    with pytest.raises(TokenizerError, match=r"dataset_metadata\.json is of kind 'char' with 0 characters"):
        open_dataset(directory)


def test_inspect_and_verify_tell_whose_it_is(tmp_path):
    directory = write_original(tmp_path / "old")
    report = inspect_dataset(directory)
    assert (report["format"], report["problems"]) == ("the original MyPT", [])
    assert report["splits"]["train"]["tokens"] == CUT
    assert "keeps no checksums" in verify_dataset(directory)["notes"][0]
