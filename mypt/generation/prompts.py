"""Prompts from the command line, from files and from standard input."""

import re
import sys
from pathlib import Path

from mypt.errors import MyPTError
from mypt.files import require_file
from mypt.json_files import parse_json


def read_prompts(texts: list[str], files: list[str]) -> list[str]:
    """The prompts in `texts`, then one from each file.

    `-` among the texts stands for standard input. A file (and standard input) is one prompt, whatever its number of
    lines, without the line end that editors and `echo` put last. Raises MyPTError for what cannot be read as UTF-8.
    """
    found = [_standard_input() if text == "-" else text + "\n" for text in texts]
    found += [read_text(file, "prompt file") for file in files]
    return [text.removesuffix("\n") for text in found]


def read_records(file: str) -> list[dict]:
    """One record with a `prompt` per line of a `.jsonl` file (`question` will do), or per line of text in any other.

    Other fields of a JSON line are kept. Empty lines hold no prompt. Raises MyPTError, naming the line, for what is no
    such record, or for a file without any.
    """
    lines = read_text(file, "prompts").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise MyPTError(f"prompts {file} holds no prompt; write one on each line")
    if not file.endswith(".jsonl"):
        return [{"prompt": line} for _, line in numbered]
    return [_record(file, number, line) for number, line in numbered]


def read_text(file: str, what: str) -> str:
    """The content of a file with `\\n` as line ends; `what` names it in the MyPTError if it is no UTF-8 text."""
    try:
        require_file(file)
        data = Path(file).read_bytes()
    except OSError as error:
        raise MyPTError(f"{what} {file} cannot be read ({error.strerror}); name a text file") from error
    return _decode(data, f"{what} {file}")


def read_template(value: str | None) -> str | None:
    """A template given as text, known by its `{question}`, or as the name of a file that holds it."""
    if value is None or "{question}" in value:
        return value and unescape(value)
    return read_text(value, "template (a text with {question} in it, or a file)").removesuffix("\n")


def unescape(text: str) -> str:
    r"""`\n`, `\t` and `\\` of a command line as line end, tab and backslash."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)


def _standard_input() -> str:
    if sys.stdin is None:
        raise MyPTError("a prompt is -, standard input, and there is none; give the text itself or --prompt-file")
    if hasattr(sys.stdin, "buffer"):
        return _decode(sys.stdin.buffer.read(), "standard input")
    return sys.stdin.read()


def _record(file: str, number: int, line: str) -> dict:
    record = parse_json(line, dict, f"prompts {file} line {number}", MyPTError, "write one object on each line")
    prompt = record.get("prompt", record.get("question"))
    if not isinstance(prompt, str):
        raise MyPTError(f'prompts {file} line {number} has no text "prompt"; write {{"prompt": "..."}} on each line')
    return record | {"prompt": prompt}


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise MyPTError(f"{name} is not UTF-8 (byte {error.start}); convert it") from error
