"""Checksums of a checkpoint's weights and state: recorded when it is saved, compared before any of it is used."""

import hashlib
import json
import string
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mypt.errors import CheckpointError
from mypt.files import replace_text

CHECKSUMS_NAME = "checksums.json"
# Weights and state. Configs, tokenizer files, code and cards are left out: people edit them.
_RECORDED = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.distcp", ".metadata", "latest",
    "trainer_state.json",
)  # fmt: skip


def write_checksums(folder: Path) -> None:
    """Record size and xxh3-128 of every file of weights or state below `folder`. Raises OSError."""
    paths = {path for pattern in _RECORDED for path in folder.rglob(pattern) if path.is_file()}
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3_128": _digest(path)}
        for path in sorted(paths)
    }
    replace_text(folder / CHECKSUMS_NAME, json.dumps({"files": files}, indent=1))


def checksums_of(folder: Path, names: Iterable[str]) -> str | None:
    """The content of checksums.json for those of `names` that it records; None if it records none of them.

    For a folder to which these files are copied. Raises CheckpointError as `read_checksums`.
    """
    recorded = read_checksums(folder) or {}
    kept = {name: recorded[name] for name in names if name in recorded}
    return json.dumps({"files": kept}, indent=1) if kept else None


def read_checksums(folder: Path) -> dict[str, dict] | None:
    """{file: {"bytes", "xxh3_128"}}, names relative to `folder`; None if no checksums were recorded.

    Raises CheckpointError if the file is damaged or names files outside of the folder.
    """
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return None
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not files or not all(_is_entry(name, entry) for name, entry in files.items()):
            raise ValueError("no checksums")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}); restore it, or delete it to use the files as they are"
        ) from None
    return files


def changed_file(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """The first of the recorded files that is missing or not what was saved, and why; None if there is none.

    names: check these alone, and take one that is not recorded for a fault. Nothing is checked without checksums.json.
    Raises CheckpointError as `read_checksums`, OSError for a file that cannot be read.
    """
    recorded = read_checksums(folder)
    if recorded is None:
        return None
    for name in recorded if names is None else names:
        path, entry = folder / name, recorded.get(name)
        if entry is None:
            return f"{name} was not part of the save ({CHECKSUMS_NAME} does not name it)"
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} was changed: it has {size:,} bytes, {entry['bytes']:,} were saved"
        if _digest(path) != entry["xxh3_128"]:
            return f"{name} was changed: its checksum differs"
    return None


def require_unchanged(folder: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError if one of these weight files is not what was saved. Without checksums.json: never."""
    try:
        fault = changed_file(folder, names)
    except OSError as error:
        fault = f"a file cannot be read ({error})"
    if fault:
        raise CheckpointError(
            f"{folder}: {fault}; restore it, take another checkpoint, or delete {CHECKSUMS_NAME} there if you changed "
            "it on purpose"
        )


def _is_entry(name: str, entry: dict) -> bool:
    place, size, digest = PurePosixPath(name), entry["bytes"], entry["xxh3_128"]
    inside = "\0" not in name and not place.is_absolute() and ".." not in place.parts
    return inside and type(size) is int and len(digest) == 32 and set(digest) <= set(string.hexdigits)


def _digest(path: Path) -> str:
    import xxhash

    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
