"""Prompts come from arguments, standard input and files; a file is one prompt."""

import io

import pytest

from mypt.errors import MyPTError
from mypt.generation.prompts import read_prompts


def give_stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_no_prompt_means_the_empty_one():
    assert read_prompts([], []) == [""]


def test_texts_then_files_in_order(tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    files[0].write_bytes("first line\n  second, é\n\n".encode())
    files[1].write_bytes(b"dos\r\nlines\r\n")
    prompts = read_prompts(["one", "two\n"], [str(file) for file in files])
    assert prompts == ["one", "two\n", "first line\n  second, é\n", "dos\nlines"]


def test_a_dash_is_standard_input(monkeypatch):
    give_stdin(monkeypatch, "été\nzwei\n".encode())
    assert read_prompts(["a", "-"], []) == ["a", "été\nzwei"]


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(MyPTError, match=r"prompt file .*nowhere cannot be read \(No such file"):
        read_prompts([], [str(tmp_path / "nowhere")])
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(MyPTError, match=r"prompt file .*latin is not UTF-8 \(byte 0\)"):
        read_prompts([], [str(tmp_path / "latin")])
    give_stdin(monkeypatch, b"\xff")
    with pytest.raises(MyPTError, match="standard input is not UTF-8"):
        read_prompts(["-"], [])
