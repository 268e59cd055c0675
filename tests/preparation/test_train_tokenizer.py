"""kill -9 at any moment of `mypt tokenizer`: the same command gives the same files."""

from mypt.preparation.train_tokenizer import train_tokenizer
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
