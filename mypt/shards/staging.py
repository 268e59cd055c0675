"""What a dataset directory held before, and how all that is new in it appears in one step."""

import errno
import os
import shutil
from pathlib import Path

from mypt.errors import DataError, MyPTError
from mypt.shards.format import METADATA_NAME, SPLITS, Manifest, read_manifest, write_manifest
from mypt.shards.settings import PrepareSettings

STAGING = ".preparing"  # inside the dataset directory, so that finished files are moved by a rename
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def previous_manifest(out: Path, settings: PrepareSettings, prints: list[str]) -> Manifest | None:
    """The manifest of what `out` holds if that is whole and what is asked for; an error if it is something else."""
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; give a directory")
    if not (out / METADATA_NAME).exists():
        return None
    try:
        manifest = read_manifest(out)
    except MyPTError as error:
        raise DataError(f"{out} already holds a dataset ({error}); choose another --out or remove it") from None
    asked = settings.deciding()
    names = [name for name in asked | manifest.settings if asked.get(name) != manifest.settings.get(name)]
    differences = [f"{name} {manifest.settings.get(name)} -> {asked.get(name)}" for name in names]
    if prints != [source.get("xxh3_128") for source in manifest.sources]:
        differences.append("other source text")
    if differences:
        raise DataError(
            f"{out} already holds another dataset ({'; '.join(differences)}); choose another --out or remove it"
        )
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    sizes = [(out / shard.file, shard.tokens * manifest.numpy_dtype.itemsize) for shard in shards]
    whole = all(path.is_file() and path.stat().st_size == size for path, size in sizes)
    return manifest if whole and (out / "tokenizer.json").is_file() else None


def publish(out: Path, manifest: Manifest) -> None:
    """Replace what `out` held by the staged files. All that needs space is written before the old metadata goes."""
    staging = out / STAGING
    write_manifest(staging, manifest)
    (out / METADATA_NAME).unlink(missing_ok=True)
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
        for stale in (out / split).glob("shard_*.bin*"):
            stale.unlink()
    moved = [path for path in sorted(staging.rglob("*")) if path.is_file() and path.name != METADATA_NAME]
    for path in moved:
        os.replace(path, out / path.relative_to(staging))
    os.replace(staging / METADATA_NAME, out / METADATA_NAME)
    shutil.rmtree(staging)


def write_error(error: OSError, out: Path, needed: float) -> DataError:
    """What to tell the user when `out` cannot be written, `needed` being about the bytes that it takes."""
    if error.errno not in _DISK_FULL:
        return DataError(f"cannot write {out}: {error.strerror}; check its permissions or choose another --out")
    free = shutil.disk_usage(out).free
    return DataError(
        f"no room to write {out} ({error.strerror}): about {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are "
        f"free; make room or choose another --out"
    )
