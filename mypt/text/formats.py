"""Detect what a file holds, by its contents and its name: kind of records, encoding, or a binary format."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mypt.errors import DataError
from mypt.text import records, tables
from mypt.text.clean import CONTROLS, NOT_TEXT_SHARE
from mypt.text.opening import COMPRESSED, compression, invalid_bytes, open_bytes
from mypt.text.plain import BOUNDARIES, RECORD_BOUNDARY

HEAD = 1 << 16  # bytes, decompressed, that are looked at

ARCHIVES = (".zip", ".7z", ".tar", ".tgz", ".tbz2", ".txz", ".rar")


class Kind(NamedTuple):
    """The rules by which files of one kind are recognized, read and cut.

    A table is a binary format; any other kind is text, which may be compressed and in any encoding of `Format`.
    """

    # Yields the texts of the records, in lists; None: there are no records. Table: texts(path, column, start, stop);
    # text: texts(file, path, column, on_fault), with a file of UTF-8, and begin, end (bytes) if it may be cut.
    texts: Callable[..., Iterator[list[str]]] | None
    suffixes: tuple[str, ...]
    boundaries: dict[str, re.Pattern[bytes]]  # where a large file may be cut, by what a document is
    magic: tuple[bytes, ...] = ()  # the first bytes of a table; empty for text
    sizes: Callable[[str, str], list[int]] | None = None  # (path, column): bytes of text in each piece of a table


_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson")
_ANY_LINE = dict.fromkeys(("file", "block", "line"), RECORD_BOUNDARY)
KINDS = {
    "text": Kind(None, (), BOUNDARIES),
    "jsonl": Kind(records.json_texts, _JSON_LINES, _ANY_LINE),
    "json": Kind(records.json_value_texts, (".json",), {}),  # arrays, or values over several lines
    "csv": Kind(records.csv_texts, (".csv", ".tsv", ".tab"), {}),
    "parquet": Kind(tables.parquet_texts, (".parquet", ".pq"), {}, (b"PAR1",), tables.row_group_sizes),
    "ipc": Kind(tables.ipc_texts, (".arrow", ".feather", ".ipc"), {}, (b"ARROW1", b"FEA1"), tables.batch_sizes),
}
TEXT_KINDS = tuple(name for name, kind in KINDS.items() if not kind.magic)

_BINARY = (
    *((magic, "a ZIP archive (perhaps .docx, .xlsx, .epub, .npz or .pt)") for magic in (b"PK\x03\x04", b"PK\x05\x06")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x04\x22\x4d\x18", "an LZ4 file"),
    (b"%PDF-", "a PDF file"),
    (b"\x7fELF", "an ELF program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GGUF", "a GGUF model"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file (WAV, AVI or WebP)"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC file"),
    (b"ID3", "an MP3 file"),
    (b"\xca\xfe\xba\xbe", "a Java class or a Mach-O program"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of Microsoft Office 97"),
    (b"\0asm", "a WebAssembly program"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x95|\}|\]|c|q|\(|X|\x8c|K|N|G)")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the one of UTF-16, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Format(NamedTuple):
    """The way to read one file."""

    kind: str  # a name in KINDS, or `unreadable`
    encoding: str = "utf-8"  # of text: a codec of Python
    compressed: bool = False


def suffix_of(path: Path) -> str:
    """A file's suffix in lower case, before that of a compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def kind_by_name(path: Path) -> str | None:
    """The kind of file that its suffix stands for."""
    return next((name for name, kind in KINDS.items() if suffix_of(path) in kind.suffixes), None)


def detect(path: Path, column: str) -> Format:
    """Look at the beginning of a file. `column` is the one with the text of records.

    Raises DataError for a file that cannot be opened, is an archive, or is binary: the message names what it is.
    """
    if suffix_of(path) in ARCHIVES:
        raise DataError(f"{path} is an archive; unpack it first (.gz, .zst, .xz and .bz2 files are read as they are)")
    compressed = bool(compression(path))
    head = b""
    with open_bytes(path) as file:
        while len(head) < HEAD and (data := file.read(HEAD - len(head))):
            head += data
    named = kind_by_name(path) or "text"
    table = next((name for name, kind in KINDS.items() if head.startswith(kind.magic)), None)
    if table or KINDS[named].magic:
        if compressed:
            raise DataError(f"{path} is a compressed table; decompress it first")
        return Format(table or named)
    encoding = encoding_of(head)
    if found := binary_name(head, encoding):
        archive = "; unpack it first" if "archive" in found else ""
        raise DataError(f"{path} is {found}, not text{archive or '; leave it out, or extract its text first'}")
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    return Format(_kind_of_text(text, len(head) < HEAD, named, column), encoding, compressed)


