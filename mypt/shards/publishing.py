"""Publish all new files of a dataset directory in one step, and read what the directory held before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mypt.errors import DataError, MyPTError, TokenizerError
from mypt.files import is_disk_full
from mypt.folders import require_own
from mypt.shards.format import METADATA_NAME, SPLITS, Manifest, read_manifest, write_manifest
from mypt.shards.scan import shard_problem
from mypt.shards.settings import PrepareSettings
from mypt.tokenization.data_tokenizer import AnyTokenizer, load_data_tokenizer
from mypt.tokenization.load import largest_id, tokenizer_hash

STAGING = ".preparing"  # inside the dataset directory, so that finished files are moved by a rename
LAUNCH = "launch.json"  # there: the units are made by ranks (mypt/preparation/distributed.py)
APPENDING = ".appending"  # in the dataset directory: what `mypt append` adds, and the metadata that will list it
UNITS = "units"  # inside the staging directory: what a killed run continues from; it is not published
PREVIOUS = "previous"  # there, during a publication: the metadata of what is replaced


def require_dataset_folder(out: Path, command: str) -> None:
    """Raise DataError unless `out` is new, empty, a dataset, or holds what a killed command left on its way to one."""
    require_own(
        out, lambda folder: (folder / METADATA_NAME).exists() or (folder / STAGING).is_dir(), command, DataError
    )


def previous_manifest(
    out: Path, settings: PrepareSettings, same_sources: Callable[[list[dict]], bool]
) -> Manifest | None:
    """The manifest of what `out` holds if that is whole and what is asked for; an error if it is something else."""
    if not (out / METADATA_NAME).exists():
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
    whole = not any(shard_problem(out, shard, manifest) for shard in manifest.shards)
    return manifest if whole and (out / "tokenizer.json").is_file() else None


def publish(out: Path, manifest: Manifest | None = None) -> None:
    """Replace what `out` held by the staged files; without a manifest: finish a publication that was interrupted.

    All that needs space is written before the old metadata goes, and the new metadata comes last. Only shards that the
    old metadata lists are removed. Raises DataError for a file in the way that no metadata lists.
    """
    staging = out / STAGING
    if manifest is None:
        if not (staging / METADATA_NAME).is_file():
            return
        manifest = read_manifest(staging)
    else:
        _require_way(out, manifest)
        write_manifest(staging, manifest)
    for _, name in _staged_files(staging):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    if (out / METADATA_NAME).is_file():
        (staging / PREVIOUS).mkdir(exist_ok=True)
        os.replace(out / METADATA_NAME, staging / PREVIOUS / METADATA_NAME)
    for file in _listed(staging / PREVIOUS) - shard_files(manifest):
        (out / file).unlink(missing_ok=True)
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
    for path, name in _staged_files(staging):
        os.replace(path, out / name)
    os.replace(staging / METADATA_NAME, out / METADATA_NAME)
    shutil.rmtree(staging)


def shard_files(manifest: Manifest) -> set[str]:
    """The shards that a manifest lists: names below its directory."""
    return {shard.file for shard in manifest.shards}


def _staged_files(staging: Path) -> list[tuple[Path, Path]]:
    """The files that are published, but for the metadata: where they are, and their names below the directory."""
    files = [(path, path.relative_to(staging)) for path in sorted(staging.rglob("*")) if path.is_file()]
    left = (UNITS, METADATA_NAME, PREVIOUS)
    return [(path, name) for path, name in files if name.parts[0] not in left and path.suffix != ".tmp"]


def _require_way(out: Path, manifest: Manifest) -> None:
    """A staged file may replace one of the dataset that `out` held, and no other."""
    known = _listed(out)
    for _, name in _staged_files(out / STAGING):
        is_shard = name.as_posix() in shard_files(manifest)
        ours = name.as_posix() in known if is_shard else (out / METADATA_NAME).is_file()
        if (out / name).exists() and not ours:
            raise DataError(f"{out} holds {name}, which no metadata there lists; move that file away first")


def _listed(directory: Path) -> set[str]:
    """The shards that the metadata in a directory lists; none if there is none."""
    return shard_files(read_manifest(directory)) if (directory / METADATA_NAME).is_file() else set()


def write_error(error: OSError, out: Path, kept: str) -> DataError:
    """The error for a directory `out` that cannot be written; `kept` names what is finished."""
    if not is_disk_full(error) and error.errno != errno.EFBIG:
        return DataError(
            f"cannot write {out}: {error.strerror or error}; check its permissions or choose another --out"
        )
    free, reason = shutil.disk_usage(out).free, error.strerror or error
    return DataError(
        f"no room to write {out} ({reason}, {free / 1e6:,.1f} MB are free): {kept}; make room and run the same "
        "command again, or choose another --out"
    )


def made_before(out: Path, made: dict) -> Manifest | None:
    """The manifest of what `out` holds if its last entry of history equals `made`; None if it is new.

    To be called while `out` is held. Raises DataError if it holds anything else.
    """
    publish(out)  # what a killed call had ready
    if (out / METADATA_NAME).exists():
        manifest = read_manifest(out)
        if manifest.history and _essence(manifest.history[-1]) == _essence(made):
            return manifest
        raise DataError(f"{out} already holds another dataset; choose another --out or remove it")
    if (out / STAGING / UNITS).is_dir():
        raise DataError(f"{out} holds an unfinished preparation; repeat that command, or choose another --out")
    return None


def _essence(entry: dict) -> dict:
    return {name: value for name, value in entry.items() if name != "of"}  # a directory may be called otherwise now


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty folder inside `out` to write in; it is removed again if that fails."""
    staging = out / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def own_tokenizer(
    directory: Path, manifest: Manifest, load: Callable[[Path], AnyTokenizer] = load_data_tokenizer
) -> AnyTokenizer:
    """The tokenizer in a dataset directory, as `load` gives it.

    Raises TokenizerError if it is not the one that the metadata describes.
    """
    tokenizer = load(directory)
    pairs = {
        "hash": (tokenizer_hash(tokenizer), manifest.tokenizer_hash),
        "vocabulary": (largest_id(tokenizer) + 1, manifest.vocab_size),
        "EOS id": (tokenizer.eos_token_id, manifest.eos_token_id),
    }
    differences = [
        f"its {name} is {there}, the metadata says {said}" for name, (there, said) in pairs.items() if there != said
    ]
    if differences:
        raise TokenizerError(f"{directory}: tokenizer.json is another one: {'; '.join(differences)}; restore it")
    return tokenizer


def fingerprints(manifest: Manifest) -> dict[str, str]:
    return {name: manifest.fingerprint(name) for name, split in manifest.splits.items() if split.shards}
