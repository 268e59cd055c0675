"""Which encoding a file that is not UTF-8 may have, and the command that converts it."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from mypt.text.opening import COMPRESSED, compression, open_bytes

_SAMPLE = 1 << 16  # bytes read at a time
_PRINTS = {".gz": "gzip -dc", ".zst": "zstd -dc", ".xz": "xz -dc", ".bz2": "bzip2 -dc"}
_ICONV = {"mac-roman": "MACINTOSH", "utf-8": "UTF-8"}  # where Python's name is not iconv's in capitals


def guess_encoding(path: str) -> str | None:
    """The name for iconv of the encoding that a text file seems to have.

    None if most of its characters beyond ASCII are valid UTF-8 (it is damaged), or if nothing fits.
    """
    sample = _sample(path)
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    invalid = sum("\udc80" <= c <= "\udcff" for c in text)
    valid = sum(c > "\x7f" for c in text) - invalid
    if valid > invalid:
        return None
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    if best is None or best.encoding in ("utf_8", "ascii"):
        return None
    name = codecs.lookup(best.encoding).name
    return _ICONV.get(name, name.upper().replace("EUC_", "EUC-"))


def _sample(path: str) -> bytes:
    """The lines beyond ASCII in the first part of a file that is not UTF-8, and in what follows it."""
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
    """A shell command that writes a text file as UTF-8 beside the old one."""
    file, suffix = Path(path), compression(path)
    plain = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    new = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
    if suffix:
        return f"{_PRINTS[suffix]} {shlex.quote(path)} | iconv -f {encoding} -t UTF-8 > {new}"
    # A name with a leading dash would be an option.
    name = f"./{path}" if path.startswith("-") else path
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {new}"
