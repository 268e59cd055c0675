"""What two directories share is counted exactly, whatever their tokenizers and however the shards are cut."""

import pytest

from mypt.errors import DataError
from mypt.preparation import overlap
from mypt.preparation.overlap import overlaps
from mypt.tokenization.load import EOS
from mypt.tokenization.train import train_bpe_tokenizer

LONG = "a line that is long enough to be no accident at all"
FIRST = {
    "train": ["only here", "in both", "twice", "twice", ""],
    "val": ["measures us", "in their train", "y\n" + LONG],
}
SECOND = {"train": ["in their train", "in both", f"  {LONG}  \nother", ""], "val": ["twice", "theirs"]}
# split, other split: documents with text, shared ones, long lines, shared ones; worked out by hand
EXPECTED = {
    ("first", "val", "train"): (3, 1, 1, 1),
    ("second", "val", "train"): (2, 1, 0, 0),
    ("first", "train", "train"): (4, 1, 0, 0),
    ("second", "train", "train"): (3, 1, 1, 0),
    ("first", "train", "val"): (4, 2, 0, 0),
    ("second", "train", "val"): (3, 1, 1, 1),
    ("first", "val", "val"): (3, 0, 1, 0),
    ("second", "val", "val"): (2, 0, 0, 0),
}


def bpe():
    return train_bpe_tokenizer([*FIRST["train"], LONG, LONG], 300)


def word_level():
    """A tokenizer whose ids are not bytes of the text: what it gives has to be decoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from mypt.tokenization.load import wrap

    pieces = {piece for texts in (*FIRST.values(), *SECOND.values()) for text in texts for piece in text}
    backend = Tokenizer(models.WordLevel({piece: id for id, piece in enumerate(sorted(pieces))}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return wrap(backend)


def found(first, second, **options):
    return {
        (entry.directory.rpartition("/")[2], entry.split, entry.other_split): (
            entry.documents, entry.shared_documents, entry.lines, entry.shared_lines
        )
        for entry in overlaps(first, second, **options)
    }  # fmt: skip


@pytest.mark.parametrize("tokenizers", [(None, None), (None, bpe), (bpe, word_level)])
@pytest.mark.parametrize("per_shard", [3, 1_000])
def test_counts_by_hand(make_dataset, tokenizers, per_shard):
    made = [make and make() for make in tokenizers]
    first = make_dataset("first", **FIRST, tokenizer=made[0], per_shard=per_shard)
    second = make_dataset("second", **SECOND, tokenizer=made[1], per_shard=50)
    assert found(first, second) == EXPECTED
    without_lines = {place: (*counts[:2], None, None) for place, counts in EXPECTED.items()}
    assert found(first, second, lines=False) == without_lines


def test_documents_longer_than_what_is_decoded_at_once(make_dataset, monkeypatch):
    monkeypatch.setattr(overlap, "_WHOLE_TOKENS", 5)
    first, second = make_dataset("first", **FIRST, per_shard=4), make_dataset("second", **SECOND, tokenizer=bpe())
    assert found(first, second) == EXPECTED


def test_leaks_come_first_and_are_only_val_in_train(make_dataset):
    first, second = make_dataset("first", **FIRST), make_dataset("second", **SECOND)
    entries = overlaps(first, second)
    assert [entry.leaks for entry in entries] == [True, True] + [False] * 6
    assert {(entry.split, entry.other_split) for entry in entries[:2]} == {("val", "train")}


def test_a_literal_end_of_text_is_text(make_dataset):
    first = make_dataset("first", train=[EOS + " x"], tokenizer=bpe())
    second = make_dataset("second", train=[EOS + " x", " x"])
    assert found(first, second)[("second", "train", "train")][:2] == (2, 1)


def test_a_cut_document_counts_as_the_part_that_is_there(make_dataset):
    first, second = make_dataset("first", train=["a", "begun"], cut=True), make_dataset("second", train=["begun"])
    assert found(first, second)[("second", "train", "train")][:2] == (1, 1)


def test_two_directories_are_needed(make_dataset):
    directory = make_dataset(**FIRST)
    with pytest.raises(DataError, match="the same directory"):
        overlaps(directory, directory)
