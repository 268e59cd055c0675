"""`mypt tokenizer`: kill -9 at any moment and the same command give the same files; a kind is one entry of a table."""

import pytest

from mypt.errors import TokenizerError
from mypt.preparation.prepare import prepare_dataset
from mypt.preparation.train_tokenizer import train_tokenizer
from mypt.tokenization.train import TRAINED, CharacterSet, Kind, build_char
from tests.datasets import contents, die_at


def test_killed_at_any_touch_of_a_file_it_is_made_by_the_same_command(tmp_path):
    source = tmp_path / "text.txt"
    source.write_text("the king of the lands and the lands of the king " * 30)
    options = {"vocab_size": 262, "progress": False}
    expected = contents(train_tokenizer([source], tmp_path / "expected", **options))
    kills = 0
    while die_at(kills, lambda out: train_tokenizer([source], out, **options), out := tmp_path / f"killed{kills}"):
        assert contents(train_tokenizer([source], out, **options)) == expected
        kills += 1
    assert kills > 12 and contents(out) == expected


def test_another_kind_takes_one_entry(tmp_path, monkeypatch):
    kind = Kind(lambda settings, below: CharacterSet(), lambda found, *rest: build_char(found.characters | {"!"}), ())
    monkeypatch.setitem(TRAINED, "loud", kind)
    (tmp_path / "text.txt").write_text("abc " * 30)
    options = {"tokenizer": "loud", "progress": False}
    made = train_tokenizer([tmp_path / "text.txt"], tmp_path / "made", **options)
    prepare_dataset(tmp_path / "text.txt", tmp_path / "data", **options, val_fraction=0, dedup="line")
    assert (made / "tokenizer.json").read_bytes() == (tmp_path / "data" / "tokenizer.json").read_bytes()
    with pytest.raises(TokenizerError, match=r"'gpt2' is not made of text; choose one of: bpe, char, loud$"):
        train_tokenizer([tmp_path / "text.txt"], tmp_path / "other", "gpt2")
    assert not (tmp_path / "other").exists()
