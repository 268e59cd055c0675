"""Files of every format are read as what they are, whatever they are called; what is no text is named and refused."""

import bz2
import csv
import dataclasses
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from mypt.errors import DataError
from mypt.text import find_files, records, sources
from mypt.text.bad_records import RecordError
from mypt.text.formats import KINDS, Kind, binary_name, detect, encoding_of
from mypt.text.sources import digest, find_units, read_documents

TEXTS = ["first", "zwei\nZeilen, und\tTab", "drei 😀 日本", 'en"de', "five"]


def read(*paths, **choices):
    return [document.text for unit in find_units(paths, **choices) for document in read_documents(unit)]


def lines():
    return "".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(TEXTS))


def array(indent=None):
    return json.dumps([{"n": n, "text": text} for n, text in enumerate(TEXTS)], indent=indent, ensure_ascii=False)


def spread():
    return "\n".join(json.dumps({"n": n, "text": text}, indent=2) for n, text in enumerate(TEXTS))


def delimited(delimiter):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([["n", "text"], *enumerate(TEXTS)])
    return out.getvalue()


CONTENTS = {
    **{f"a.{suffix}": lines() for suffix in ("jsonl", "ndjson", "jsonlines", "json", "txt", "csv", "md")},
    "c4-train.00000-of-01024.json": lines(),
    "array.json": array(),
    "array_indented.json": array(indent=1),
    "array.jsonl": array(),
    "array.txt": array(),
    "spread.json": spread(),
    "spread.jsonl": spread(),
    "comma.csv": delimited(","),
    "tab.csv": delimited("\t"),
    "semicolon.csv": delimited(";"),
    "tab.tsv": delimited("\t"),
    "comma.tsv": delimited(","),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"])
def test_text_formats_in_every_encoding_of_unicode(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(CONTENTS[name].encode(encoding))
    assert read(tmp_path / name) == TEXTS


COMPRESSORS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_text_formats_in_every_compression_with_and_without_its_suffix(tmp_path, suffix):
    compress = COMPRESSORS.get(suffix) or pytest.importorskip("zstandard").compress
    for name in ("c4-train.00000-of-01024.json", "array.json", "tab.tsv", "a.txt", "a.ndjson"):
        for path in (tmp_path / f"{name}{suffix}", tmp_path / name):
            path.write_bytes(compress(CONTENTS[name].encode()))
            assert read(path) == TEXTS
            path.write_bytes(b"")
        with pytest.raises(DataError, match=r"is not a whole .* file \(it has 0 bytes\)"):
            read(tmp_path / f"{name}{suffix}")
    path.write_bytes(compress(CONTENTS["array.json"].encode())[:-9])
    with pytest.raises(DataError, match="is not a whole"):
        read(path)


def write_tables(folder):
    table = pyarrow.table({"n": range(len(TEXTS)), "text": TEXTS})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    pyarrow.feather.write_feather(table, folder / "a.feather", chunksize=2)
    with pyarrow.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    with pyarrow.ipc.new_file(folder / "file.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def test_tables_under_any_name(tmp_path, monkeypatch):
    write_tables(tmp_path)
    for name in ("a.parquet", "a.feather", "file.arrow"):
        data = (tmp_path / name).read_bytes()
        for other in (name, "x.txt", "x.pq", "x.arrow", "x", "x.json"):
            (tmp_path / other).write_bytes(data)
            assert read(tmp_path / other) == TEXTS
    assert read(tmp_path / "stream.arrow") == TEXTS
    with pytest.raises(DataError, match=r"no column 'body'; --text-column is one of: n, text"):
        read(tmp_path / "stream.arrow", text_column="body")
    monkeypatch.setattr(sources, "BUNDLE_BYTES", 0)
    monkeypatch.setattr(find_files, "UNIT_BYTES", 1)
    for name, count in {"file.arrow": 3, "a.feather": 3, "stream.arrow": 1}.items():
        units = find_units([tmp_path / name])
        assert len(units) == len({digest(unit) for unit in units}) == count
        assert [document.text for unit in units for document in read_documents(unit)] == TEXTS


@pytest.mark.parametrize("names", [["text", "text"], ["m", "m.text"]])
def test_columns_of_one_name_are_an_error_and_a_dot_is_part_of_a_name(tmp_path, names):
    values = [pyarrow.array(["a"]) if name != "m" else pyarrow.array([{"text": "b"}]) for name in names]
    table = pyarrow.Table.from_arrays(values, names)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    for path in (tmp_path / "a.parquet", tmp_path / "a.feather"):
        if "m" in names:
            assert read(path, text_column="m.text") == ["a"]
            names = ["m"]
        with pytest.raises(DataError, match=r"2 columns are called 'text'|column 'm' holds struct"):
            read(path, text_column=names[0])


def test_binary_files_are_named_and_refused(tmp_path):
    (tmp_path / "archive").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "book.docx", "w") as archive:
        archive.writestr("a.txt", "text")
    sqlite3.connect(tmp_path / "a.db").execute("create table a (b)").connection.commit()
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"text": "a"}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj")
    (tmp_path / "program").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(40))
    (tmp_path / "random.txt").write_bytes(np.random.default_rng(0).bytes(2_000))
    kinds = {"book.docx": "ZIP archive", "a.db": "SQLite", "a.npy": "NumPy", "a.pkl": "pickle", "a.pdf": "PDF",
             "a.safetensors": "safetensors", "program": "ELF", "random.txt": "binary"}  # fmt: skip
    for name, kind in kinds.items():
        with pytest.raises(DataError, match=rf"{name} is .*{kind}"):
            find_units([tmp_path / name])
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "archive").unlink()
    with pytest.raises(
        DataError, match=r"8 of 9 files cannot be read as text: .*a\.db is an SQLite database.*; .*a\.npy"
    ):
        find_units([f"{tmp_path}/*"])


