"""What is in a dataset directory, from its metadata and the sizes of its files; no token is read."""

from pathlib import Path

from mypt.shards.format import Manifest, Shard, read_manifest


def inspect_dataset(path: Path) -> dict:
    """A JSON-ready report: splits, sources, tokenizer, settings, counted reasons, files and what is wrong with them.

    Raises DataError if the metadata is missing or damaged.
    """
    manifest = read_manifest(path)
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
    problems = [_fault(path, shard, manifest) for split in manifest.splits.values() for shard in split.shards]
    return {
        "kind": "dataset",
        "path": str(path),
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
        "files": [
            {"name": file.relative_to(path).as_posix(), "bytes": file.stat().st_size}
            for file in sorted(path.rglob("*"))
            if file.is_file()
        ],
        "problems": [problem for problem in problems if problem],
    }


def _fault(path: Path, shard: Shard, manifest: Manifest) -> str | None:
    file = path / shard.file
    if not file.is_file():
        return f"{shard.file} is missing"
    size, expected = file.stat().st_size, shard.tokens * manifest.numpy_dtype.itemsize
    if size != expected:
        return f"{shard.file} holds {size:,} bytes, the metadata says {expected:,}"
    return None
