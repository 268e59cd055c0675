"""Texts of tables, Parquet files and directories that `Dataset.save_to_disk` wrote, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_BATCH_BYTES = 1 << 20  # of text, read at a time


def row_groups(path: str, column: str) -> list[int]:
    """Bytes of text in each row group of a Parquet file, uncompressed. Raises DataError as reading would."""
    with _parquet(path, column) as table:
        index = [table.schema.column(i).path for i in range(len(table.schema))].index(column)
        groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
        return [group.column(index).total_uncompressed_size for group in groups]


def parquet_texts(path: str, column: str, start: int = 0, stop: int | None = None) -> Iterator[list[str]]:
    """The texts of the row groups from `start` to `stop`, in lists."""
    import pyarrow

    try:
        with _parquet(path, column) as table:
            groups = range(start, table.num_row_groups if stop is None else stop)
            sizes = row_groups(path, column)
            for group in groups:
                rows = table.metadata.row_group(group).num_rows
                size = _rows_per_batch(rows, sizes[group])
                for batch in table.iter_batches(size, row_groups=[group], columns=[column]):
                    yield strings(batch.column(0))
    except pyarrow.ArrowException as error:
        raise _not_parquet(path, error) from None


def extent_of_groups(path: str, start: int, stop: int | None) -> tuple[int, int]:
    """The bytes of the row groups from `start` to `stop` of a Parquet file; the last one's with the file's footer."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except pyarrow.ArrowException as error:
        raise _not_parquet(path, error) from None

    def place(group: int | None) -> int:
        if group is None or group >= metadata.num_row_groups:
            return Path(path).stat().st_size
        columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        return min(column.dictionary_page_offset or column.data_page_offset for column in columns)

    return place(start) if start else 0, place(stop)


def _parquet(path: str, column: str):
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        require_text(table.schema_arrow, column, path)
    except pyarrow.ArrowException as error:
        raise _not_parquet(path, error) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the file and its permissions") from None
    return table


def _not_parquet(path: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    return DataError(f"{path} is not a readable Parquet file ({reason}); download or write it again")


def _rows_per_batch(rows: int, size: int) -> int:
    return max(1, min(8192, _BATCH_BYTES * rows // max(1, size)))


def require_text(schema: pyarrow.Schema, column: str, place: str) -> None:
    from pyarrow import types

    if column not in schema.names:
        raise DataError(f"{place}: no column {column!r}; --text-column is one of: {', '.join(schema.names)}")
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(f"{place}: column {column!r} holds {kind}, not text; choose another --text-column")


def strings(column: pyarrow.Array | pyarrow.ChunkedArray) -> list[str]:
    """Its texts, "" for null; through bytes where Arrow's strings are not valid UTF-8, which it does not promise."""
    import pyarrow

    try:
        texts = column.to_pylist()
    except UnicodeDecodeError:
        kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
        values = column.cast(kind).cast(pyarrow.large_binary())
        return [(value.as_py() or b"").decode("utf-8", "surrogateescape") for value in values]
    return [text or "" for text in texts] if column.null_count else texts


def open_dataset(directory: str, column: str) -> Dataset:
    """A directory that `Dataset.save_to_disk` wrote, cut down to its text column; it is memory-mapped."""
    try:
        written = (Path(directory) / "state.json").stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{directory} is not a whole dataset directory ({error.strerror}: state.json)") from None
    return _open_dataset(directory, column, written)


@lru_cache(maxsize=16)
def _open_dataset(directory: str, column: str, written: int) -> Dataset:
    import datasets

    try:
        dataset = datasets.Dataset.load_from_disk(directory).with_format("arrow")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{directory} is not a whole dataset directory ({error}); save it to disk again") from None
    require_text(dataset.features.arrow_schema, column, directory)
    return dataset.select_columns([column])


def rows_per_unit(directory: str, column: str, unit_bytes: int) -> tuple[int, int]:
    """Rows of a dataset directory, and how many of them hold about `unit_bytes` of text."""
    dataset = open_dataset(directory, column)
    rows = len(dataset)
    return rows, max(1, unit_bytes * rows // max(1, dataset.data.nbytes))


def arrow_texts(directory: str, column: str, start: int = 0, stop: int | None = None) -> Iterator[list[str]]:
    """The texts of the rows from `start` to `stop` of a dataset directory, in lists."""
    dataset = open_dataset(directory, column)
    stop = len(dataset) if stop is None else stop
    step = _rows_per_batch(len(dataset), dataset.data.nbytes)
    for row in range(start, stop, step):
        yield strings(dataset[row : min(stop, row + step)].column(0))


def splits_of(directory: Path) -> list[str] | None:
    """The splits of a directory that `save_to_disk` wrote: none for a single Dataset; None for another directory."""
    names = directory / "dataset_dict.json"
    if not names.is_file():
        return [] if (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file() else None
    try:
        return json.loads(names.read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{names} does not list the splits ({error}); save the dataset to disk again") from None