@pytest.mark.parametrize("text", ["ORC and GGUF, ID3 and RIFF", "{", "[1] is a note", "[{", "{}\n{x}", "%", "PK"])
def test_prose_that_begins_like_another_format_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1251", "shift_jis", "gb18030", "big5", "koi8-r"])
def test_text_in_another_encoding_is_not_binary(encoding):
    text = (
        "Größe, café"
        if encoding == "latin-1"
        else "Привет, мир, это текст"
        if encoding in ("cp1251", "koi8-r")
        else "日本"
    )
    assert binary_name((text * 50).encode(encoding)) is None
    assert encoding_of((text * 50).encode(encoding)) == "utf-8"


def test_utf16_is_found_without_a_mark_by_its_nuls(tmp_path):
    for text in ("Some text.\n", "Это текст. " * 9, "这是一段文字。\n\n" * 9):
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            assert encoding_of(text.encode(encoding)) == encoding
    assert encoding_of(bytes(100)) == encoding_of(b"ab\0c" * 30 + b"\0\0") == "utf-8"
    damaged = "some text ".encode("utf-16-le") + b"\x00\xd8" + "more".encode("utf-16")[2:] + b"!"
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe" + damaged)
    assert read(tmp_path / "a.txt") == ["some text \udcffmore\udcff"]  # counted as two invalid bytes


