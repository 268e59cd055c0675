"""Read and write the metadata of a dataset directory, `dataset_metadata.json` (docs/shard_format.md)."""

import json
import math
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.files import replace_text
from mypt.json_files import Count, PartOf, Positive, Rule, Wrong, as_kind, check, find_json, found, is_file_name
from mypt.legacy.shards import find_shards
from mypt.shards.settings import PrepareSettings

METADATA_NAME = "dataset_metadata.json"
FORMAT_NAME = "mypt-shards"
FORMAT_VERSION = 1
SPLITS = ("train", "val")
_ADVICE = "restore it, or prepare the data again"
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
Hash = Annotated[str, Rule(re.compile(r"[0-9a-f]{32}").fullmatch, "32 hex digits")]


@dataclass
class Shard:
    """One file of raw little-endian token ids."""

    file: str  # relative to the dataset directory: train/shard_00000.bin
    tokens: Positive
    documents: Count
    bytes: Count  # UTF-8 bytes of the text that the tokens encode
    min_id: Count
    max_id: Count
    xxh3_128: Hash  # of the file's bytes

    def check_fields(self) -> None:
        """Raise Wrong if they cannot be true together."""
        if self.min_id > self.max_id:
            raise Wrong(f"found {self.min_id}, more than max_id {self.max_id}", "min_id")
        if self.documents > self.tokens:
            raise Wrong(f"found {self.documents}, more than its {self.tokens} tokens", "documents")


@dataclass
class Split:
    """The shards of one split, in stream order."""

    shards: list[Shard] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


class Source(TypedDict):
    """One source by its given name, and the counts of its text in the dataset."""

    name: str
    documents: Count
    bytes: Count
    tokens: Count
    splits: NotRequired[dict[str, Count]]
    xxh3_128: NotRequired[Hash]


class CutTexts(TypedDict, total=False):
    """Where val is the tail of the text."""

    cut: list[Annotated[str, Rule(re.compile(r"[0-9a-f]{1,16}").fullmatch, "a hash in hex digits")]]


class Report(TypedDict, total=False):
    """Counts of a preparation."""

    documents: Count
    documents_read: Count
    bytes: Count
    tokens: Count
    dropped: dict[str, Count]
    skipped: dict[str, Count]
    tokenizer: str | None
    val: CutTexts


class Entry(TypedDict):
    """A command that made a dataset from others, or added to it."""

    did: str
    of: NotRequired[str]
    fingerprints: NotRequired[dict[str, Hash]]
    text: NotRequired[list[Source]]
    report: NotRequired[Report]


@dataclass
class Manifest:
    """The contents of `dataset_metadata.json`."""

    dtype: Literal["uint16", "uint32"]
    vocab_size: Positive  # the tokenizer's; every id is below it
    eos_token_id: Count
    tokenizer_hash: Annotated[str, Rule(str.isprintable, "a hash")]  # `mypt.tokenization.load.tokenizer_hash`
    splits: dict[str, Split]
    sources: list[Source] = field(default_factory=list)
    settings: Annotated[dict, PartOf(PrepareSettings)] = field(default_factory=dict)  # how the text was prepared
    report: Report = field(default_factory=dict)  # counted reasons for what was dropped or changed
    history: list[Entry] = field(default_factory=list)  # what made it of other directories: convert, subset, append

    @property
    def numpy_dtype(self) -> np.dtype:
        return DTYPES[self.dtype]

    @property
    def shards(self) -> list[Shard]:
        """The shards of every split."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def tokens(self) -> int:
        """The tokens of every split."""
        return sum(split.tokens for split in self.splits.values())

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return self.tokens * self.numpy_dtype.itemsize

    @property
    def origin(self) -> str | None:
        """The other program that wrote the dataset, whose shards were read whole for this manifest."""
        return self.report.get("origin")

    def verified(self, directory: Path) -> float:
        """The time, in ns, until which the shards were as listed: the metadata is written and verified after them."""
        return math.inf if self.origin else os.stat(directory / METADATA_NAME).st_mtime_ns

    def fingerprint(self, split: str, shards: int | None = None) -> str:
        """xxh3-128 over the dtype and every shard's token count and checksum: equal iff the token stream is equal.

        shards: of only the first so many.
        """
        return self._fingerprints(split)[-1 if shards is None else shards]

    def shards_of(self, split: str, fingerprint: str) -> int | None:
        """How many first shards of the split have this fingerprint: fewer than all if data was appended since.

        None if no number of them has: the split holds other data.
        """
        fingerprints = self._fingerprints(split)
        return fingerprints.index(fingerprint) if fingerprint in fingerprints else None

    def _fingerprints(self, split: str) -> list[str]:
        """The fingerprint of the first 0, 1, 2, ... shards."""
        digest = xxhash.xxh3_128(f"{FORMAT_NAME} {self.dtype}".encode())
        fingerprints = [digest.hexdigest()]
        for shard in self.splits[split].shards:
            digest.update(f" {shard.tokens}:{shard.xxh3_128}".encode())
            fingerprints.append(digest.hexdigest())
        return fingerprints


def dtype_for(largest_id: int) -> str:
    """The narrowest dtype that holds every id up to and including `largest_id`."""
    return "uint16" if largest_id < 2**16 else "uint32"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the metadata in one step: a reader sees the old file or the new one, never half of it."""
    content = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **asdict(manifest)}
    for name, split in manifest.splits.items():
        content["splits"][name] |= {"tokens": split.tokens, "documents": split.documents, "bytes": split.bytes}
    replace_text(directory / METADATA_NAME, json.dumps(content, indent=1, ensure_ascii=False))


