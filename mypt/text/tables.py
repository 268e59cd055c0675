"""Stream the texts of tables: Parquet and Arrow files, and directories that `Dataset.save_to_disk` wrote."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mypt.errors import DataError, first_line
from mypt.json_files import FileName, read_json

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from pyarrow.parquet import ParquetFile

_BATCH_BYTES = 1 << 20  # of text, read at a time


@contextmanager
def _readable(path: str, kind: str) -> Iterator[None]:
    """Turn an error of Arrow or the system while a file is read into a DataError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow raises OSError without a number for damaged contents.
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"cannot read {path}: {error.strerror}; check the file and its permissions") from None
        raise DataError(
            f"{path} is not a readable {kind} file ({first_line(error)}); download or write it again"
        ) from None


def _parquet(path: str, column: str) -> ParquetFile:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    require_text(table.schema_arrow, column, path)
    return table


def row_group_sizes(path: str, column: str) -> list[int]:
    """Bytes of text in each row group of a Parquet file, uncompressed. Raises DataError as reading would."""
    with _readable(path, "Parquet"), _parquet(path, column) as table:
        # A field of a struct may have the same path.
        leaves = [i for i in range(len(table.schema)) if table.schema.column(i).path == column]
        groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
        return [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]


def parquet_texts(path: str, column: str, start: int = 0, stop: int | None = None) -> Iterator[list[str]]:
    """The texts of the row groups from `start` to `stop`, in lists."""
    with _readable(path, "Parquet"), _parquet(path, column) as table:
        sizes = row_group_sizes(path, column)
        for group in range(table.num_row_groups)[start:stop]:
            size = _rows_per_batch(table.metadata.row_group(group).num_rows, sizes[group])
            for batch in table.iter_batches(size, row_groups=[group], columns=[column]):
                yield strings(batch.column(batch.schema.get_field_index(column)))


def extent_of_groups(path: str, start: int, stop: int | None) -> tuple[int, int]:
    """The bytes of the row groups from `start` to `stop` of a Parquet file; the last one's with the file's footer."""
    from pyarrow.parquet import read_metadata

    with _readable(path, "Parquet"):
        metadata = read_metadata(path)

    def place(group: int | None) -> int:
        if group is None or group >= metadata.num_row_groups:
            return Path(path).stat().st_size
        columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        return min(column.dictionary_page_offset or column.data_page_offset for column in columns)

    return place(start) if start else 0, place(stop)


