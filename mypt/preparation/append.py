"""Add shards to a dataset directory: under new numbers, the metadata last, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.files import flush_names, xxh3_128
from mypt.folders import only_writer
from mypt.shards.format import METADATA_NAME, Manifest, Split, read_manifest, write_manifest
from mypt.shards.open_dataset import open_dataset
from mypt.shards.publishing import APPENDING, fingerprints, shard_files
from mypt.shards.scan import changed, checked_chunks, require_size, shard_problem
from mypt.shards.writer import ShardWriter, write_stream
from mypt.terminal import bytes_bar
from mypt.tokenization.load import require_same_tokenizer


def append_dataset(
    directory: str | Path,
    other: str | Path,
    *,
    say: Callable[[str], object] = lambda line: None,
) -> Manifest:
    """Copy the shards of the dataset `other` after those of `directory` and return the new manifest.

    Every id and checksum of `other` is checked on the way. Killed at any moment, `directory` is as it was, or
    complete, and the same call finishes or finds it done. Raises DataError for damage or dtypes that do not fit,
    TokenizerError for another tokenizer.
    """
    directory, other = Path(directory), Path(other)
    if directory.resolve() == other.resolve():
        raise DataError(f"{directory} cannot be added to itself; to see data more often, train longer")
    with only_appender(directory):
        manifest, added = read_manifest(directory), open_dataset(other)
        require_same_tokenizer(str(directory), manifest.tokenizer_hash, str(other), added.tokenizer_hash)
        entry = {"did": "append", "of": str(other), "fingerprints": fingerprints(added)}
        if any(done.get("fingerprints") == entry["fingerprints"] for done in appended(manifest)):
            say(f"{directory} already holds {other}")
            return manifest
        staging = directory / APPENDING / "shards"
        with bytes_bar("copying", added.bytes) as bar:
            splits = {}
            for name, split in added.splits.items():
                writer = ShardWriter(staging, name, manifest.dtype, max((s.tokens for s in split.shards), default=1))
                chunks = checked_chunks(other, added, name, bar.update)
                write_stream(chunks, writer, added.eos_token_id, _byte_shares(split))
                splits[name] = writer.close()
                if splits[name].documents != split.documents:
                    raise DataError(
                        f"{other}: {name} has {splits[name].documents:,} documents, its metadata says "
                        f"{split.documents:,}; run mypt verify {other}"
                    )
        return append_shards(directory, staging, replace(added, splits=splits), entry)


def append_shards(directory: Path, staged: Path, added: Manifest, entry: dict) -> Manifest:
    """Move the shards in `staged`, which `added` lists, after those of `directory`; returns the new manifest.

    The last step of every append, inside `only_appender`. `staged` is on the file system of `directory`, its shards
    have its dtype and ids of its tokenizer. `entry` becomes the last of the manifest's `history`. Where a split ends
    inside a document (its tail went to val), an end-of-text id goes between that and what is added.
    Raises DataError for a directory that is damaged or holds a shard in the way that its metadata does not list.
    """
    manifest = read_manifest(directory)
    _require_whole(directory, manifest)
    splits, moves = {}, []
    for name in dict.fromkeys([*manifest.splits, *added.splits]):
        held, new = (m.splits.get(name, Split()).shards for m in (manifest, added))
        if held and new and _last_id(directory / held[-1].file, manifest) != manifest.eos_token_id:
            new = [_lone_eos(staged, name, manifest), *new]
        first = 1 + max((_number(shard.file) for shard in held), default=-1)
        moved = [replace(shard, file=f"{name}/shard_{first + index:05d}.bin") for index, shard in enumerate(new)]
        moves += zip(new, moved, strict=True)
        splits[name] = Split([*held, *moved])
    taken = [target.file for _, target in moves if (directory / target.file).exists()]
    if taken:
        raise DataError(f"{directory} holds {taken[0]}, which its metadata does not list; move that file away first")
    entry = entry | {"shards": [target.file for _, target in moves]}
    plan = replace(
        manifest, splits=splits, sources=manifest.sources + added.sources, history=[*manifest.history, entry]
    )
    (directory / APPENDING).mkdir(exist_ok=True)
    write_manifest(directory / APPENDING, plan)
    flush_names(directory / APPENDING)
    for source, target in moves:
        (directory / target.file).parent.mkdir(exist_ok=True)
        os.replace(staged / source.file, directory / target.file)
    for folder in {(directory / target.file).parent for _, target in moves}:
        flush_names(folder)
    os.replace(directory / APPENDING / METADATA_NAME, directory / METADATA_NAME)
    flush_names(directory)
    return plan


@contextmanager
def only_appender(directory: Path) -> Iterator[None]:
    """Hold `directory` for one append; begins by taking back what one that was killed left, ends by tidying up.

    Raises FolderInUse if another process is writing in it.
    """
    if not directory.is_dir():
        read_manifest(directory)  # raises what is wrong
    with only_writer(directory):
        take_back(directory)
        try:
            yield
        finally:
            take_back(directory)


def appended(manifest: Manifest) -> list[dict]:
    """The entries of `history` for what was appended and is there as a whole: of a subset, what came after it."""
    entries: list[dict] = []
    for entry in manifest.history:
        entries = [] if entry["did"] == "subset" else [*entries, entry]
    return [entry for entry in entries if entry["did"] == "append"]


def take_back(directory: Path) -> None:
    """Remove what an unfinished append left: the shards that it had planned and the metadata does not list."""
    folder = directory / APPENDING
    if (folder / METADATA_NAME).is_file():
        planned, listed = read_manifest(folder), shard_files(read_manifest(directory))
        for shard in planned.shards:
            # Moved whole or not at all: any other file of that name is not of this append.
            if shard.file not in listed and shard_problem(directory, shard, planned) is None:
                (directory / shard.file).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _require_whole(directory: Path, manifest: Manifest) -> None:
    """New metadata vouches for all that it lists: shards that are newer than the old must have its checksums.

    The time alone proves nothing: it may lie in the future, or come from the clock of another host.
    """
    written = (directory / METADATA_NAME).stat().st_mtime_ns
    for shard in manifest.shards:
        require_size(directory, shard, manifest)
        file = directory / shard.file
        if file.stat().st_mtime_ns > written and xxh3_128(file) != shard.xxh3_128:
            raise changed(directory, shard)


def _number(file: str) -> int:
    digits = Path(file).stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _last_id(path: Path, manifest: Manifest) -> int:
    size = manifest.numpy_dtype.itemsize
    return int(np.fromfile(path, manifest.numpy_dtype, offset=path.stat().st_size - size)[0])


def _lone_eos(staged: Path, split: str, manifest: Manifest):
    writer = ShardWriter(staged, split, manifest.dtype, first=99_999)
    writer.write(np.array([manifest.eos_token_id]), [1], [0], continued=True)
    [shard] = writer.close().shards
    return shard


def _byte_shares(split: Split):
    """The bytes of text in pieces of a stream of which only the sum is known: shared out in proportion to the ids."""
    place = 0

    def share(ids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        nonlocal place
        ends = place + np.concatenate(([0], np.cumsum(tokens)))
        place = int(ends[-1])
        return np.diff([split.bytes * int(end) // split.tokens for end in ends])

    return share
