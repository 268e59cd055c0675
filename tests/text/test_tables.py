"""Parquet files and dataset directories: any text type, by row groups and rows, with clear errors."""

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mypt.errors import DataError
from mypt.text import find_files, sources, tables
from mypt.text.sources import find_units, read_documents


def read(path, column="text"):
    return [document.text for unit in find_units([path], text_column=column) for document in read_documents(unit)]


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(["a", None, "é"]),
        pyarrow.array(["a", None, "é"], pyarrow.large_string()),
        pyarrow.array(["a", None, "é"], pyarrow.string_view()),
        pyarrow.array(["a", None, "é"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_every_type_of_text(tmp_path, column):
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "", "é"]


def test_neighbouring_row_groups_of_about_a_unit_go_together(tmp_path, monkeypatch):
    texts = [f"{n:05d} " * 20 for n in range(100)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=5, use_dictionary=False)
    monkeypatch.setattr(sources, "BUNDLE_BYTES", 0)
    monkeypatch.setattr(find_files, "UNIT_BYTES", 2_000)
    units = find_units([path])
    assert 5 <= len(units) < 20
    assert [len(list(read_documents(unit))) for unit in units] == [5 * (unit.stop - unit.start) for unit in units]
    monkeypatch.setattr(find_files, "UNIT_BYTES", 1)
    assert len(find_units([path])) == 20
    assert read(path) == texts


def test_texts_come_in_lists_of_bounded_size(tmp_path, monkeypatch):
    texts = ["x" * 1000] * 1000
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "rows"))
    monkeypatch.setattr(tables, "_BATCH_BYTES", 10_000)
    for found in (
        list(tables.parquet_texts(str(tmp_path / "a.parquet"), "text")),
        list(tables.arrow_texts(str(tmp_path / "rows"), "text")),
    ):
        assert max(map(len, found)) <= 10
        assert [text for some in found for text in some] == texts


def test_a_filtered_and_shuffled_dataset_is_read_in_its_order(tmp_path):
    rows = datasets.Dataset.from_dict({"text": list("abcdefgh")}).shuffle(seed=1).select(range(5))
    rows.save_to_disk(str(tmp_path / "rows"))
    assert read(tmp_path / "rows") == rows["text"][:]


def test_a_dataset_directory_that_was_written_again_is_read_again(tmp_path):
    for text in ("old", "new"):
        datasets.Dataset.from_dict({"text": [text]}).save_to_disk(str(tmp_path / "rows"))
        assert read(tmp_path / "rows") == [text]


def test_parquet_errors_name_file_and_columns(tmp_path):
    table, junk = tmp_path / "a.parquet", tmp_path / "junk.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), table)
    junk.write_bytes(b"no parquet at all")
    for path, column, message in [
        (table, "text", r"a.parquet: no column 'text'; .*: body, n"),
        (table, "n", "a.parquet: column 'n' holds int64, not text"),
        (junk, "text", "junk.parquet is not a readable Parquet file"),
    ]:
        with pytest.raises(DataError, match=message):
            read(path, column)
