"""What a dataset directory held before, and how all that is new in it appears in one step."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mypt.errors import DataError, MyPTError
from mypt.shards.format import METADATA_NAME, SPLITS, Manifest, read_manifest, write_manifest
from mypt.shards.legacy import is_foreign
from mypt.shards.settings import PrepareSettings

STAGING = ".preparing"  # inside the dataset directory, so that finished files are moved by a rename
UNITS = "units"  # inside the staging directory: what goes on after a kill, and is not published
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: how numpy reports what did not fit


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the directory `out` (made if it is missing) for one command; DataError if another process writes in it."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: nothing is lost but this protection
        yield
        return
    held = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(f"another process is writing {out}; wait until it is done") from None
            # A file system without locks.
        yield
    finally:
        os.close(held)


def previous_manifest(
    out: Path, settings: PrepareSettings, same_sources: Callable[[list[dict]], bool]
) -> Manifest | None:
    """The manifest of what `out` holds if that is whole and what is asked for; an error if it is something else."""
    if not (out / METADATA_NAME).exists():
        if is_foreign(out):
            raise DataError(f"{out} holds shards of the original MyPT's or of nanoGPT's; choose another --out")
        return None
    try:
        manifest = read_manifest(out)
    except MyPTError as error:
        raise DataError(f"{out} already holds a dataset ({error}); choose another --out or remove it") from None
    asked = settings.deciding()
    names = [name for name in asked | manifest.settings if asked.get(name) != manifest.settings.get(name)]
    differences = [f"{name} {manifest.settings.get(name)} -> {asked.get(name)}" for name in names]
    if manifest.history:
        differences.append(f"{manifest.history[-1]['did']} changed it since")
    if not same_sources(manifest.sources):
        differences.append("other source text")
    if differences:
        raise DataError(
            f"{out} already holds another dataset ({'; '.join(differences)}); choose another --out or remove it"
        )
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    sizes = [(out / shard.file, shard.tokens * manifest.numpy_dtype.itemsize) for shard in shards]
    whole = all(path.is_file() and path.stat().st_size == size for path, size in sizes)
    return manifest if whole and (out / "tokenizer.json").is_file() else None


def publish(out: Path, manifest: Manifest | None = None) -> None:
    """Replace what `out` held by the staged files; without a manifest: finish a publication that was interrupted.

    All that needs space is written before the old metadata goes, and the new metadata comes last.
    """
    staging = out / STAGING
    if manifest is None:
        if not (staging / METADATA_NAME).is_file():
            return
        manifest = read_manifest(staging)
    else:
        write_manifest(staging, manifest)
    (out / METADATA_NAME).unlink(missing_ok=True)
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
        for path in (out / split).glob("shard_*.bin*"):
            name = f"{split}/{path.name}"
            if name not in listed or (staging / name).exists():
                path.unlink()
    for path in sorted(staging.rglob("*")):
        name = path.relative_to(staging)
        if path.is_file() and name.parts[0] != UNITS and path.name != METADATA_NAME and path.suffix != ".tmp":
            os.replace(path, out / name)
    os.replace(staging / METADATA_NAME, out / METADATA_NAME)
    shutil.rmtree(staging)


def write_error(error: OSError, out: Path, kept: str) -> DataError:
    """What to tell the user when `out` cannot be written; `kept` says what is finished."""
    if error.errno not in _DISK_FULL:
        return DataError(f"cannot write {out}: {error.strerror}; check its permissions or choose another --out")
    free, reason = shutil.disk_usage(out).free, error.strerror or error
    return DataError(
        f"no room to write {out} ({reason}, {free / 1e6:,.1f} MB are free): {kept}; make room and run the same "
        "command again, or choose another --out"
    )
