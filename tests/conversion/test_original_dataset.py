"""What is converted has the same tokens, whole and checksummed."""

import shutil

import numpy as np
import pytest

from mypt.conversion.original_dataset import convert_dataset
from mypt.errors import DataError
from mypt.shards.format import read_manifest
from mypt.shards.verify import verify_dataset
from mypt.tokenization.load import load_tokenizer, save_tokenizer
from mypt.tokenization.train import build_char_tokenizer
from tests.datasets import contents, die_at, stream, texts
from tests.shards.test_open_dataset import CUT, IDS, TEXT, write_nanogpt, write_original


def convert(directory, out, **options):
    return convert_dataset(directory, out, **options)


@pytest.mark.parametrize(
    ("write", "options", "train"),
    [
        (write_original, {}, CUT),
        (lambda path: write_original(path, layout="flat"), {}, len(TEXT)),
        (write_nanogpt, {"dtype": "uint16"}, CUT),
    ],
    ids=["train and val", "flat", "nanoGPT"],
)
def test_round_trip(tmp_path, write, options, train):
    directory, out = write(tmp_path / "old"), tmp_path / "new"
    before = contents(directory)
    manifest = convert(directory, out, **options)
    assert manifest == read_manifest(out) and manifest.dtype == "uint16"
    assert stream(out, "train") == IDS[:train].tolist() and stream(out, "val") == IDS[train:].tolist()
    assert texts(out, "train") == [TEXT[:train]]
    assert manifest.splits["train"].bytes == len(TEXT[:train].encode())
    assert manifest.sources[0]["tokens"] == len(TEXT)
    assert load_tokenizer(out).get_vocab() == load_tokenizer(directory).get_vocab()
    assert verify_dataset(out)["problems"] == []
    assert contents(directory) == before


def test_large_ids_stay_uint32(tmp_path):
    directory = write_original(tmp_path / "old", ids=np.where(IDS == 3, 70_000, IDS))
    (directory / "tokenizer_state.json").write_text(
        '{"token_kind": "char", "chars": ' + str(list("abcdefghijklmnopqrst")).replace("'", '"')
        + ', "special_tokens": {"<far>": 70000}}'
    )  # fmt: skip
    assert convert(directory, tmp_path / "new").dtype == "uint32"
    assert 70_000 in stream(tmp_path / "new", "train")


def test_a_named_tokenizer_takes_the_place_of_the_directorys(tmp_path):
    directory = write_nanogpt(tmp_path / "old")
    (directory / "meta.pkl").unlink()
    other = build_char_tokenizer("abc")
    save_tokenizer(other, tmp_path / "tokenizer")
    manifest = convert(directory, tmp_path / "new", dtype="uint16", tokenizer=str(tmp_path / "tokenizer"))
    assert manifest.eos_token_id == other.eos_token_id and manifest.vocab_size == 260


def test_counts_that_differ_from_the_files_are_said(tmp_path):
    said = []
    convert(write_original(tmp_path / "old", total_tokens_written=5), tmp_path / "new", say=said.append)
    assert said == [f"its metadata counts 5 tokens, its files hold {len(IDS):,}: the files are converted"]


def test_the_same_again_is_already_there_and_another_is_refused(tmp_path):
    directory, out, said = write_original(tmp_path / "old"), tmp_path / "new", []
    convert(directory, out)
    before = contents(out)
    convert(directory, out, say=said.append)
    assert "already converted" in said[0]
    with pytest.raises(DataError, match="already holds another dataset"):
        convert(write_original(tmp_path / "other", ids=IDS[::-1]), out)
    assert contents(out) == before


def test_killed_at_any_touch_of_a_file_the_same_call_ends_in_the_same_bytes(tmp_path):
    directory, out, kills = write_original(tmp_path / "old"), tmp_path / "out", 0
    convert(directory, tmp_path / "expected")
    while die_at(kills, lambda: convert(directory, out)):
        convert(directory, out)
        assert contents(out) == contents(tmp_path / "expected")
        shutil.rmtree(out)
        kills += 1
    assert kills > 10


def test_what_cannot_be_converted(tmp_path, make_dataset):
    with pytest.raises(DataError, match="in today's format already"):
        convert(make_dataset(train=["a"]), tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no dataset of the original MyPT .* nor of nanoGPT"):
        convert(tmp_path / "empty", tmp_path / "new")
    with pytest.raises(DataError, match="nowhere holds no dataset"):
        convert(tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()