def read_manifest(directory: str | Path) -> Manifest:
    """Read the metadata of a dataset directory in today's format.

    Raises DataError if the directory, the metadata or a field of it is missing or damaged, or for a dataset of the
    original MyPT's or of nanoGPT's, which `mypt.shards.open_dataset.open_dataset` reads.
    """
    directory = Path(directory)
    metadata = read_metadata(directory)
    if original := find_shards(directory, metadata):
        raise DataError(
            f"{directory} is a dataset of {original.program}; convert it first: mypt convert {directory} --out DIR"
        )
    return parse_manifest(directory, metadata)


def read_metadata(directory: Path) -> dict[str, Any] | None:
    """The object in a directory's metadata, of any program; None if there is no such file.

    Raises DataError if the directory is missing or the file is damaged.
    """
    if not directory.is_dir():
        raise DataError(f"dataset directory {directory} does not exist; make it with: mypt prepare --out {directory}")
    return find_json(directory / METADATA_NAME, dict[str, object], DataError, _ADVICE)


def parse_manifest(directory: Path, metadata: dict[str, Any] | None) -> Manifest:
    """The manifest in `read_metadata`'s object. Raises DataError if it is missing, of another format or damaged."""
    if metadata is None:
        raise DataError(
            f"{directory} holds no {METADATA_NAME}: it is no dataset directory, or its preparation did not finish; "
            f"run `mypt prepare --out {directory}` (again)"
        )
    return check(metadata, _manifest, directory / METADATA_NAME, DataError, _ADVICE)


def _manifest(content: dict[str, Any]) -> Manifest:
    """Metadata of today's format. Raises Wrong."""
    if (content.get("format"), content.get("version")) != (FORMAT_NAME, FORMAT_VERSION):
        given = f"{found(content.get('format'))} version {found(content.get('version'))}"
        raise Wrong(f"found {given}, and this mypt reads {FORMAT_NAME} version {FORMAT_VERSION}", "format")
    for name in ("sources", "settings", "report"):
        if name not in content:
            raise Wrong(f'the key "{name}" is missing')
    manifest = as_kind(content, Manifest)
    if "train" not in manifest.splits:
        raise Wrong('the key "train" is missing', "splits")
    if manifest.vocab_size > 1 << 8 * manifest.numpy_dtype.itemsize:
        raise Wrong(f"found {manifest.vocab_size}, more ids than {manifest.dtype} has", "vocab_size")
    if manifest.eos_token_id >= manifest.vocab_size:
        raise Wrong(f"found {manifest.eos_token_id}, outside the vocabulary of {manifest.vocab_size}", "eos_token_id")
    if "origin" in manifest.report:
        raise Wrong("only data of other programs has an origin, and no metadata of this format", "report", "origin")
    listed: set[str] = set()
    for name, split in manifest.splits.items():
        for index, shard in enumerate(split.shards):
            place = ("splits", name, "shards", index)
            folder, _, file = shard.file.partition("/")
            if folder != name or not (is_file_name(name) and is_file_name(file)):
                raise Wrong(f"found {found(shard.file)}, which is outside {found(name)[1:-1]}/", *place, "file")
            if shard.file in listed:
                raise Wrong(f"found {found(shard.file)} a second time", *place, "file")
            if shard.max_id >= manifest.vocab_size:
                vocabulary = f"outside the vocabulary of {manifest.vocab_size}; is {manifest.dtype} the right dtype?"
                raise Wrong(f"{shard.file} holds id {shard.max_id}, {vocabulary}", *place, "max_id")
            listed.add(shard.file)
        for count in ("tokens", "documents", "bytes"):
            total, recorded = getattr(split, count), content["splits"][name].get(count)
            if recorded is not None and recorded != total:
                raise Wrong(f"found {found(recorded)}, and its shards have {total}", "splits", name, count)
    for count in ("tokens", "documents", "bytes"):
        total = sum(getattr(split, count) for split in manifest.splits.values())
        if (counted := sum(source[count] for source in manifest.sources)) > total:
            raise Wrong(f"they have {counted} {count}, and all shards {total}", "sources")
    return manifest
