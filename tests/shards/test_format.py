"""A dataset's metadata is read as its types say, its parts fit together, and it belongs to its tokens and tokenizer."""

import json

import pytest

from mypt.errors import DataError, TokenizerError
from mypt.preparation.append import append_dataset
from mypt.preparation.prepare import append_text
from mypt.preparation.subset import subset_dataset
from mypt.shards.format import METADATA_NAME, read_manifest


@pytest.fixture
def change(make_dataset):
    """A dataset of two shards, one value of its metadata changed; returns its directory."""

    def make(place: tuple, value, name: str = "data"):
        directory = make_dataset(name, train=["one document " * 9, "another", "last of train " * 3], per_shard=90)
        content = json.loads((directory / METADATA_NAME).read_text())
        inside = content
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value(inside[place[-1]]) if callable(value) else value
        (directory / METADATA_NAME).write_text(json.dumps(content))
        return directory

    return make


SHARDS = ("splits", "train", "shards")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("vocab_size",), "512", 'at vocab_size: found "512", expected a whole number'),
        (("vocab_size",), 70_000, "at vocab_size: found 70000, more ids than uint16 has"),
        (("eos_token_id",), 600, "at eos_token_id: found 600, outside the vocabulary"),
        (("dtype",), "uint64", 'at dtype: found "uint64"'),
        (("tokenizer_hash",), "\ud800", "at tokenizer_hash: found .*a hash"),
        (SHARDS, lambda shards: [*shards, shards[0]], r"shards\[2\].file: .* a second time"),
        (SHARDS, lambda shards: shards[:1], "at splits.train.tokens: found"),
        ((*SHARDS, 1, "tokens"), True, r"shards\[1\].tokens: found true"),
        ((*SHARDS, 1, "tokens"), 0, r"shards\[1\].tokens: found 0, expected a whole number of 1 or more"),
        ((*SHARDS, 1, "documents"), 10**6, r"shards\[1\].documents: found 1000000, more than its"),
        ((*SHARDS, 1, "min_id"), 10**6, r"shards\[1\].min_id: found 1000000, more than max_id"),
        ((*SHARDS, 1, "file"), "train/a\0b", r"shards\[1\].file: found .*outside train/"),
        ((*SHARDS, 1, "file"), "train/" + "x" * 300, r"shards\[1\].file"),
        (("splits", "train", "bytes"), 1, "at splits.train.bytes: found 1, and its shards have"),
        (("sources",), [{"name": "a", "documents": 9, "bytes": 1, "tokens": 1}], "9 documents, and all shards 3"),
        (("report",), {"dropped": {"empty": "1"}}, "at report.dropped.empty"),
        (("report",), {"origin": "nanoGPT"}, "at report.origin"),
        (("settings",), {"val_fraction": float("inf")}, "at settings.val_fraction: found Infinity"),
        (("history",), [3], r"at history\[0\]: found 3, expected an object"),
        (("format",), "other", 'found "other" version 1, and this mypt reads mypt-shards version 1'),
    ],
)
def test_metadata_that_cannot_be_true_is_refused(change, place, value, words):
    directory = change(place, value)
    with pytest.raises(DataError, match=words) as caught:
        read_manifest(directory)
    assert str(caught.value).startswith(f"{directory / METADATA_NAME} is damaged")


def test_without_its_format_it_is_not_taken_for_anothers(change):
    directory = change(("splits",), lambda splits: splits)
    content = json.loads((directory / METADATA_NAME).read_text())
    del content["format"]
    (directory / METADATA_NAME).write_text(json.dumps(content))
    with pytest.raises(DataError, match="found null version 1"):
        read_manifest(directory)


def test_what_a_later_version_adds_is_left_alone(change):
    directory = change((*SHARDS, 0), lambda shard: shard | {"later": 1})
    assert len(read_manifest(directory).splits["train"].shards) == 2


def test_metadata_of_another_tokenizer_is_refused_before_its_data_is_used(change, tmp_path):
    directory = change(("eos_token_id",), lambda eos: eos + 1)
    (tmp_path / "more.txt").write_text("more")
    with pytest.raises(TokenizerError, match="its EOS id is"):
        subset_dataset(directory, tmp_path / "part", samples=1, progress=False)
    with pytest.raises(TokenizerError, match="its EOS id is"):
        append_text(directory, tmp_path / "more.txt", progress=False)
    other = change(("vocab_size",), lambda size: size, name="other")
    with pytest.raises(DataError, match=r"train has \d+ documents, its metadata says 3; run mypt verify"):
        append_dataset(other, directory)
