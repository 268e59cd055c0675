"""Detect what a file holds, by its contents and its name: kind of records, encoding, or a binary format."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import NamedTuple

from mypt.errors import DataError
from mypt.text.clean import NOT_TEXT_SHARE
from mypt.text.opening import COMPRESSED, compression, open_bytes

HEAD = 1 << 16  # bytes, decompressed, that are looked at

KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson"), "jsonl"),
    ".json": "json",
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "ipc"),
}
TEXT_KINDS = ("text", "jsonl", "json", "csv")
ARCHIVES = (".zip", ".7z", ".tar", ".tgz", ".tbz2", ".txz", ".rar")

_TABLES = {b"PAR1": "parquet", b"ARROW1": "ipc", b"FEA1": "ipc"}
_STREAM = b"\xff\xff\xff\xff"  # with which a stream of Arrow's begins, which has no magic bytes
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
_CONTROLS = bytes([*range(0x09), *range(0x0E, 0x1B), *range(0x1C, 0x20), 0x7F])


class Format(NamedTuple):
    """What a file is read as."""

    kind: str  # text, jsonl, json (arrays, or values over several lines), csv, parquet, ipc (Arrow, Feather)
    encoding: str = "utf-8"  # of text, jsonl, json and csv: a codec of Python
    compressed: bool = False


def suffix_of(path: Path) -> str:
    """In lower case, without the suffix of a compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def detect(path: Path, column: str) -> Format:
    """Look at the beginning of a file. `column` is the one with the text of records.

    Raises DataError for a file that cannot be opened, is an archive, or is binary: the message names what it is.
    """
    suffix = suffix_of(path)
    if suffix in ARCHIVES:
        raise DataError(f"{path} is an archive; unpack it first (.gz, .zst, .xz and .bz2 files are read as they are)")
    compressed = bool(compression(path))
    with open_bytes(path) as file:
        head = _read(file)
    named = KINDS.get(suffix, "text")
    table = next((kind for magic, kind in _TABLES.items() if head.startswith(magic)), None)
    table = table or ("ipc" if named == "ipc" and head.startswith(_STREAM) else None)
    if table or named in ("parquet", "ipc"):
        if compressed:
            raise DataError(f"{path} is a compressed table; decompress it first")
        return Format(table or named)
    encoding = encoding_of(head)
    if found := binary_name(head, encoding):
        archive = "; unpack it first" if "archive" in found else ""
        raise DataError(f"{path} is {found}, not text{archive or '; leave it out, or extract its text first'}")
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    kind = _kind(text, whole=len(head) < HEAD, named=named, column=column)
    return Format(kind, encoding, compressed)


def _read(file) -> bytes:
    parts, left = [], HEAD
    while left and (data := file.read(left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def encoding_of(head: bytes) -> str:
    """utf-8 (or anything that ASCII is a part of), or the form of UTF-16 or UTF-32, by mark or by where NULs stand."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    zeros = [head[phase::4].count(0) for phase in range(4)]
    if not any(zeros):
        return "utf-8"
    quarter = len(head) // 4
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    # The high bytes of Latin text are zero. Of other text few are, but then the bytes are no UTF-8 text either.
    foreign = _invalid(head) or _controls(head) - sum(zeros) > 0.02 * len(head)
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
    """What a binary file is, such as "a PDF file"; None for text. Text may be in an encoding that is not known."""
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
    if share > NOT_TEXT_SHARE or (share > NOT_TEXT_SHARE / 4 and _invalid(head) > NOT_TEXT_SHARE * len(head)):
        return "binary (of an unknown kind)"
    return None


def _controls(head: bytes) -> int:
    """Control characters that text has no use for."""
    return len(head) - len(head.translate(None, _CONTROLS))


def _invalid(head: bytes) -> int:
    """Bytes that are not UTF-8."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)
    return sum("\udc80" <= c <= "\udcff" for c in text)


def _kind(head: str, whole: bool, named: str, column: str) -> str:
    """text, jsonl, json or csv; `whole`: `head` is all of the file."""
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
    """Whether it begins with a JSON object that has the column."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and column in value


def _spread(text: str, whole: bool) -> bool:
    """Whether it begins with a JSON object over several lines, as far as it can be seen."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return not whole and (error.pos > len(text) - 16 or error.msg.startswith("Unterminated string"))
    except RecursionError:
        return False
    return True
