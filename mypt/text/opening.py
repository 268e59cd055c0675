"""Files as streams of bytes, decompressed where their names say so."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mypt.errors import DataError

COMPRESSED = (".gz", ".zst")  # read as they are
ARCHIVES = (".zip", ".bz2", ".xz", ".7z", ".tar", ".tgz", ".rar")  # refused

_READ = 1 << 17  # compressed bytes at a time


def compression(path: str | Path) -> str:
    """.gz, .zst, or nothing."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in COMPRESSED else ""


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed if it is a .gz or .zst; what goes wrong with it is a DataError."""
    suffix = compression(path)
    try:
        if suffix == ".zst":
            with open(path, "rb", buffering=0) as file:
                yield io.BufferedReader(_ZstdFrames(file), 1 << 20)
        else:
            with gzip.open(path, "rb") if suffix == ".gz" else open(path, "rb", buffering=0) as file:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        kind = "zstd" if suffix == ".zst" else "gzip"
        raise DataError(f"{path} is not a whole {kind} file ({error}); download or compress it again") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the file and its permissions") from None


class _ZstdFrames(io.RawIOBase):
    """The content of all frames of a .zst file; a file that stops within a frame raises EOFError."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{file.name} needs zstandard: run `pip install mypt[zstd]`, or decompress it") from None
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._file, self._frame, self._content, self._ahead = file, None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._content and self._advance():
            pass
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count

    def _advance(self) -> bool:
        """Decompress some more; False at the end of the file."""
        data = self._ahead or self._file.read(_READ)
        self._ahead = b""
        if not data:
            if self._frame is not None:
                raise EOFError("it stops within a frame")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            self._content = memoryview(self._frame.decompress(data))
        except self._error as error:
            raise EOFError(str(error)) from None
        if self._frame.eof:
            self._ahead, self._frame = self._frame.unused_data, None
        return True
