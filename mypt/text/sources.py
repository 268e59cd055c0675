"""Cut the sources into units of work, which depend on the input alone, and read them as documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import xxhash

from mypt.errors import DataError
from mypt.remote.copies import local_path
from mypt.text import hub_datasets, tables
from mypt.text.bad_records import OnFault, RecordError, Stopped, stop
from mypt.text.find_files import UNIT_BYTES, dataset_directory, document_of, find_files, unit_ranges
from mypt.text.formats import KINDS, Format, detect
from mypt.text.opening import compression, open_utf8
from mypt.text.plain import LONGEST, Document, boundary, cut, cut_text, decoded, whole_documents

BUNDLE_BYTES = 1 << 23  # of small files that go to one unit together
FEWEST_FOR_HASH = 20  # documents; with fewer, the share of val would be a matter of luck
UNREADABLE = "unreadable"  # the kind of a file that is skipped; its fault is found again where it is read
_NAMED = 10  # files in a message


@dataclass(frozen=True)
class Unit:
    """A piece of the input, read by one process at a time; the pieces depend on the input alone."""

    source: str  # as the user gave it
    kind: str  # one of KINDS, arrow (a directory of Dataset.save_to_disk), hub or unreadable
    paths: tuple[str, ...]  # several small files, or one file, directory or hub dataset
    start: int = 0  # first byte (text, jsonl), row group (parquet), record batch (ipc), row (arrow), shard (hub)
    stop: int | None = None  # the first that belongs to the next unit; None: to the end
    document: str = "file"  # file (of records: the whole text), block or line
    text_column: str = "text"
    encoding: str = "utf-8"  # as in `Format`

    def to_dict(self) -> dict:
        """The fields, for a key; an encoding of UTF-8 is left out, so that older keys stay as they are."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("encoding", "utf-8")}

    @property
    def name(self) -> str:
        """For messages: notes/a.txt, notes/a.txt (and 41 more), big.txt[16777216:33554432]."""
        more = f" (and {len(self.paths) - 1} more)" if len(self.paths) > 1 else ""
        place = "" if self.stop is None else f"[{self.start}:{self.stop}]"
        return f"{self.paths[0]}{more}{place}"


def find_units(
    sources: Iterable[str | Path],
    *,
    document: str | None = None,
    keep_whole: bool = False,
    text_column: str = "text",
    on_error: str = "stop",
    say: Callable[[str], object] = lambda line: None,
) -> list[Unit]:
    """The units of each source in turn: paths, globs, directories of records, hf:// datasets, files in object stores.

    `document` is file, block or line; None means file, but block in text files above 1 MB unless `keep_whole`, which
    `say` gets a line about. Raises DataError for a source that is missing, empty or can't be read as asked; with
    `on_error` skip, a single file that can't be read becomes a unit of the kind `unreadable`.
    """
    units: list[Unit] = []
    chosen: list[str] = []  # what a document is in each file
    for source in map(str, sources):
        shape = Unit(source, "", (), document=document or "file", text_column=text_column)
        if source.startswith(hub_datasets.PREFIX):
            place, shards = hub_datasets.resolve(source)
            whole = replace(shape, kind="hub", paths=(place,))
            units += [replace(whole, start=shard, stop=shard + 1) for shard in range(shards)]
        elif directory := dataset_directory(place := local_path(source)):
            rows, step = tables.rows_per_unit(str(directory), text_column, UNIT_BYTES)
            if not rows:
                raise DataError(f"source {source} is a dataset of 0 rows; give one that holds text")
            whole = replace(shape, kind="arrow", paths=(str(directory),))
            units += [replace(whole, start=row, stop=min(rows, row + step)) for row in range(0, rows, step)]
        else:
            given = document or ("file" if keep_whole else None)
            paths = find_files(place)
            if Path(place).is_dir():
                say(f"{source}: {len(paths)} files of records ({paths[0].name}, ...)")
            files = _formats(paths, text_column, on_error)
            files = [(path, form, given or document_of(path, form.kind)) for path, form in files]
            chosen += [how for _, _, how in files]
            units += _file_units(shape, files, on_error)
    if not units:
        raise DataError("no source given, or only empty ones; give a file, a glob, a dataset directory or hf://NAME")
    if document is None and "block" in chosen:
        large = f"{chosen.count('block')} of {len(chosen)} files are larger than 1 MB"
        say(f"{large}: a document there is a block between blank lines (--document changes this)")
    return units