def batch_sizes(path: str, column: str) -> list[int]:
    """Bytes of each record batch of an Arrow file, about; none of a stream or Feather V1, which are read as a whole.

    Raises DataError as reading would.
    """
    import pyarrow

    with _readable(path, "Arrow"), pyarrow.memory_map(path) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            reader = pyarrow.ipc.open_file(source)
            require_text(reader.schema, column, path)
            batches = reader.num_record_batches
            return [source.size() // batches] * batches if batches else []
    next(ipc_texts(path, column), None)
    return []


def ipc_texts(path: str, column: str, start: int = 0, stop: int | None = None) -> Iterator[list[str]]:
    """The texts of the record batches from `start` to `stop` of an Arrow or Feather file or an Arrow stream."""
    import pyarrow

    with _readable(path, "Arrow"), pyarrow.memory_map(path) as source:
        magic = source.read(6)
        source.seek(0)
        if magic[:4] == b"FEA1":
            batches = _feather_v1(path).to_batches()
        elif magic == b"ARROW1":
            index = require_text(pyarrow.ipc.open_file(source).schema, column, path)
            source.seek(0)
            reader = pyarrow.ipc.open_file(source, options=pyarrow.ipc.IpcReadOptions(included_fields=[index]))
            batches = map(reader.get_batch, range(reader.num_record_batches)[start:stop])
        else:
            batches = pyarrow.ipc.open_stream(source)
        for batch in batches:
            texts = batch.column(require_text(batch.schema, column, path))
            step = _rows_per_batch(len(texts), texts.nbytes)
            for row in range(0, len(texts), step):
                yield strings(texts.slice(row, step))


def _feather_v1(path: str) -> pyarrow.Table:
    import pyarrow.feather

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # while this format is supported
        return pyarrow.feather.read_table(path)


def _rows_per_batch(rows: int, size: int) -> int:
    return max(1, min(8192, _BATCH_BYTES * rows // max(1, size)))


def require_text(schema: pyarrow.Schema, column: str, place: str) -> int:
    """The index of the column with the text. Raises DataError if there is not one column of that name, of strings."""
    from pyarrow import types

    found = schema.get_all_field_indices(column)
    if not found:
        raise DataError(f"{place}: no column {column!r}; --text-column is one of: {', '.join(schema.names)}")
    if len(found) > 1:
        raise DataError(f"{place}: {len(found)} columns are called {column!r}; rename all but one of them")
    kind = schema.field(found[0]).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(f"{place}: column {column!r} holds {kind}, not text; choose another --text-column")
    return found[0]


def strings(column: pyarrow.Array | pyarrow.ChunkedArray) -> list[str]:
    """Return the texts of a column, "" for null; through bytes where Arrow's strings are not valid UTF-8."""
    import pyarrow

    try:
        texts = column.to_pylist()
    except UnicodeDecodeError:
        kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
        values = column.cast(kind).cast(pyarrow.large_binary())
        return [(value.as_py() or b"").decode("utf-8", "surrogateescape") for value in values]
    return [text or "" for text in texts] if column.null_count else texts


def open_saved_dataset(directory: str, column: str) -> Dataset:
    """A directory that `Dataset.save_to_disk` wrote, cut down to its text column; it is memory-mapped."""
    try:
        written = (Path(directory) / "state.json").stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{directory} is not a whole dataset directory ({error.strerror}: state.json)") from None
    return _open_saved_dataset(directory, column, written)


@lru_cache(maxsize=16)
def _open_saved_dataset(directory: str, column: str, written: int) -> Dataset:
    import datasets

    try:
        if not read_json(Path(directory) / "state.json", _State, DataError, "save it to disk again")["_data_files"]:
            raise DataError(f"source {directory} is a dataset of 0 rows; give one that holds text")
        dataset = datasets.Dataset.load_from_disk(directory).with_format("arrow")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{directory} is not a whole dataset directory ({error}); save it to disk again") from None
    require_text(dataset.features.arrow_schema, column, directory)
    return dataset.select_columns([column])


def rows_per_unit(directory: str, column: str, unit_bytes: int) -> tuple[int, int]:
    """Rows of a dataset directory, and how many of them hold about `unit_bytes` of text."""
    dataset = open_saved_dataset(directory, column)
    rows = len(dataset)
    return rows, max(1, unit_bytes * rows // max(1, dataset.data.nbytes))


def arrow_texts(directory: str, column: str, start: int = 0, stop: int | None = None) -> Iterator[list[str]]:
    """The texts of the rows from `start` to `stop` of a dataset directory, in lists."""
    dataset = open_saved_dataset(directory, column)
    stop = len(dataset) if stop is None else stop
    step = _rows_per_batch(len(dataset), dataset.data.nbytes)
    for row in range(start, stop, step):
        yield strings(dataset[row : min(stop, row + step)].column(0))


class _State(TypedDict):  # state.json of a dataset that `save_to_disk` wrote
    _data_files: list[dict]


class _Splits(TypedDict):  # dataset_dict.json of several
    splits: list[FileName]


def splits_of(directory: Path) -> list[str] | None:
    """The splits of a directory that `save_to_disk` wrote: none for a single Dataset; None for another directory."""
    names = directory / "dataset_dict.json"
    if not names.is_file():
        return [] if (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file() else None
    return read_json(names, _Splits, DataError, "save the dataset to disk again")["splits"]
