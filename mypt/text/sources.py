"""Files named by paths and globs, streamed lazily as documents in an order that the input alone fixes."""

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import IO, NamedTuple

import xxhash

from mypt.errors import DataError
from mypt.text.document import Document

UNITS = ("file", "block", "line")
LARGE_FILE = 1_000_000  # bytes; a text file above it is cut into blocks unless it must stay whole
LONGEST_BLOCK = 1_000_000  # characters; a block or a line above it is cut, which bounds the memory

_RECORDS = (".jsonl", ".jsonl.gz", ".parquet")
_COMPRESSED = (".gz", ".zst", ".zip", ".bz2", ".xz", ".7z")
_PARQUET_ROWS = 256  # per batch


class SourceFile(NamedTuple):
    """One file and the source, as the user gave it, that named it."""

    path: Path
    source: str

    @property
    def holds_records(self) -> bool:
        """Whether the file is a list of records with a text column, rather than text."""
        return self.path.name.endswith(_RECORDS)


def find_files(sources: Iterable[str | Path]) -> list[SourceFile]:
    """The files of each source in turn, those of a glob (`**` descends) sorted by path.

    Raises DataError for a file that is missing, a directory, a glob without a match and a compressed file.
    """
    files = []
    for source in map(str, sources):
        path = Path(source)
        if path.is_dir():
            raise DataError(f"source {source} is a directory; name its files, for example --source '{path}/**/*.txt'")
        paths = [path] if path.exists() else sorted(filter(Path.is_file, map(Path, glob(source, recursive=True))))
        if not paths and has_magic(source):
            raise DataError(f"no file matches the glob {source!r}; quote it and check where it starts ({Path.cwd()})")
        if not paths:
            raise DataError(f"source {source} does not exist; give a text, .jsonl(.gz) or .parquet file, or a glob")
        files += [SourceFile(path, source) for path in paths]
    for file in files:
        if file.path.suffix in _COMPRESSED and not file.holds_records:
            raise DataError(f"{file.path} is compressed; decompress it first (only .jsonl.gz is read as it is)")
    if not files:
        raise DataError("no source given; give at least one file or glob")
    return files


def fingerprint(files: Iterable[SourceFile]) -> str:
    """xxh3-128 over the kinds and contents of `files` in order: renaming or touching a file does not change it."""
    total = xxhash.xxh3_128()
    for file in files:
        digest = xxhash.xxh3_128()
        try:
            with open(file.path, "rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise DataError(f"cannot read {file.path}: {error.strerror}; check its permissions") from None
        kind = next((kind for kind in _RECORDS if file.path.name.endswith(kind)), "text")
        total.update(f"{kind} {digest.hexdigest()} ".encode())
    return total.hexdigest()


def choose_unit(file: SourceFile, keep_whole: bool) -> str:
    """The unit when none was asked for: a file, or a block when a text file is large and need not stay whole."""
    large = not file.holds_records and file.path.stat().st_size > LARGE_FILE
    return "block" if large and not keep_whole else "file"


def read_documents(file: SourceFile, unit: str = "file", text_column: str = "text") -> Iterator[Document]:
    """Stream the documents of one file.

    `unit` is file (a record's whole text in .jsonl and .parquet), block (separated by blank lines) or line.
    Bytes that are not UTF-8 come out as lone surrogates, as in Python's surrogateescape, for `Cleaner` to count.
    Raises DataError for broken JSON or Parquet, and for a text column that is missing or holds no text.
    """
    if not file.holds_records:
        with open(file.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            texts = _cut(stream, unit)
            yield from (Document(text, f"{file.path}:{i}", file.source) for i, text in enumerate(texts))
        return
    records = _parquet_texts if file.path.suffix == ".parquet" else _json_texts
    texts = records(file.path, text_column)
    if unit != "file":
        texts = (part for text in texts for part in _cut(io.StringIO(text, newline=""), unit))
    yield from (Document(text, f"{file.path}:{i}", file.source) for i, text in enumerate(texts))


def _cut(stream: IO[str], unit: str) -> Iterator[str]:
    """The parts of a text without the line ends and the blank lines that separate them."""
    if unit == "file":
        yield stream.read()
        return
    block: list[str] = []
    size = 0
    for line in iter(lambda: stream.readline(LONGEST_BLOCK), ""):
        if unit == "line":
            yield line.rstrip("\r\n")
            continue
        blank = not line.strip()
        if block and (blank or size + len(line) > LONGEST_BLOCK):
            yield "".join(block).rstrip("\r\n")
            block, size = [], 0
        if not blank:
            block.append(line)
            size += len(line)
    if block:
        yield "".join(block).rstrip("\r\n")


def _json_texts(path: Path, column: str) -> Iterator[str]:
    opener: Callable[..., IO[bytes]] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
                if text.strip():
                    yield _json_text(text, column, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); download or compress it again") from None


def _json_text(line: str, column: str, place: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: broken JSON ({error}); expected one object per line") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: a {type(record).__name__}; expected an object such as {{{column!r}: '...'}}")
    if column not in record:
        raise DataError(f"{place}: no column {column!r}; --text-column is one of: {', '.join(record)}")
    if not isinstance(record[column], str | None):
        kind = type(record[column]).__name__
        raise DataError(f"{place}: column {column!r} holds a {kind}, not text; choose another --text-column")
    return record[column] or ""


def _parquet_texts(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise DataError(f"{path}: no column {column!r}; --text-column is one of: {', '.join(names)}")
            kind = table.schema_arrow.field(column).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise DataError(f"{path}: column {column!r} holds {kind}, not text; choose another --text-column")
            for batch in table.iter_batches(_PARQUET_ROWS, columns=[column]):
                # As bytes, since Arrow does not promise that a string is valid UTF-8.
                values = batch.column(0).cast(kind).cast(pyarrow.large_binary())
                yield from ((value.as_py() or b"").decode("utf-8", "surrogateescape") for value in values)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable Parquet file ({reason}); download or write it again") from None