def _formats(paths: list[Path], column: str, on_error: str) -> list[tuple[Path, Format]]:
    found, faults = [], []
    for path in paths:
        try:
            found.append((path, detect(path, column)))
        except DataError as error:
            found.append((path, Format(UNREADABLE)))
            faults.append(error)
    if faults and on_error == "stop":
        if len(faults) > 1:
            more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
            listed = "; ".join(str(fault) for fault in faults[:_NAMED])
            faults[0] = DataError(f"{len(faults)} of {len(paths)} files cannot be read as text: {listed}{more}")
        stop(faults[0])
    return found


def _file_units(shape: Unit, files: list[tuple[Path, Format, str]], on_error: str) -> Iterator[Unit]:
    """Large files in pieces; small neighbours of a kind together.

    Below FEWEST_FOR_HASH files, each is a unit: they may be few documents, and then val takes its share of each file.
    """
    bundle, held = [], 0
    for path, form, document in files:
        size, (kind, encoding, _) = path.stat().st_size, form
        alike = (kind, document, encoding) == (shape.kind, shape.document, shape.encoding)
        if bundle and (held + size > BUNDLE_BYTES or not alike or len(files) < FEWEST_FOR_HASH):
            yield replace(shape, paths=tuple(bundle))
            bundle, held = [], 0
        shape = replace(shape, kind=kind, document=document, encoding=encoding)
        if size <= BUNDLE_BYTES or kind == UNREADABLE:
            bundle.append(str(path))
            held += size
            continue
        try:
            places = list(unit_ranges(path, form, document, shape.text_column))
        except DataError as error:
            if on_error == "stop":
                stop(error)
            places = [(0, None)]  # the fault is found again where it is read
        for start, end in places:
            yield replace(shape, paths=(str(path),), start=start, stop=end)
    if bundle:
        yield replace(shape, paths=tuple(bundle))


def read_documents(unit: Unit, on_fault: OnFault = stop) -> Iterator[Document]:
    """Stream the documents of a unit, in order.

    Bytes that are not UTF-8 come out as lone surrogates, as in Python's surrogateescape, for `Cleaner` to count.
    `on_fault` is called for a record that can't be read, and for a file that can't be read or not to its end; the next
    one follows if it returns. `stop`, the default, raises DataError, naming the place.
    """
    for path in unit.paths:
        try:
            yield from _documents(unit, path, on_fault)
        except Stopped:
            raise
        except RecordError as fault:
            on_fault(fault)
        except DataError as error:
            if unit.kind == "hub":
                raise
            on_fault(RecordError(path, "", UNREADABLE, str(error)))


def _documents(unit: Unit, path: str, on_fault: OnFault) -> Iterator[Document]:
    if unit.kind == "text":
        with open_utf8(path, unit.encoding) as file:
            yield from cut(decoded(file, *_extent(file, unit)), unit.document)
        return
    for texts in _texts(unit, path, on_fault):
        if unit.document == "file" and max(map(len, texts), default=0) <= 2 * LONGEST:
            yield from whole_documents(texts)
            continue
        for text in texts:
            yield from cut_text(text, unit.document)


def _texts(unit: Unit, path: str, on_fault: OnFault = stop) -> Iterator[list[str]]:
    """The texts of the records, in lists."""
    column = unit.text_column
    if unit.kind == "hub":
        yield from hub_datasets.texts(path, unit.start, column)
    elif unit.kind == "arrow":
        yield from tables.arrow_texts(path, column, unit.start, unit.stop)
    elif unit.kind == UNREADABLE:
        detect(Path(path), column)  # raises what is wrong with it
    elif (kind := KINDS[unit.kind]).magic:
        yield from kind.texts(path, column, unit.start, unit.stop)
    else:
        with open_utf8(path, unit.encoding) as file:
            yield from kind.texts(file, path, column, on_fault, *(_extent(file, unit) if kind.boundaries else ()))


def _extent(file: IO[bytes], unit: Unit) -> tuple[int, int | None]:
    """The bytes of the unit's documents: from the first boundary at or after `start` to that of `stop`."""
    if unit.stop is None:
        return 0, None
    pattern = KINDS[unit.kind].boundaries[unit.document]
    begin = boundary(file, unit.start, pattern, limit=unit.stop)
    end = boundary(file, unit.stop, pattern) if begin < unit.stop else begin
    file.seek(0)
    return begin, end