def test_json_that_is_one_object_names_its_keys(tmp_path):
    wrapped = {"version": 1, "data": [{"text": "a"}]}
    for text in (json.dumps(wrapped), json.dumps(wrapped, indent=1)):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match=r"the keys are version, data\. .*jq -c '\.\[\"data\"\]\[\]'"):
            read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{\n "text": "one"\n}')
    assert read(tmp_path / "a.json") == ["one"]
    for empty in ("[]", "", "  \n", "[ ]\n"):
        (tmp_path / "a.json").write_text(empty)
        assert read(tmp_path / "a.json") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"},\n {"text" "b"}]', "record 2: broken JSON in line 2"),
        ('[{"text": "a"}\n {"text": "b"}]', "record 2: broken JSON in line 2 .expected ',' or"),
        ('[{"text": "a"}', "record 2: broken JSON in line 1 .the array has no end"),
        ('[{"text": "a"},]', "record 2: broken JSON"),
        ('[{"text": "a"}, "b"]', "record 2: a str; expected an object"),
        ('[{"text": "a"}, {"body": 1}]', "record 2: no column 'text'; .*one of: body"),
        ('[{"text": 1}]', "record 1: column 'text' holds a int"),
        ("plain text", "record 1: broken JSON in line 1"),
        ("[" * 100_000, "record 1: broken JSON in line 1 .nested too deeply"),
    ],
)
def test_json_errors_name_the_record(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json")


def test_a_json_array_is_read_in_bounded_memory_in_chunks_of_any_size(tmp_path, monkeypatch):
    for size in (1, 7, 50):
        monkeypatch.setattr("mypt.text.plain._CHUNK", size)
        for text in (array(), array(indent=1), spread(), array() + "\n" + array()):
            (tmp_path / "a.json").write_text(text, encoding="utf-8")
            with open(tmp_path / "a.json", "rb", buffering=0) as file:
                found = records.json_value_texts(file, "a.json", "text", lambda fault: pytest.fail(str(fault)))
                assert [text for texts in found for text in texts] == TEXTS * text.count('"first"')
    monkeypatch.undo()
    monkeypatch.setattr(records, "LONGEST_VALUE", 1_000_000)
    (tmp_path / "b.json").write_text('{"data": [' + ",".join([lines().split("\n")[0]] * 100_000) + "]}")
    with pytest.raises(DataError, match=r"a value of more than 1,000,000 characters; .*\[\"data\"\]"):
        read(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("[" + ",".join([json.dumps({"text": "x" * 100_000})] * 30) + "]")
    assert read(tmp_path / "c.json") == ["x" * 100_000] * 30


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("a.jsonl", ['{"text": "a"}', '{"text": "%s"}', '{"text": "b"}'], "broken_json"),
        ("a.csv", ["text,n", "a,1", "%s,2", "b,3"], "broken_csv"),
        ("b.csv", ["text,n", "a,1", '"%s",2', "b,3"], "broken_csv"),
    ],
)
def test_a_record_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch, name, rows, reason):
    """Of a line that is too long no more than the limit is held, and what follows it is read."""
    monkeypatch.setattr(records, "LONGEST_VALUE", 1 << 20)
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(rows) % ("x" * (1 << 26)) + "\n")
    faults: list[RecordError] = []
    unit = find_units([path])[0]
    tracemalloc.start()
    assert [document.text for document in read_documents(unit, faults.append)] == ["a", "b"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [fault.reason for fault in faults] == [reason]
    assert "1,048,576" in str(faults[0]) or "1048576" in str(faults[0])
    assert peak < 1 << 24


def test_lines_of_csv_are_counted_past_one_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_VALUE", 50)
    long = "x" * 60
    (tmp_path / "a.csv").write_text(f'text,n\na,1\n{long},2\nb\n"{long}\nmore\n{long}",4\n"c\nd",5\ne\n')
    faults: list[RecordError] = []
    unit = find_units([tmp_path / "a.csv"])[0]
    assert [document.text for document in read_documents(unit, faults.append)] == ["a", "c\nd"]
    assert [fault.place for fault in faults] == ["line 3", "line 4", "line 5", "line 10"]


def test_faults_are_handed_out_and_reading_goes_on(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 1}\nx\n{"body": 2}\n{"text": "b"}\n')
    (tmp_path / "b.csv").write_text('n,text\n1,c\n2\n"3"x,d\n4,e\n')
    (tmp_path / "c.json").write_text('[{"text": "f"}, 5, {"text": "g"}, {"te]')
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"h\n" * 10)[:-4])
    (tmp_path / "e.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "f.txt").write_bytes(bytes(range(32)) * 9)
    (tmp_path / "g.txt").write_text("i")
    faults: list[RecordError] = []
    units = find_units([f"{tmp_path}/*"], on_error="skip")
    assert [document.text for unit in units for document in read_documents(unit, faults.append)] == list("abcefgi")
    assert [(fault.path[len(str(tmp_path)) + 1 :], fault.place, fault.reason) for fault in faults] == [
        ("a.jsonl", "line 2", "not_a_text"),
        ("a.jsonl", "line 3", "broken_json"),
        ("a.jsonl", "line 4", "no_column"),
        ("b.csv", "line 3", "row_width"),
        ("b.csv", "line 4", "broken_csv"),
        ("c.json", "record 2", "not_an_object"),
        ("c.json", "record 4", "broken_json"),
        ("d.txt.gz", "", "unreadable"),
        ("e.parquet", "", "unreadable"),
        ("f.txt", "", "unreadable"),
    ]
    with pytest.raises(
        DataError, match=r"a.jsonl:2: column 'text' holds a int.*column \(--on-error skip of mypt prepare"
    ):
        read(tmp_path / "a.jsonl")


def test_folders_of_records_are_sources(tmp_path):
    for name in ("b/part-1.snappy.parquet", "a/part-0.parquet", "_temporary/0.parquet", ".hidden/x.parquet"):
        (tmp_path / name).parent.mkdir()
        pyarrow.parquet.write_table(pyarrow.table({"text": [name]}), tmp_path / name)
    for name in ("README.md", "_SUCCESS", "dataset_infos.json", "a/notes.txt"):
        (tmp_path / name).write_text("{}")
    said = []
    assert read(tmp_path, say=said.append) == ["a/part-0.parquet", "b/part-1.snappy.parquet"]
    assert said == [f"{tmp_path}: 2 files of records (part-0.parquet, ...)"]
    assert find_files.holds_records(tmp_path) and not find_files.holds_records(tmp_path / "README.md")
    (tmp_path / "c.jsonl").write_text(lines())
    with pytest.raises(DataError, match=r"several kinds \(1 of jsonl, 2 of parquet\)"):
        read(tmp_path)
    (tmp_path / "dataset_metadata.json").write_text("{}")
    with pytest.raises(DataError, match="is a dataset directory of mypt"):
        read(tmp_path)
    assert not find_files.holds_records(tmp_path)


def test_records_beside_a_description_are_read_and_two_kinds_are_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert [Path(path).name for unit in find_units([tmp_path]) for path in unit.paths] == ["a.csv"]
    (tmp_path / "b.json").write_text('[{"text": "two"}]')
    with pytest.raises(DataError, match="1 of csv, 1 of json"):
        find_units([tmp_path])


def test_an_open_quote_names_the_lines_that_it_swallows(tmp_path):
    rows = [f'{number},"row {number}' if number == 5 else f"{number},row {number}" for number in range(1, 10)]
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows) + "\n")
    found = []
    (unit,) = find_units([tmp_path / "a.csv"])
    assert [text for text, _ in read_documents(unit, found.append)] == [f"row {number}" for number in range(1, 5)]
    assert len(found) == 1 and "a.csv:6: " in str(found[0]) and "lines 6 to 10 one row" in str(found[0])


