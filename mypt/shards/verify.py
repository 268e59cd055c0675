"""Check every shard of a dataset directory against its metadata."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from mypt.errors import CheckFailed, DataError, MyPTError
from mypt.shards.format import METADATA_NAME, SPLITS, Manifest, Shard
from mypt.shards.open_dataset import open_dataset
from mypt.shards.publishing import APPENDING, STAGING, own_tokenizer, shard_files
from mypt.shards.scan import Advance, Contents, scan_shard, shard_problem
from mypt.terminal import bytes_bar


def verify_dataset(directory: str | Path, *, workers: int = 1) -> dict:
    """A JSON-ready report: what each split holds, what is wrong (`problems`) and what should be known (`notes`).

    Reads every shard: presence, size, xxh3-128, smallest and largest id, ids inside the vocabulary, documents; then
    looks for shards that the metadata does not list and for the tokenizer. `workers` threads read shards side by side.
    Memory: 4 MiB a worker. Without a problem the metadata's time is set to the beginning of the
    check, so that a later run knows shards older than that to be as listed.
    Raises DataError if `directory` is no dataset, CheckFailed if its metadata is damaged.
    """
    directory, began = Path(directory), time.time_ns()
    try:
        manifest = open_dataset(directory)
    except DataError as error:
        if (directory / METADATA_NAME).is_file():
            raise CheckFailed(str(error)) from None
        raise
    notes, problems, seconds = [], [], 0.0
    if manifest.origin:
        notes.append(
            f"a dataset of {manifest.origin}, which keeps no checksums: its sizes and ids were checked, nothing else "
            f"can be; mypt convert {directory} --out DIR records them"
        )
    else:
        started = time.perf_counter()
        with bytes_bar(f"reading {directory}", manifest.bytes) as bar:
            problems = _shard_problems(directory, manifest, workers, bar.update)
        seconds = time.perf_counter() - started
        problems += [*_foreign_shards(directory, manifest), *_tokenizer_problems(directory, manifest)]
        notes += _leftovers(directory)
        if not problems:
            _remember(directory / METADATA_NAME, began)
    return {
        "path": str(directory),
        "splits": {
            name: {"shards": len(split.shards), "tokens": split.tokens, "documents": split.documents}
            for name, split in manifest.splits.items()
        },
        "bytes": manifest.bytes,
        "seconds": seconds,
        "problems": problems,
        "notes": notes,
    }


def _shard_problems(directory: Path, manifest: Manifest, workers: int, advance: Advance) -> list[dict[str, str]]:
    def see(ids: np.ndarray) -> None:
        advance(ids.nbytes)

    def read(shard: Shard) -> Contents | str:
        if problem := shard_problem(directory, shard, manifest):
            return problem
        try:
            return scan_shard(directory / shard.file, manifest.numpy_dtype, manifest.eos_token_id, see)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    problems = []
    with ThreadPoolExecutor(workers) as pool:
        for split in manifest.splits.values():
            begins: bool | None = True  # whether a document begins with the shard; None after one that is damaged
            for shard, found in zip(split.shards, pool.map(read, split.shards), strict=True):
                if isinstance(found, str):
                    problem, begins = found, None
                else:
                    problem = _difference(shard, found, begins, manifest)
                    begins = found.last_id == manifest.eos_token_id
                if problem:
                    problems.append({"file": shard.file, "problem": problem})
    return problems


def _difference(shard: Shard, found: Contents, begins: bool | None, manifest: Manifest) -> str | None:
    if found.xxh3_128 != shard.xxh3_128:
        return "was changed: its checksum differs"
    if found.max_id >= manifest.vocab_size:
        return f"holds id {found.max_id}, outside the vocabulary of {manifest.vocab_size}"
    if (found.min_id, found.max_id) != (shard.min_id, shard.max_id):
        return f"holds ids from {found.min_id} to {found.max_id}, the metadata says {shard.min_id} to {shard.max_id}"
    documents = shard.documents if begins is None else found.documents(begins, manifest.eos_token_id)
    if documents != shard.documents:
        return f"holds the beginnings of {documents:,} documents, the metadata says {shard.documents:,}"
    return None


def _foreign_shards(directory: Path, manifest: Manifest) -> list[dict[str, str]]:
    found = {path.relative_to(directory).as_posix() for split in SPLITS for path in directory.glob(f"{split}/*.bin")}
    left = "the metadata does not list it: left by a command that was killed (repeat that), or put there by hand"
    return [{"file": file, "problem": left} for file in sorted(found - shard_files(manifest))]


def _tokenizer_problems(directory: Path, manifest: Manifest) -> list[dict[str, str]]:
    if not (directory / "tokenizer.json").is_file():
        return [{"file": "tokenizer.json", "problem": "is missing"}]
    try:
        own_tokenizer(directory, manifest)
    except MyPTError as error:
        return [{"file": "tokenizer.json", "problem": str(error)}]
    return []


def _leftovers(directory: Path) -> list[str]:
    names = [path.name for path in directory.iterdir() if path.name in (STAGING, APPENDING)]
    return [f"{name} belongs to a command that is still running or was killed" for name in sorted(names)]


def _remember(metadata: Path, moment: int) -> None:
    """Set the file's time, in ns, unless it was written since; where that is not allowed it costs time later.

    A time in the future, of another host's clock, would hide changes that come before it.
    """
    with suppress(OSError):
        if not moment <= metadata.stat().st_mtime_ns <= time.time_ns():
            os.utime(metadata, ns=(moment, moment))
