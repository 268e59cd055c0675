"""Report on a dataset directory from its metadata and the sizes of its files.

Tokens are read only where the metadata does not count them: directories of the original MyPT and of nanoGPT.
"""

from pathlib import Path

from mypt.folders import LOCK_NAME
from mypt.shards.format import FORMAT_NAME, FORMAT_VERSION, Manifest
from mypt.shards.open_dataset import open_dataset
from mypt.shards.scan import shard_problem


def inspect_dataset(path: Path) -> dict:
    """A JSON-ready report: splits, sources, tokenizer, settings, counted reasons, history, files and what is wrong.

    Raises DataError if the metadata is missing or damaged.
    """
    manifest = open_dataset(path)
    splits = {
        name: {
            "tokens": split.tokens,
            "documents": split.documents,
            "bytes": split.bytes,
            "bytes_per_token": split.bytes / split.tokens if split.tokens else None,
            "shards": len(split.shards),
            "fingerprint": manifest.fingerprint(name),
        }
        for name, split in manifest.splits.items()
    }
    problems = [
        f"{shard.file} {problem}" for shard in manifest.shards if (problem := shard_problem(path, shard, manifest))
    ]
    return {
        "kind": "dataset",
        "path": str(path),
        "format": manifest.origin or f"{FORMAT_NAME} {FORMAT_VERSION}",
        "dtype": manifest.dtype,
        "tokenizer": {
            "name": manifest.report.get("tokenizer"),
            "vocab_size": manifest.vocab_size,
            "eos_token_id": manifest.eos_token_id,
            "hash": manifest.tokenizer_hash,
        },
        "splits": splits,
        "sources": manifest.sources,
        "settings": manifest.settings,
        "report": manifest.report,
        "history": manifest.history,
        "files": [
            {"name": file.relative_to(path).as_posix(), "bytes": file.stat().st_size}
            for file in sorted(path.rglob("*"))
            if file.is_file() and file.name != LOCK_NAME
        ],
        "problems": problems,
    }


def short_description(path: Path) -> dict[str, str]:
    """Describe a dataset directory by its metadata: {"train": ..., "val": ..., "tokenizer": ...}."""
    manifest = open_dataset(path)
    words = {
        name: f"{split.tokens:,} tokens, {split.documents:,} documents, {len(split.shards):,} shards"
        for name, split in manifest.splits.items()
    }
    return words | {"tokenizer": f"{manifest.report.get('tokenizer')}, {manifest.vocab_size:,} ids, {manifest.dtype}"}


def summary(path: str | Path, manifest: Manifest) -> dict:
    """A JSON-ready account of a dataset that a command has just made."""
    counts = ("documents", "tokens", "bytes")
    return {
        "path": str(path),
        "dtype": manifest.dtype,
        "vocab_size": manifest.vocab_size,
        "splits": {
            name: {"shards": len(split.shards), **{count: getattr(split, count) for count in counts}}
            for name, split in manifest.splits.items()
        },
        "sources": manifest.sources,
        "history": manifest.history,
    }
