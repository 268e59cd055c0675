"""Find the shards of a dataset that the original MyPT or nanoGPT wrote, by the names of its files."""

import re
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from mypt.errors import DataError
from mypt.json_files import Count, check
from mypt.legacy.tokenizer import TOKENIZER_STATE_NAME

_SHARD = re.compile(r"shard_(\d+)\.bin")
_TODAYS_KEYS = {"format", "splits", "tokenizer_hash"}


class OriginalShards(NamedTuple):
    """The shards of such a directory. Neither program records checksums, documents or bytes of text."""

    program: str  # "the original MyPT" or "nanoGPT"
    files: dict[str, list[Path]]  # of each split, in stream order; a flat directory is all train
    dtype: str | None  # as recorded
    tokens: int | None  # as counted in the metadata


class _Metadata(TypedDict, total=False):
    """The original's `dataset_metadata.json`, as far as it is used."""

    dtype: str
    total_tokens: Count
    total_tokens_written: Count


def find_shards(directory: Path, metadata: dict[str, Any] | None = None) -> OriginalShards | None:
    """The shards in `directory`; None if there are none, or if its metadata (what the file holds) is of today's format.

    Raises DataError if the metadata is damaged.
    """
    metadata = metadata or {}
    if not _TODAYS_KEYS.isdisjoint(metadata):
        return None
    check(metadata, _Metadata, directory / "dataset_metadata.json", DataError, "restore it, or prepare the data again")
    if (directory / "train.bin").is_file():
        program, names = "nanoGPT", {"train": ["train.bin"], "val": ["val.bin"]}
        files = {split: [directory / name for name in names[split] if (directory / name).is_file()] for split in names}
    elif metadata or (directory / TOKENIZER_STATE_NAME).is_file():
        program, is_flat = "the original MyPT", not (directory / "train").is_dir()
        files = {"train": _numbered(directory if is_flat else directory / "train")}
        files["val"] = [] if is_flat else _numbered(directory / "val")
    else:
        return None
    tokens = metadata.get("total_tokens", metadata.get("total_tokens_written"))
    return OriginalShards(program, files, metadata.get("dtype"), tokens) if files["train"] else None


def _numbered(folder: Path) -> list[Path]:
    numbers = {path: _SHARD.fullmatch(path.name) for path in folder.glob("shard_*.bin")}
    kept = {path: int(match[1]) for path, match in numbers.items() if match and path.stat().st_size}
    return sorted(kept, key=kept.get)
