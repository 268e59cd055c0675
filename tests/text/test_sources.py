"""Reading: every format gives the same documents, in an order fixed by the input; what is wrong is named."""

import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from mypt.errors import DataError
from mypt.text import sources
from mypt.text.sources import SourceFile, choose_unit, find_files, fingerprint, read_documents

TEXTS = ["first", "zwei\nZeilen", "", "drei 😀\r\n", "ende"]


def read(path, unit="file", column="text"):
    return [document.text for document in read_documents(SourceFile(path, str(path)), unit, column)]


def write_jsonl(path, rows):
    data = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_records_give_their_texts_in_order(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"n": range(5), "text": TEXTS}), path, row_group_size=2)
    else:
        write_jsonl(path, [{"n": n, "text": text} for n, text in enumerate(TEXTS)])
    assert read(path) == TEXTS


def test_null_text_is_empty(tmp_path):
    assert read(write_jsonl(tmp_path / "a.jsonl", [{"text": None}, {"text": "x"}])) == ["", "x"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [None, "x"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["", "x"]


def test_dictionary_encoded_parquet(tmp_path):
    column = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "b", "a"]


def test_a_file_is_read_as_it_is_without_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\x00\r\n\n")
    assert read(path) == ["one\r\ntwo\x00\r\n\n"]


def test_blocks_and_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\n  two\r\n \t\r\n\nthree\n")
    assert read(path, "block") == ["one\n  two", "three"]
    assert read(path, "line") == ["", "", "one", "  two", " \t", "", "three"]


def test_a_record_is_cut_when_asked(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one\n\ntwo\nthree"}])
    assert read(path, "block") == ["one", "two\nthree"]
    assert read(path, "line") == ["one", "", "two", "three"]


def test_blocks_are_bounded_and_lose_nothing_but_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_BLOCK", 100)
    text = "".join(random.Random(0).choice("ab\n") for _ in range(5000)) + "c" * 1000
    (tmp_path / "a.txt").write_text(text)
    blocks = read(tmp_path / "a.txt", "block")
    assert max(map(len, blocks)) <= 100
    assert "".join(blocks).replace("\n", "") == text.replace("\n", "")


def test_invalid_utf8_comes_out_as_surrogates_in_every_format(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\xffb")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\xffb"}\n')
    raw = pyarrow.StringArray.from_buffers(
        1, pyarrow.array([0, 3], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xffb")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": raw}), tmp_path / "a.parquet")
    assert [read(tmp_path / f"a.{kind}") for kind in ("txt", "jsonl", "parquet")] == [["a\udcffb"]] * 3


def test_globs_are_sorted_and_sources_keep_their_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "z.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = find_files([tmp_path / "z.md", f"{tmp_path}/**/*.txt"])
    assert [file.path.name for file in files] == ["z.md", "a.txt", "b.txt", "c.txt"]
    assert [file.source for file in files] == [str(tmp_path / "z.md")] + [f"{tmp_path}/**/*.txt"] * 3


def test_a_name_with_brackets_is_a_path(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert [file.path for file in find_files([tmp_path / "a[1].txt"])] == [tmp_path / "a[1].txt"]


def test_only_a_large_text_file_is_cut_into_blocks(tmp_path):
    large, small, records = (SourceFile(tmp_path / name, "") for name in ("l.txt", "s.txt", "r.jsonl"))
    large.path.write_bytes(b"x" * 1_000_001)
    small.path.write_bytes(b"x" * 1_000_000)
    records.path.write_bytes(b"x" * 1_000_001)
    assert [choose_unit(file, keep_whole=False) for file in (large, small, records)] == ["block", "file", "file"]
    assert choose_unit(large, keep_whole=True) == "file"


def test_fingerprint_is_of_kind_order_and_content_not_of_name_and_time(tmp_path):
    paths = {name: tmp_path / name for name in ("a.txt", "b.txt", "c.md", "d.jsonl")}
    for name, path in paths.items():
        path.write_text("other" if name == "b.txt" else "same")
    prints = {name: fingerprint([SourceFile(path, "")]) for name, path in paths.items()}
    assert prints["a.txt"] == prints["c.md"]
    assert len({prints[name] for name in ("a.txt", "b.txt", "d.jsonl")}) == 3
    pair = [SourceFile(paths["a.txt"], ""), SourceFile(paths["b.txt"], "")]
    assert fingerprint(pair) != fingerprint(pair[::-1])


def test_source_errors_say_what_to_pass(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    for source, message in [
        (tmp_path, r"is a directory; .*\*\*/\*\.txt"),
        (tmp_path / "missing.txt", "missing.txt does not exist"),
        (f"{tmp_path}/*.md", "no file matches the glob"),
        (tmp_path / "a.zip", "compressed"),
    ]:
        with pytest.raises(DataError, match=message):
            find_files([source])
    with pytest.raises(DataError, match="no source given"):
        find_files([])


def test_content_errors_name_the_place(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n\n{"text": \n')
    whole = write_jsonl(tmp_path / "a.jsonl", [{"body": "a", "title": "b", "n": 1}])
    listed = write_jsonl(tmp_path / "l.jsonl", [["text"]])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"text": "' + bytes(1000) + b'"}')[:-10])
    table, junk = tmp_path / "a.parquet", tmp_path / "junk.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), table)
    junk.write_bytes(b"no parquet at all")
    for path, column, message in [
        (broken, "text", "broken.jsonl:3: broken JSON"),
        (whole, "text", r"a.jsonl:1: no column 'text'; .*: body, title, n"),
        (whole, "n", "a.jsonl:1: column 'n' holds a int"),
        (listed, "text", "l.jsonl:1: a list"),
        (cut, "text", "not a whole gzip"),
        (table, "text", "no column 'text'; .*: body, n"),
        (table, "n", "column 'n' holds int64"),
        (junk, "text", "not a readable Parquet"),
    ]:
        with pytest.raises(DataError, match=message):
            read(path, column=column)
