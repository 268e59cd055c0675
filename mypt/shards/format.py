"""The dataset directory on disk: `dataset_metadata.json` and the shards that it lists (docs/shard_format.md)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.files import replace_text

METADATA_NAME = "dataset_metadata.json"
FORMAT_NAME = "mypt-shards"
FORMAT_VERSION = 1
SPLITS = ("train", "val")
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass
class Shard:
    """One file of raw little-endian token ids."""

    file: str  # relative to the dataset directory: train/shard_00000.bin
    tokens: int
    documents: int
    bytes: int  # UTF-8 bytes of the text behind the tokens
    min_id: int
    max_id: int
    xxh3_128: str  # of the file's bytes, 32 hex digits


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


@dataclass
class Manifest:
    """What a dataset directory holds: the contents of `dataset_metadata.json`."""

    dtype: str  # uint16 or uint32
    vocab_size: int  # the tokenizer's; every id is below it
    eos_token_id: int
    tokenizer_hash: str  # `mypt.tokenization.load.tokenizer_hash`
    splits: dict[str, Split]
    sources: list[dict] = field(default_factory=list)  # name, documents, bytes, tokens of each source
    settings: dict = field(default_factory=dict)  # how the text was prepared
    report: dict = field(default_factory=dict)  # counted reasons for what was dropped or changed
    history: list[dict] = field(default_factory=list)  # what made it of other directories: convert, subset, append

    @property
    def numpy_dtype(self) -> np.dtype:
        return DTYPES[self.dtype]

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
        """Of the first 0, 1, 2, ... shards."""
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


def read_manifest(directory: str | Path, dtype: str | None = None) -> Manifest:
    """Read a dataset directory's metadata.

    A directory of the original MyPT's or of nanoGPT's (mypt/shards/legacy.py) records neither checksums nor, as a rule,
    its dtype: its shards are read once, as `dtype` or else uint32. Elsewhere `dtype` decides nothing.
    Raises DataError if the directory, the metadata or a field of it is missing or damaged.
    """
    directory = Path(directory)
    path = directory / METADATA_NAME
    if not directory.is_dir():
        raise DataError(f"dataset directory {directory} does not exist; make it with: mypt prepare --out {directory}")
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if content is None or (isinstance(content, dict) and "format" not in content):
            from mypt.shards.legacy import read_foreign

            if manifest := read_foreign(directory, content or {}, dtype):
                return manifest
        if content is not None:
            return _parse(path, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); prepare the data again") from None
    raise DataError(
        f"{directory} holds no {METADATA_NAME}: it is no dataset directory, or its preparation did not finish; "
        f"run `mypt prepare --out {directory}` (again)"
    )


def _parse(path: Path, content: dict) -> Manifest:
    if (content["format"], content["version"]) != (FORMAT_NAME, FORMAT_VERSION):
        raise DataError(
            f"{path} is {content['format']} version {content['version']}; "
            f"this mypt reads {FORMAT_NAME} version {FORMAT_VERSION}"
        )
    splits = {name: Split([Shard(**shard) for shard in split["shards"]]) for name, split in content["splits"].items()}
    names = ("dtype", "vocab_size", "eos_token_id", "tokenizer_hash", "sources", "settings", "report")
    fields = {name: content[name] for name in names}
    manifest = Manifest(splits=splits, history=content.get("history", []), **fields)
    DTYPES[manifest.dtype], splits["train"]
    _check_paths(path, manifest)
    return manifest


def _check_paths(path: Path, manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        for shard in split.shards:
            parts = Path(shard.file).parts
            if len(parts) != 2 or parts[0] != name or name != Path(name).name or ".." in parts:
                raise DataError(f"{path} names the shard {shard.file!r}, which is outside {name}/; refusing to read it")
