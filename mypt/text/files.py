"""The files and dataset directories that a source names, and the pieces that large ones are read in."""

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

from mypt.errors import DataError
from mypt.text.opening import ARCHIVES, compression
from mypt.text.tables import row_groups, splits_of

LARGE_FILE = 1_000_000  # bytes on the disk; a text file above it is cut into blocks unless it must stay whole
UNIT_BYTES = 1 << 24  # of a large file that go to one unit

_KINDS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def find_files(source: str) -> list[Path]:
    """A file, or those of a glob sorted by path (`**` descends).

    Raises DataError for a file that is missing, a directory, a pipe, a glob without a match and an archive.
    """
    path = Path(source)
    if path.is_dir():
        raise DataError(f"source {source} is a directory; name its files, for example --source '{path}/**/*.txt'")
    paths = [path] if path.exists() else sorted(filter(Path.is_file, map(Path, glob(source, recursive=True))))
    if not paths and has_magic(source):
        raise DataError(f"no file matches the glob {source!r}; quote it and check where it starts ({Path.cwd()})")
    if not paths:
        raise DataError(f"source {source} does not exist; give a file, a glob, a dataset directory or hf://NAME")
    for path in paths:
        if _suffix(path) in ARCHIVES:
            raise DataError(f"{path} is an archive; unpack it first (only .gz and .zst files are read as they are)")
        if not path.is_file():
            raise DataError(f"{path} is a pipe or a device, and a source is read more than once; write it to a file")
    return paths


def dataset_directory(source: str) -> Path | None:
    """Where the split of a directory of `save_to_disk` lies, for PATH or PATH#SPLIT; None for any other source."""
    path, split = Path(source), ""
    if not path.exists() and "#" in source:
        name, _, split = source.rpartition("#")
        path = Path(name)
    splits = splits_of(path) if path.is_dir() else None
    if splits is None:
        return None
    if not splits:
        if split:
            raise DataError(f"{path} is one dataset without splits; leave out #{split}")
        return path
    if (split or "train") not in splits:
        raise DataError(f"{path} has no split {split or 'train'!r}; add one of: {', '.join(f'#{s}' for s in splits)}")
    return path / (split or "train")


def kind_of(path: Path) -> str:
    """jsonl, csv, parquet, or text for any other name; .gz and .zst do not count."""
    return _KINDS.get(_suffix(path), "text")


def _suffix(path: Path) -> str:
    """In lower case, without .gz and .zst."""
    return (path.with_suffix("") if compression(path) else path).suffix.lower()


def document_of(path: Path) -> str:
    """What a document is in a file that nothing was said of: a block if it is text and large, else the file."""
    return "block" if kind_of(path) == "text" and path.stat().st_size > LARGE_FILE else "file"


def pieces(path: Path, document: str, text_column: str) -> Iterator[tuple[int, int | None]]:
    """Where the units of a file start and stop: bytes or row groups; (0, None) for one that is read as a whole."""
    kind, size = kind_of(path), path.stat().st_size
    if kind == "parquet":
        yield from _together(row_groups(str(path), text_column))
    elif compression(path) or kind == "csv" or (kind == "text" and document == "file"):
        yield 0, None
    else:
        for start in range(0, size, UNIT_BYTES):
            yield start, min(size, start + UNIT_BYTES)


def _together(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbours up to UNIT_BYTES together."""
    start = held = 0
    for index, size in enumerate(sizes):
        if held and held + size > UNIT_BYTES:
            yield start, index
            start, held = index, 0
        held += size
    yield start, len(sizes)
