"""JSON lines and CSV: what is unusual is read, what is broken is named with its place."""

import csv
import json
import random

import pytest

from mypt.errors import DataError
from mypt.text import find_files, sources
from mypt.text.sources import find_units, read_documents


def read(path, column="text"):
    return [document.text for unit in find_units([path], text_column=column) for document in read_documents(unit)]


def lines(path, *rows):
    path.write_text("\n".join(rows), encoding="utf-8", newline="")
    return path


def test_unusual_json_lines(tmp_path):
    rows = (
        '\ufeff{"text": "a"}\r',
        "",
        " \t",
        '  {"n": [1], "text": "b"}  ',
        '\ufeff {"text": null}',
        '{"text": "\\ud800"}',
    )
    assert read(lines(tmp_path / "a.jsonl", *rows)) == ["a", "b", "", "\ud800"]
    assert read(lines(tmp_path / "b.jsonl")) == []


def test_a_line_end_inside_json_text_does_not_end_the_record(tmp_path):
    text = "one\u2028two\x85three\x1cfour\rfive"
    path = lines(tmp_path / "a.jsonl", json.dumps({"text": text}), json.dumps({"text": text[:13]}, ensure_ascii=False))
    assert read(path) == [text, text[:13]]


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        (['{"text": "a"}', "", '{"text": '], "text", "a.jsonl:3: broken JSON"),
        (['{"text": "a"} {"text": "b"}'], "text", "a.jsonl:1: broken JSON"),
        (["[" * 100_000], "text", "a.jsonl:1: broken JSON"),
        (
            ['{"text": "a"}', '{"body": "a", "title": "b", "n": 1}'],
            "text",
            r"a.jsonl:2: no column 'text'; .*: body, title, n",
        ),
        (['{"text": "a", "n": 1}'], "n", "a.jsonl:1: column 'n' holds a int"),
        (['["text"]'], "text", "a.jsonl:1: a list"),
        (['"text"'], "text", "a.jsonl:1: a str"),
    ],
)
def test_json_errors_name_the_line(tmp_path, rows, column, message):
    with pytest.raises(DataError, match=message):
        read(lines(tmp_path / "a.jsonl", *rows), column)


def test_a_broken_line_has_the_same_number_in_a_unit_of_its_own(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl", *['{"text": "a"}'] * 6, "", '{"text"; "b"}', '{"text": "c"}')
    monkeypatch.setattr(sources, "BUNDLE_BYTES", 0)
    monkeypatch.setattr(find_files, "UNIT_BYTES", 40)
    assert len(find_units([path])) > 2
    with pytest.raises(DataError, match=r"a.jsonl:8: broken JSON"):
        read(path)


def test_csv_as_python_writes_it(tmp_path):
    draw = random.Random(2)
    for delimited in range(20):
        texts = ["".join(draw.choices(["a", ",", '"', "\n", "\r\n", " ", "é"], k=draw.randrange(9))) for _ in range(50)]
        path = tmp_path / f"{delimited}.csv"
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerows([["n", "text", "more"], *([n, text, ""] for n, text in enumerate(texts))])
        assert read(path) == texts


def test_a_long_field_and_blank_lines(tmp_path):
    path = lines(tmp_path / "a.csv", "text,n", f'"{"long, " * 100_000}",1', "", "b,2", "")
    assert read(path) == ["long, " * 100_000, "b"]


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ([""], "text", "a.csv has no header row"),
        (["body,n", "a,1"], "text", r"a.csv: no column 'text' in its header row; --text-column is one of: body, n"),
        (["text,n", "a,1", '"b\n",2', "c, d,3"], "text", "a.csv:5: a row of 3 fields under a header of 2"),
        (["text,n", "a"], "text", "a.csv:2: a row of 1 fields"),
        (["text,n", '"a"b,1'], "text", "a.csv:2: broken CSV"),
        (["text,n", '"a,1'], "text", "a.csv:2: broken CSV"),
    ],
)
def test_csv_errors_name_the_line(tmp_path, rows, column, message):
    with pytest.raises(DataError, match=message):
        read(lines(tmp_path / "a.csv", *rows), column)