def stamp(unit: Unit) -> str:
    """Sizes and times of its files, or the revision of a hub dataset: while it is equal, nothing has changed."""
    if unit.kind == "hub":
        return unit.paths[0]
    try:
        folders = (sorted(path.iterdir()) if path.is_dir() else [path] for path in map(Path, unit.paths))
        found = [path.stat() for folder in folders for path in folder]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; it was there before") from None
    stamps = " ".join(f"{status.st_size}:{status.st_mtime_ns}" for status in found)
    return stamps if len(found) == 1 else xxhash.xxh3_128_hexdigest(stamps.encode())


def digest(unit: Unit) -> str:
    """xxh3-128 of a unit's kind and contents (a hub dataset: its revision); new names or times do not change it."""
    total = xxhash.xxh3_128(unit.kind.encode())
    if unit.kind == "hub":
        total.update(f"{unit.paths[0]} {unit.start}".encode())
    elif unit.kind == "arrow" or (unit.kind == "ipc" and unit.stop is not None):
        with suppress(DataError):  # reading the documents reports it
            for texts in _texts(unit, unit.paths[0]):
                for text in texts:
                    total.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
    else:
        for path in unit.paths:
            try:
                total.update(_file_digest(unit, path))
            except DataError:
                if unit.kind != UNREADABLE:
                    raise
    return total.hexdigest()


def is_same_text(
    units: Iterable[Unit], recorded: str, partly: bool = False, digest_of: Callable[[Unit], str] = digest
) -> bool:
    """Whether the units of a source have the digest that a dataset's metadata records of it.

    partly: or the first ones of them, as of a source that was read with max_documents.
    """
    total, found = xxhash.xxh3_128(), None
    for unit in units:
        total.update(digest_of(unit).encode())
        found = total.hexdigest()
        if partly and found == recorded:
            break
    return found == recorded


def _file_digest(unit: Unit, path: str) -> bytes:
    content = xxhash.xxh3_128()
    try:
        with open(path, "rb", buffering=0) as file:
            if unit.kind == "parquet" and unit.stop is not None:
                begin, end = tables.extent_of_groups(path, unit.start, unit.stop)
            else:
                begin, end = _extent(file, unit)
            left = (file.seek(0, 2) if end is None else end) - begin
            file.seek(begin)
            while left > 0 and (data := file.read(min(1 << 20, left))):
                content.update(data)
                left -= len(data)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the file and its permissions") from None
    return content.digest()


SAMPLE_BYTES = 1 << 20


def document_count(units: Sequence[Unit]) -> int:
    """Documents of record sources; 0 where nothing is known.

    Exact for Parquet, large Arrow files and dataset directories; of a hub dataset the count that the hub gives; for
    lines of JSON or CSV by the mean length of the first ones.
    """
    counts = [_count(path, unit) for unit in units if unit.kind != "hub" for path in unit.paths]
    counts += map(hub_datasets.documents, {unit.paths[0] for unit in units if unit.kind == "hub"})
    return round(sum(counts)) if all(counts) else 0


def _count(path: str, unit: Unit) -> float:
    if unit.kind == "arrow":
        return unit.stop - unit.start
    if unit.kind == "parquet":
        from pyarrow.parquet import read_metadata

        found = read_metadata(path)
        return sum(found.row_group(i).num_rows for i in range(found.num_row_groups)[unit.start : unit.stop])
    if unit.kind == "ipc" and unit.stop is not None:
        import pyarrow

        with pyarrow.memory_map(path) as source:
            reader = pyarrow.ipc.open_file(source)
            return sum(reader.get_batch(index).num_rows for index in range(unit.start, unit.stop))
    if unit.kind not in ("jsonl", "csv") or compression(path):
        return 0
    with open(path, "rb") as file:
        sample, size = file.read(SAMPLE_BYTES), file.seek(0, 2)
    stop = size if unit.stop is None else min(size, unit.stop)
    return (stop - unit.start) * max(1, sample.count(b"\n")) / max(1, len(sample))


NAMES = ("validation", "valid", "val", "dev")


def own_validation(source: str) -> str | None:
    """The source of the validation split that belongs to `source`; None if it has none, or is that split itself.

    Raises DataError for a dataset that cannot be read.
    """
    path, _, split = source.partition("#")
    if source.startswith(hub_datasets.PREFIX):
        names, split = hub_datasets.splits(source)
    elif not Path(source).is_file() and Path(path).is_dir():
        names = tables.splits_of(Path(path)) or []
    else:
        return None
    if split in NAMES:
        return None
    found = next((name for name in NAMES if name in names), None)
    return found and f"{path}#{found}"