def encoding_of(head: bytes) -> str:
    """utf-8 (also for any other superset of ASCII), utf-16 or utf-32 by a byte-order mark, or by where NULs stand."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    zeros = [head[phase::4].count(0) for phase in range(4)]
    if not any(zeros):
        return "utf-8"
    quarter = len(head) // 4
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    # The high bytes of Latin text are zero. In other text few are, but then the bytes are no UTF-8 text either.
    foreign = invalid_bytes(head) or _controls(head) - sum(zeros) > 0.02 * len(head)
    enough = (0.04 if foreign else 1.5) * quarter
    likely = {
        "utf-32-le": zeros[3] >= quarter and zeros[2] >= 0.9 * quarter and zeros[0] <= 0.5 * quarter,
        "utf-32-be": zeros[0] >= quarter and zeros[1] >= 0.9 * quarter and zeros[3] <= 0.5 * quarter,
        "utf-16-le": odd >= enough and even <= 0.7 * odd,
        "utf-16-be": even >= enough and odd <= 0.7 * even,
    }
    return next((name for name, found in likely.items() if found and _reads_as(head, name)), "utf-8")


def _reads_as(head: bytes, encoding: str) -> bool:
    """Whether `head` is valid in that encoding, and text."""
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(head)
    except UnicodeDecodeError:
        return False
    return sum(c.isprintable() or c in "\t\r\n\f" for c in text) >= 0.98 * len(text) > 0


def binary_name(head: bytes, encoding: str = "utf-8") -> str | None:
    """The kind of a binary file, such as "a PDF file"; None for text, also in an unknown encoding."""
    if encoding != "utf-8":
        return None
    for magic, name in _BINARY:
        if head.startswith(magic) and (magic[-1] < 32 or magic[0] > 126 or _controls(head[:16]) or magic == b"%PDF-"):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if _PICKLE.match(head):
        return "a Python pickle"
    if head[5:8] == b"\0\0\0" and head[8:9] == b"{":
        return "a safetensors file"
    share = _controls(head) / max(1, len(head))
    if share > NOT_TEXT_SHARE or (share > NOT_TEXT_SHARE / 4 and invalid_bytes(head) > NOT_TEXT_SHARE * len(head)):
        return "binary (of an unknown kind)"
    return None


def _controls(head: bytes) -> int:
    """The number of control characters that text has no use for."""
    return len(head) - len(head.translate(None, CONTROLS))


def _kind_of_text(head: str, whole: bool, named: str, column: str) -> str:
    """json or jsonl where the contents are JSON, else the kind `named` by the suffix. whole: `head` is all of it."""
    text = head.lstrip("\ufeff \t\r\n")
    records = named in ("jsonl", "json")
    if text.startswith("["):
        first = text[1:].lstrip()
        # A line of JSON lines may be a list by mistake, and prose may begin with a bracket.
        if named == "json" or (named == "jsonl" and first[:1] in ("{", "]")) or _has_column(first, column):
            return "json"
    elif text.startswith("{"):
        lines = [line for line in (text if whole else text.rpartition("\n")[0]).split("\n") if line.strip()][:3]
        if named == "json" and not lines:  # one long line: perhaps all of the file is one object
            return "json"
        objects = [isinstance(_parsed(line), dict) for line in lines]
        if all(objects) and (records or len(lines) > 1 or _has_column(text, column)):
            return "jsonl"
        if records and len(lines) > 1 and not objects[0] and _spread(text, whole):
            return "json"
        return "jsonl" if records else named
    return named


def _parsed(line: str):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _has_column(text: str, column: str) -> bool:
    """Whether a text begins with a JSON object that has the column."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and column in value


def _spread(text: str, whole: bool) -> bool:
    """Whether a text begins with a JSON object over several lines, as far as it can be seen."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return not whole and (error.pos > len(text) - 16 or error.msg.startswith("Unterminated string"))
    except RecursionError:
        return False
    return True
