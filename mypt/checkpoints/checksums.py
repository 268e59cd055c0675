"""Record checksums of a checkpoint's weights and state at a save; compare them before any of it is used."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypedDict

from mypt.errors import CheckpointError
from mypt.files import replace_text, xxh3_128
from mypt.json_files import InnerPath, Recorded, Rule, find_json

CHECKSUMS_NAME = "checksums.json"
# Weights and state. Configs, tokenizer files, code and cards are left out: people edit them.
_RECORDED = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.distcp", ".metadata", "latest",
    "trainer_state.json",
)  # fmt: skip


class _Checksums(TypedDict):
    files: Annotated[dict[InnerPath, Recorded], Rule(bool, "one file or more")]


def write_checksums(folder: Path) -> None:
    """Record size and xxh3-128 of every file of weights or state below `folder`. Raises OSError."""
    paths = {path for pattern in _RECORDED for path in folder.rglob(pattern) if path.is_file()}
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3_128": xxh3_128(path)}
        for path in sorted(paths)
    }
    replace_text(folder / CHECKSUMS_NAME, json.dumps({"files": files}, indent=1))


def read_checksums(folder: Path) -> dict[str, Recorded] | None:
    """Read the record of each file, by its path in `folder`; None if nothing was recorded.

    Raises CheckpointError if checksums.json is damaged or names files outside of the folder.
    """
    advice = "restore it, or delete it to use the files as they are"
    found = find_json(folder / CHECKSUMS_NAME, _Checksums, CheckpointError, advice)
    return found["files"] if found else None


def checksums_of(folder: Path, names: Iterable[str]) -> str | None:
    """The text of checksums.json for a folder that gets copies of these files; None if none of them is recorded."""
    recorded = read_checksums(folder) or {}
    kept = {name: recorded[name] for name in names if name in recorded}
    return json.dumps({"files": kept}, indent=1) if kept else None


def changed_file(folder: Path, loaded: Iterable[str] = (), every: bool = True) -> str | None:
    """Why a file is not what was saved, of the first that is not; None if all are, or no checksums were recorded.

    loaded: names of files that will be loaded: if they are there, they have to be part of the save. every: check all
    that are recorded, not `loaded` alone.
    """
    try:
        recorded = read_checksums(folder) or {}
        for name in dict.fromkeys([*(recorded if every else ()), *loaded]) if recorded else ():
            if fault := _fault(folder / name, recorded.get(name)):
                return f"{name} {fault}"
    except CheckpointError as error:
        return str(error).removeprefix(f"{folder}/")
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    return None


def _fault(path: Path, saved: Recorded | None) -> str | None:
    if saved is None:
        return "was not part of the save" if path.exists() else None
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != saved["bytes"]:
        return f"was changed: it has {size:,} bytes, {saved['bytes']:,} were saved"
    return None if xxh3_128(path) == saved["xxh3_128"] else "was changed: its checksum differs"


def require_unchanged(folder: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError if one of these weight files is not what was saved; never without checksums.json."""
    if fault := changed_file(folder, names, every=False):
        raise CheckpointError(
            f"{folder}: {fault}; restore it or take another checkpoint; if you changed it on purpose, delete "
            f"{folder / CHECKSUMS_NAME}"
        )
