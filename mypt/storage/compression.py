"""Zstandard for the transfer of files: packed before they are sent, unpacked when they have come."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mypt.errors import CheckpointError, MyPTError

LEVEL = 3  # zstandard's default
_CHUNK = 1 << 20


def require_zstd():
    """The package zstandard. Raises MyPTError if it is not installed."""
    try:
        import zstandard
    except ImportError as error:
        raise MyPTError('--compress zstd needs the package zstandard: pip install "mypt[zstd]"') from error
    return zstandard


@contextmanager
def compressed(content: Path | bytes) -> Iterator[Path]:
    """A temporary file with the packed content. Raises OSError for a full disk."""
    compressor = require_zstd().ZstdCompressor(level=LEVEL, threads=-1, write_checksum=True)
    with tempfile.NamedTemporaryFile(prefix="mypt-", suffix=".zst") as packed:
        if isinstance(content, bytes):
            packed.write(compressor.compress(content))
        else:
            with open(content, "rb") as source:
                compressor.copy_stream(source, packed, read_size=_CHUNK, write_size=_CHUNK)
        packed.flush()
        yield Path(packed.name)


def decompress(packed: Path, path: Path, size: int, name: object) -> None:
    """Unpack a file that must come to `size` bytes. Raises CheckpointError for another content, which names `name`."""
    zstandard = require_zstd()
    written = 0
    try:
        with open(packed, "rb") as source, open(path, "wb") as target:
            for chunk in zstandard.ZstdDecompressor().read_to_iter(source, read_size=_CHUNK):
                written += len(chunk)
                if written > size:  # a small file may unpack to more than any disk holds
                    break
                target.write(chunk)
    except zstandard.ZstdError as error:
        raise CheckpointError(f"{name} cannot be unpacked ({error}); upload it again") from None
    if written != size:
        raise CheckpointError(f"{name} does not unpack to {size:,} bytes; upload it again")
