"""Open files, decompressed if their contents or names call for it, as bytes or UTF-8; guess other encodings."""

from __future__ import annotations

import codecs
import gzip
import io
import shlex
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mypt.errors import DataError

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}  # by suffix; these are read as they are

_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\0": ".xz"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # what follows BZh and a digit: a block, or the end
_READ = 1 << 17  # bytes at a time


def compression(path: str | Path) -> str:
    """.gz, .zst, .xz, .bz2, or nothing: by the file's first bytes, else by its name."""
    suffix = Path(path).suffix.lower()
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(10)
    except OSError:  # the caller opens it again and reports the reason
        head = b""
    if head[:3] == b"BZh" and head[4:] in _BZIP2_BLOCKS:
        return ".bz2"
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
    return found or (suffix if suffix in COMPRESSED else "")


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed if it is .gz, .zst, .xz or .bz2.

    Raises DataError for a file that cannot be read, and for a compressed file that is empty, damaged or truncated.
    """
    suffix = compression(path)
    try:
        if suffix and Path(path).stat().st_size == 0:
            raise EOFError("it has 0 bytes")
        with _decompressed(path, suffix) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error, _DecompressionError) as error:
        raise DataError(
            f"{path} is not a whole {COMPRESSED[suffix]} file ({error}); download or compress it again"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the file and its permissions") from None


def _decompressed(path: str | Path, suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return gzip.open(path, "rb")
    file = open(path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    if not suffix:
        return file
    return io.BufferedReader(_Stream(_frames(file, *_decompressor(file, suffix)), file), 1 << 20)


class _DecompressionError(Exception):
    pass


def _decompressor(file: IO[bytes], suffix: str) -> tuple:
    """A function that makes a decompressor for one frame, and the errors that it raises."""
    if suffix == ".xz":
        import lzma

        return lzma.LZMADecompressor, lzma.LZMAError
    if suffix == ".bz2":
        import bz2

        return bz2.BZ2Decompressor, OSError
    try:
        import zstandard
    except ImportError:
        file.close()
        raise DataError(f"{file.name} needs zstandard: run `pip install mypt[zstd]`, or decompress it") from None
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj, zstandard.ZstdError


class _Stream(io.RawIOBase):
    """The bytes that `chunks` yields of `file`, as a file."""

    def __init__(self, chunks: Iterator[bytes], file: IO[bytes]) -> None:
        self._chunks, self._file, self._content = chunks, file, memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self._content and (chunk := next(self._chunks, None)) is not None:
            self._content = memoryview(chunk)
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


def _frames(file: IO[bytes], decompressor: Callable, error: type[Exception]) -> Iterator[bytes]:
    """The content of all frames of a compressed file. Raises EOFError if the file stops within one."""
    frame, ahead, begun = None, b"", False
    while True:
        data, ahead = ahead or file.read(_READ), b""
        if begun and frame is None:
            padded, data = data, data.lstrip(b"\0")  # frames may be padded
            if padded and not data:
                continue
        begun = True
        if not data and frame is not None:
            raise EOFError("it stops within a frame")
        if not data:
            return
        frame = frame or decompressor()
        try:
            content = frame.decompress(data)
        except error as problem:
            raise _DecompressionError(str(problem)) from None
        if frame.eof:
            ahead, frame = frame.unused_data, None
        yield content


@contextmanager
def open_utf8(path: str | Path, encoding: str = "utf-8") -> Iterator[IO[bytes]]:
    """Open a text file as `open_bytes` does, as UTF-8 whatever its encoding is.

    A sequence of bytes that is invalid in another `encoding` becomes one byte that is invalid in UTF-8.
    """
    with open_bytes(path) as file:
        yield file if encoding == "utf-8" else io.BufferedReader(_Stream(_transcoded(file, encoding), file), _READ)


def _transcoded(file: IO[bytes], encoding: str) -> Iterator[bytes]:
    decoder, data = codecs.getincrementaldecoder(encoding)(_INVALID), b" "
    while data:
        data = file.read(_READ)
        yield decoder.decode(data, final=not data).encode("utf-8", "surrogateescape")


_INVALID = "mypt.invalid"
codecs.register_error(_INVALID, lambda error: ("\udcff", error.end))


_SAMPLE = 1 << 16  # bytes read at a time
_PRINTS = {".gz": "gzip -dc", ".zst": "zstd -dc", ".xz": "xz -dc", ".bz2": "bzip2 -dc"}
_ICONV = {"mac-roman": "MACINTOSH", "utf-8": "UTF-8"}  # where Python's name is not iconv's in capitals


def guess_encoding(path: str) -> str | None:
    """The encoding that a text file seems to have, by iconv's name; None if it is damaged UTF-8, or nothing fits."""
    sample = _sample(path)
    text, invalid = _decoded(sample)
    if sum(c > "\x7f" for c in text) > 2 * invalid:
        return None
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    if best is None or best.encoding in ("utf_8", "ascii"):
        return None
    name = codecs.lookup(best.encoding).name
    return _ICONV.get(name, name.upper().replace("EUC_", "EUC-"))


def invalid_bytes(data: bytes) -> int:
    """The number of bytes that are not UTF-8; a character that is cut short at the end counts as valid."""
    return _decoded(data)[1]


def _decoded(data: bytes) -> tuple[str, int]:
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data)
    return text, sum("\udc80" <= c <= "\udcff" for c in text)


def _sample(path: str) -> bytes:
    """The lines beyond ASCII in the first part of a file that is not UTF-8, and in the part after it."""
    decoder, held = codecs.getincrementaldecoder("utf-8")(), b""
    with open_bytes(path) as file:
        while data := file.read(_SAMPLE):
            try:
                decoder.decode(data)
            except UnicodeDecodeError:
                lines = (held + data + (file.read(_SAMPLE) or b"")).split(b"\n")
                return b"\n".join(line for line in lines if not line.isascii())
            held = data[-4:]  # perhaps the beginning of a character
    return held


def conversion(path: str, encoding: str) -> str:
    """A shell command that writes a text file as UTF-8 next to the old one."""
    file, suffix = Path(path), compression(path)
    plain = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    new = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
    if suffix:
        return f"{_PRINTS[suffix]} {shlex.quote(path)} | iconv -f {encoding} -t UTF-8 > {new}"
    # A name with a leading dash would be an option.
    name = f"./{path}" if path.startswith("-") else path
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {new}"