def test_padding_behind_a_frame_is_no_damage(tmp_path):
    for suffix, content in ((".xz", lzma.compress(b"one")), (".bz2", bz2.compress(b"one"))):
        (tmp_path / f"a.txt{suffix}").write_bytes(content + bytes(8))
        (unit,) = find_units([tmp_path / f"a.txt{suffix}"])
        assert [text for text, _ in read_documents(unit)] == ["one"]


def test_each_real_file_once_and_loops_end(tmp_path):
    """Twenty directories, each with links to all of them: by paths there would be 20^40 files."""
    for number in range(20):
        (tmp_path / f"{number:02d}").mkdir()
        (tmp_path / f"{number:02d}" / "a.txt").write_text(str(number))
        for other in range(20):
            (tmp_path / f"{number:02d}" / f"to{other}").symlink_to(tmp_path / f"{other:02d}")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    (tmp_path / "00" / "again.txt").symlink_to(tmp_path / "07" / "a.txt")
    found = find_files.find_files(f"{tmp_path}/**/*.txt")
    assert found == [tmp_path / f"{number:02d}" / "a.txt" for number in range(20)]
    assert find_files.find_files(f"{tmp_path}/*/to7/*.txt") == [tmp_path / "00" / "to7" / "a.txt"]
    with pytest.raises(DataError, match=r"self\.txt does not exist"):
        find_units([tmp_path / "self.txt"])


def test_globs_find_what_the_library_finds(tmp_path):
    from glob import glob

    for name in ("a.txt", "b/c.txt", "b/.d.txt", ".e/f.txt", "b/g/h.txt", "b/g/[i].txt", "j.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for pattern in (
        "*.txt",
        "**/*.txt",
        "**",
        "b/**/*.txt",
        "**/g/*",
        "*/[c-h].txt",
        "b/.*",
        ".e/*",
        "**/b/**/[[]i].txt",
    ):
        expected = sorted(
            path for path in map(tmp_path.joinpath, glob(f"{tmp_path}/{pattern}", recursive=True)) if path.is_file()
        )
        assert find_files.find_files(f"{tmp_path}/{pattern}") == expected, pattern


def test_a_form_says_whether_it_is_compressed(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(lines().encode("utf-16")))
    assert detect(tmp_path / "a", "text") == ("jsonl", "utf-16", True)


def test_another_format_takes_one_entry(tmp_path, monkeypatch):
    def texts(file, path, column, on_fault):
        yield [line.decode().strip().upper() for line in file]

    (tmp_path / "a.shout").write_text("one\ntwo\n", encoding="utf-16")
    assert read(tmp_path / "a.shout") == ["one\ntwo\n"]
    monkeypatch.setitem(KINDS, "shout", Kind(texts, (".shout",), {}))
    assert read(tmp_path / "a.shout") == read(tmp_path) == ["ONE", "TWO"]


def test_an_unknown_kind_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines())
    (unit,) = find_units([tmp_path / "a.jsonl"])
    with pytest.raises(KeyError, match="xml"):
        list(read_documents(dataclasses.replace(unit, kind="xml")))
