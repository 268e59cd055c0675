"""The one way into a dataset directory of any program: today's format, the original MyPT's or nanoGPT's.

The last two record no checksums, and their dtype is an agreement: uint32 for the original, uint16 for nanoGPT. Their
shards are read once, whole, for the manifest, which `mypt convert` spares every later run.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.legacy.shards import find_shards
from mypt.legacy.tokenizer import find_state
from mypt.shards.format import DTYPES, SPLITS, Manifest, Shard, Split, parse_manifest, read_metadata
from mypt.shards.scan import Advance, Contents, scan_shard
from mypt.terminal import bytes_bar
from mypt.tokenization.load import largest_id, load_tokenizer, tokenizer_hash
from mypt.tokenization.token_bytes import TextOf


def open_dataset(directory: str | Path, dtype: str | None = None, tokenizer: str | None = None) -> Manifest:
    """The manifest of a dataset directory: as recorded, or made by reading the shards that another program wrote.

    For those alone count `dtype` (else that of their metadata, else uint32) and `tokenizer` (a name, as load_tokenizer
    takes it, else the directory's own). Raises DataError if the directory or its metadata is missing or damaged, for
    ids outside the vocabulary, and for files that are no multiple of the dtype's size.
    """
    directory = Path(directory)
    metadata = read_metadata(directory)
    original = find_shards(directory, metadata)
    if original is None:
        return parse_manifest(directory, metadata)
    name = str(dtype or original.dtype or "uint32")
    if name not in DTYPES:
        raise DataError(f"{directory} was asked to be read as {name}; a dataset is {' or '.join(DTYPES)}")
    stamps = tuple(
        (split, file.relative_to(directory).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for split, files in original.files.items()
        for file in files
    )
    manifest = copy.deepcopy(_read(directory, original.program, name, tokenizer, stamps))
    if original.tokens is not None:
        manifest.report["total_tokens_in_metadata"] = original.tokens
    return manifest


@lru_cache(maxsize=64)  # by size and time of the files: within a process they are read once
def _read(directory: Path, program: str, dtype: str, name: str | None, stamps: tuple) -> Manifest:
    state = None if name else find_state(directory)
    tokenizer = load_tokenizer(name or directory)
    limit = state.size if state else largest_id(tokenizer) + 1
    text, eos = TextOf(tokenizer), tokenizer.eos_token_id
    splits = {split: Split() for split in SPLITS}
    begins = dict.fromkeys(SPLITS, True)  # whether a document begins with the next shard
    with bytes_bar(f"reading {directory}", sum(size for _, _, size, _ in stamps)) as bar:
        for split, file, _, _ in stamps:
            found, text_bytes = _read_shard(directory, file, dtype, limit, text, eos, bar.update)
            documents = found.documents(begins[split], eos)
            begins[split] = found.last_id == eos
            shard = Shard(file, found.tokens, documents, text_bytes, found.min_id, found.max_id, found.xxh3_128)
            splits[split].shards.append(shard)
    return Manifest(
        dtype=dtype,
        vocab_size=largest_id(tokenizer) + 1,
        eos_token_id=eos,
        tokenizer_hash=tokenizer_hash(tokenizer),
        splits=splits,
        report={"tokenizer": state.kind if state else name or str(directory), "origin": program},
    )


def _read_shard(
    directory: Path, file: str, dtype: str, limit: int, text: TextOf, eos: int, advance: Advance
) -> tuple[Contents, int]:
    """Read a shard; returns its contents and the bytes of its text. Raises DataError for an id of `limit` or above."""
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
