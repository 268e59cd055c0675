"""Find the files and dataset directories that a source names, and the pieces that large ones are read in."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from fnmatch import translate
from glob import escape, has_magic
from pathlib import Path

from mypt.errors import DataError
from mypt.text.formats import KINDS, Format, kind_by_name
from mypt.text.hub_datasets import advice_for
from mypt.text.tables import splits_of

LARGE_FILE = 1_000_000  # bytes on the disk; a text file above it is cut into blocks unless it must stay whole
UNIT_BYTES = 1 << 24  # of a large file that go to one unit
# Files of a dataset that hold no records:
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")
_OURS = ("dataset_metadata.json", "train/shard_00000.bin")  # in a directory that `mypt prepare` wrote


def find_files(source: str) -> list[Path]:
    """A file, those of a glob (`**` descends) or of a directory of tables or JSON lines: each once, sorted by path.

    Symbolic links are followed; a file or directory that has several paths is read under one of them.
    Raises DataError for what is missing, a directory of other files, a pipe and a glob without a match.
    """
    path = Path(source)
    if path.is_dir():
        return record_files(path)
    paths = [path] if path.exists() else _once(path for path in _glob(source) if path.is_file())
    if not paths and has_magic(source):
        raise DataError(f"no file matches the glob {source!r}; quote it and check where it starts ({Path.cwd()})")
    if not paths:
        advice = advice_for(source, "give a file, a glob, a dataset directory or hf://NAME")
        raise DataError(f"source {source} does not exist; {advice}")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is a pipe or a device, and a source is read more than once; write it to a file")
    return paths


def record_files(directory: Path) -> list[Path]:
    """The files of records in a directory and below it, which must be of one kind; others (README.md) are left out.

    Raises DataError if there are none, or of several kinds.
    """
    if any((directory / name).exists() for name in _OURS):
        raise DataError(f"source {directory} is a dataset directory of mypt, which is already prepared")
    kinds: dict[str, list[Path]] = {}
    for path in _glob(f"{escape(str(directory))}/**/*"):
        inner = path.relative_to(directory).parts
        if (kind := kind_by_name(path)) and path.is_file() and not any(part[0] == "_" for part in inner):
            kinds.setdefault(kind, []).append(path)
    if len(kinds) > 1 and "json" in kinds:
        kinds["json"] = [path for path in kinds["json"] if path.name not in _DESCRIPTIONS]
        kinds = {kind: paths for kind, paths in kinds.items() if paths}
    if not kinds:
        raise DataError(
            f"source {directory} is a directory; name its files, for example --source '{directory}/**/*.txt'"
        )
    if len(kinds) > 1:
        endings = ", ".join(f"{len(paths)} of {kind}" for kind, paths in sorted(kinds.items()))
        example = next(iter(kinds.values()))[0].suffix
        raise DataError(
            f"source {directory} is a directory with files of several kinds ({endings}); name those to read, for "
            f"example --source '{directory}/**/*{example}'"
        )
    return _once(next(iter(kinds.values())))


def holds_records(path: Path) -> bool:
    """Whether it is a directory that can be a source because of the files of records in it."""
    try:
        return path.is_dir() and bool(record_files(path))
    except DataError:
        return False


def _glob(pattern: str) -> Iterator[Path]:
    """As glob.glob(recursive=True), but no directory is entered twice: links may form a loop."""
    anchor = Path(pattern).anchor
    places, parts = [Path(anchor)], list(Path(pattern).parts[bool(anchor) :])
    while parts:
        part = parts.pop(0)
        if part == "**":
            while parts and parts[0] == "**":
                parts.pop(0)
            places = _tree(places)
            parts = parts or ["*"]
        elif has_magic(part):
            matches = re.compile(translate(part)).match
            hidden = part.startswith(".")
            places = [
                place / entry.name
                for place in places
                for entry in _entries(place)
                if matches(entry.name) and (hidden or not entry.name.startswith("."))
            ]
        else:
            places = [place / part for place in places if (place / part).exists()]
    yield from places


def _tree(roots: list[Path]) -> list[Path]:
    """The directories `roots` and all below them that are not hidden, each real one once; links come last."""
    found, seen = [], set()
    waiting, links = list(reversed(roots)), deque()
    while waiting or links:
        place = waiting.pop() if waiting else links.popleft()
        try:
            status = os.stat(place)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen or not place.is_dir():
            continue
        seen.add((status.st_dev, status.st_ino))
        found.append(place)
        for entry in _entries(place):
            if not entry.name.startswith("."):
                if entry.is_symlink():
                    links.append(place / entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(place / entry.name)
    return found


def _entries(place: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:  # no directory, or one that may not be read
        return []


def _once(paths: Iterator[Path] | list[Path]) -> list[Path]:
    """Sorted by path; of several paths of one real file the first one that is no link, else the first."""
    real: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):
        real.setdefault(os.path.realpath(path), path)
    return sorted(real.values())


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


def document_of(path: Path, kind: str) -> str:
    """The default kind of document in a file: a block if it is text and large, else the file."""
    return "block" if kind == "text" and path.stat().st_size > LARGE_FILE else "file"


def unit_ranges(path: Path, form: Format, document: str, text_column: str) -> Iterator[tuple[int, int | None]]:
    """Start and stop of the units of a file, in bytes, row groups or record batches; (0, None): read as a whole."""
    kind, size = KINDS[form.kind], path.stat().st_size
    if kind.sizes and (sizes := kind.sizes(str(path), text_column)):
        yield from _together(sizes)
    elif form.compressed or form.encoding != "utf-8" or document not in kind.boundaries:
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
