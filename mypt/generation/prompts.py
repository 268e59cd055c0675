"""Prompts from the command line, from files and from standard input."""

import sys
from pathlib import Path

from mypt.errors import MyPTError


def read_prompts(texts: list[str], files: list[str]) -> list[str]:
    """The prompts in `texts`, then one from each file; without any, the empty prompt alone.

    `-` among the texts stands for standard input. A file (and standard input) is one prompt, whatever its number of
    lines, without the line end that editors and `echo` put last. Raises MyPTError for what cannot be read as UTF-8.
    """
    prompts = [_decode(sys.stdin.buffer.read(), "standard input") if text == "-" else text for text in texts]
    for file in files:
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise MyPTError(f"prompt file {file} cannot be read ({error.strerror}); name a text file") from error
        prompts.append(_decode(data, f"prompt file {file}"))
    return prompts or [""]


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MyPTError(f"{name} is not UTF-8 (byte {error.start}); convert it") from error
    return text.replace("\r\n", "\n").removesuffix("\n")
