"""Datasets of the original MyPT and of nanoGPT, read as they are.

Neither records checksums, counts of documents or bytes of text, and the dtype is an agreement: uint32 for the original,
uint16 for nanoGPT. So they are read once, whole, when they are opened, which `mypt convert` spares every later run.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.legacy.tokenizer import STATE_NAME, find_state
from mypt.shards.format import DTYPES, SPLITS, Manifest, Shard, Split
from mypt.shards.scan import Advance, Contents, progress_bar, scan_shard
from mypt.tokenization.load import largest_id, load_tokenizer, tokenizer_hash
from mypt.tokenization.token_bytes import TextOf

_COUNTS = ("total_tokens", "total_tokens_written")
_SHARD = re.compile(r"shard_(\d+)\.bin")


def read_foreign(directory: Path, content: dict, dtype: str | None, tokenizer: str | None = None) -> Manifest | None:
    """The manifest of such a directory, made from its files; None if it is not one.

    `content` is what its `dataset_metadata.json` holds. The dtype is `dtype`, else that of the metadata, else uint32;
    the tokenizer is `tokenizer` (a name, as load_tokenizer takes it), else the directory's. Flat layout is all train.
    Raises DataError for ids outside the vocabulary and for files that are no multiple of the dtype's size.
    """
    files = _find_shards(directory, bool(content) or (directory / STATE_NAME).is_file())
    if not files:
        return None
    name = str(dtype or content.get("dtype") or "uint32")
    if name not in DTYPES:
        raise DataError(f"{directory} was asked to be read as {name}; a dataset is {' or '.join(DTYPES)}")
    stamps = tuple(
        (split, file.relative_to(directory).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for split, paths in files.items()
        for file in paths
    )
    manifest = copy.deepcopy(_read(directory, name, tokenizer, stamps))
    counted = next((content[key] for key in _COUNTS if key in content), None)
    if counted is not None:
        manifest.report["total_tokens_in_metadata"] = counted
    return manifest


def is_foreign(directory: Path) -> bool:
    """Whether it holds shards of the original's or of nanoGPT's, by the names of its files; without metadata, too."""
    is_original = (directory / STATE_NAME).is_file()
    return directory.is_dir() and bool(_find_shards(directory, is_original))


def origin(manifest: Manifest) -> str | None:
    """Whose directory it is: "the original MyPT" or "nanoGPT"; None for today's format."""
    return manifest.report.get("origin")


def _find_shards(directory: Path, is_original: bool) -> dict[str, list[Path]] | None:
    """The files of each split in stream order."""
    if (directory / "train.bin").is_file():
        return {split: [path for path in [directory / f"{split}.bin"] if path.is_file()] for split in SPLITS}
    if not is_original:
        return None
    folders = {"train": directory / "train", "val": directory / "val"}
    if not folders["train"].is_dir():
        folders = {"train": directory}
    found = {split: _numbered(folder) for split, folder in folders.items()}
    return found if found["train"] else None


def _numbered(folder: Path) -> list[Path]:
    numbers = {path: _SHARD.fullmatch(path.name) for path in folder.glob("shard_*.bin")}
    kept = {path: int(match[1]) for path, match in numbers.items() if match and path.stat().st_size}
    return sorted(kept, key=kept.get)


@lru_cache(maxsize=64)  # by size and time of the files: within a process they are read once
def _read(directory: Path, dtype: str, name: str | None, stamps: tuple) -> Manifest:
    state = None if name else find_state(directory)
    tokenizer = load_tokenizer(name or directory)
    limit = state.size if state else largest_id(tokenizer) + 1
    text, eos = TextOf(tokenizer), tokenizer.eos_token_id
    splits = {split: Split() for split in SPLITS}
    begins = dict.fromkeys(SPLITS, True)  # whether a document begins with the next shard
    with progress_bar(f"reading {directory}", sum(size for _, _, size, _ in stamps)) as bar:
        for split, file, _, _ in stamps:
            found, text_bytes = _read_shard(directory, file, dtype, limit, text, eos, bar.update)
            documents = begins[split] + found.ends - (found.last_id == eos)
            begins[split] = found.last_id == eos
            facts = (file, found.tokens, documents, text_bytes, found.min_id, found.max_id, found.xxh3_128)
            splits[split].shards.append(Shard(*facts))
    return Manifest(
        dtype=dtype,
        vocab_size=largest_id(tokenizer) + 1,
        eos_token_id=eos,
        tokenizer_hash=tokenizer_hash(tokenizer),
        splits=splits,
        report={
            "tokenizer": state.kind if state else name or str(directory),
            "origin": "nanoGPT" if (directory / "train.bin").is_file() else "the original MyPT",
        },
    )


def _read_shard(
    directory: Path, file: str, dtype: str, limit: int, text: TextOf, eos: int, advance: Advance
) -> tuple[Contents, int]:
    """What a shard holds, and the bytes of its text. Raises DataError for an id of `limit` or above."""
    path, other, text_bytes = directory / file, "uint16" if dtype == "uint32" else "uint32", 0
    hint = (
        f"if they were written as {other} (nanoGPT's are uint16), say so: data.dtype: {other} in a recipe, "
        f"or `mypt convert {directory} --dtype {other}`"
    )
    if path.stat().st_size % DTYPES[dtype].itemsize:
        raise DataError(f"{path} holds {path.stat().st_size:,} bytes, no multiple of {dtype}; {hint}")

    def see(ids: np.ndarray) -> None:
        nonlocal text_bytes
        if (largest := int(ids.max())) >= limit:
            raise DataError(f"{path} holds id {largest} as {dtype}, outside the vocabulary of {limit:,}; {hint}")
        text_bytes += int(text.sizes(ids, np.array([len(ids)]))[0])
        advance(ids.nbytes)

    return scan_shard(path, DTYPES[dtype], eos, see), text_bytes
