"""A folder appears whole or not at all, and nothing of the user's is in its way."""

import pytest

from mypt.files import is_free, new_folder


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "file").read_text() == "x"
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "failed") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_of_the_user_with_a_like_name_stays(tmp_path):
    (tmp_path / "made.tmp").mkdir()
    (tmp_path / "made.tmp" / "mine").write_text("x")
    with new_folder(tmp_path / "made"):
        pass
    assert (tmp_path / "made.tmp" / "mine").exists()


def test_free_is_what_is_not_there_or_empty_and_not_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "file").write_text("x")
    assert all(map(is_free, [tmp_path / "absent", tmp_path / "empty", tmp_path / "link"]))
    assert not is_free(tmp_path) and not is_free(tmp_path / "file")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "empty" / "file").exists() and (tmp_path / "link").is_symlink()
    (tmp_path / "stand").mkdir()
    monkeypatch.chdir(tmp_path / "stand")
    assert not is_free(".") and not is_free(tmp_path / "stand")
