"""Prompts come from arguments, standard input and files; a file is one prompt."""

import io

import pytest

from mypt.errors import MyPTError
from mypt.generation.prompts import read_prompts, read_records, read_template, unescape


def give_stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


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


def test_each_line_of_a_text_file_is_a_prompt(tmp_path):
    (tmp_path / "lines.txt").write_bytes("one\r\n\n  two \u2028é\n".encode())
    assert read_records(str(tmp_path / "lines.txt")) == [{"prompt": "one"}, {"prompt": "  two \u2028é"}]


def test_each_object_of_a_jsonl_file_keeps_its_fields(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a\\nb", "id": 7}\n\n{"question": "why?"}')
    assert read_records(str(file)) == [{"prompt": "a\nb", "id": 7}, {"question": "why?", "prompt": "why?"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n \n", "holds no prompt"),
        ("a.jsonl", '{"prompt": "a"}\nnonsense\n', "line 2 is damaged: not JSON"),
        ("a.jsonl", '{"text": "a"}\n', 'line 1 has no text "prompt"'),
        ("a.jsonl", '\n["a"]\n', "line 2 is damaged: found a list"),
    ],
)
def test_a_line_without_a_prompt_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(MyPTError, match=message):
        read_records(str(tmp_path / name))


def test_a_template_is_a_text_or_a_file(tmp_path):
    (tmp_path / "template").write_text("Q {question}\nA\n")
    assert read_template(str(tmp_path / "template")) == "Q {question}\nA"
    assert read_template(r"Q {question}\nA") == "Q {question}\nA"
    assert read_template(None) is None
    with pytest.raises(MyPTError, match="cannot be read"):
        read_template("Q and A")


def test_escapes_of_a_command_line():
    assert unescape(r"a\n\tb\\n \x") == "a\n\tb\\n \\x"
