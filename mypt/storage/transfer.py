"""Move one folder to an object store and back: its manifest comes last there, and is checked first here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from mypt.checkpoints.complete import what_is_missing
from mypt.checkpoints.environment import ENVIRONMENT_NAME
from mypt.checkpoints.state import STATE_NAME
from mypt.errors import CheckpointError, MyPTError
from mypt.files import xxh3_128
from mypt.folders import remove_others
from mypt.remote.place import Place
from mypt.shards.format import METADATA_NAME
from mypt.storage.export_files import EXPORTED_WEIGHTS, are_an_export, is_export_file, require_whole_export
from mypt.storage.manifest import (
    MANIFEST_NAME,
    Entry,
    Manifest,
    dump_manifest,
    kind_in_words,
    replaceable_manifest,
    stored_name,
    write_manifest,
)
from mypt.storage.run_files import REPORT_NAME, recorded_run
from mypt.storage.store import Outgoing, Sent
from mypt.storage.upload_files import WEIGHTS, check_weights, is_model_file
from mypt.terminal import bytes_bar

_LEVEL = 3  # zstandard's default
_CHUNK = 1 << 20


def send_folder(
    place: Place,
    files: list[Outgoing],
    *,
    message: str = "Upload with mypt",
    progress: bool = True,
    compress: bool = False,
) -> Sent:
    """Send files, then the manifest that lists them. Arguments as of `Store.send`; those of an earlier upload that are
    not among them are removed. A folder that is replaced is not whole until its new manifest is there.

    Raises CheckpointError if the store does not hold what was sent, or something there that this does not replace.
    """
    before, there = replaceable_manifest(place), place.files()
    manifest = _manifest_of(files, message, compress)
    held = before["kind"] if before else _kind_without_manifest(there)
    if held and held != manifest["kind"] and "export" in (held, manifest["kind"]):
        raise CheckpointError(  # the weights of a model would be removed by its own export
            f"{place} holds {kind_in_words(held)}, which {kind_in_words(manifest['kind'])} does not replace; choose "
            "another place, such as a folder below it"
        )
    unchanged = _unchanged(before, manifest, there)
    sent = [file for file in files if file.name not in unchanged]
    removed = sorted({*before["files"]} - {*manifest["files"]}) if before else []
    if before and not sent and not removed and before.get("compression") == manifest.get("compression"):
        return Sent(digest_of(before), [], sorted(unchanged), [])
    for name in unchanged:
        manifest["files"][name] = before["files"][name]
    if MANIFEST_NAME in there:  # from here on the folder is not whole
        place.remove([MANIFEST_NAME])
    with bytes_bar(f"uploading to {place}", sum(file.size for file in sent), progress) as bar:
        for file in sent:
            _put(place, file, manifest, bar.update)
    _require_there(place, manifest)
    write_manifest(place, manifest)
    place.remove([stored_name(name, before) for name in removed])
    if before and before.get("compression") != manifest.get("compression"):
        place.remove([stored_name(file.name, before) for file in sent if file.name in before["files"]])
    stored = sum(manifest["files"][file.name].get("stored", 0) for file in sent)
    return Sent(digest_of(manifest), sorted(file.name for file in sent), sorted(unchanged), removed, stored)


def _put(place: Place, file: Outgoing, manifest: Manifest, advance: Callable[[int], object]) -> None:
    if not manifest.get("compression"):
        place.put(file.name, file.content, advance)
        return
    with _compressed(file.content) as path:
        manifest["files"][file.name]["stored"] = path.stat().st_size
        place.put(stored_name(file.name, manifest), path)
    advance(file.size)


def _require_there(place: Place, manifest: Manifest) -> None:
    """Raises CheckpointError if a file of the store has not the size that was sent."""
    there = place.files()
    for name, entry in manifest["files"].items():
        found, size = there.get(stored_name(name, manifest)), entry.get("stored", entry["bytes"])
        if found != size:
            what = "is not there" if found is None else f"has {found:,} bytes"
            raise CheckpointError(f"{place / name} {what} after {size:,} bytes were sent; upload it again")


def fetch_folder(
    place: Place,
    folder: Path,
    manifest: Manifest,
    *,
    known: Callable[[Entry], Path | None] | None = None,
) -> None:
    """Bring every file that a manifest lists into `folder`, each checked by size and checksum.

    Files that are there already and as listed are not brought again; all others there are removed.

    Args:
        known: known(entry) gives the path of a local file of the same content, or None; it is linked.

    Raises:
        CheckpointError: A file is missing or is not what was uploaded, or the model has no safetensors.
    """
    _require_loadable(place, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")
    remove_others(folder, manifest["files"], MANIFEST_NAME)  # of a killed download of something else
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    with bytes_bar(f"downloading {place}", total) as bar:
        for name, entry in manifest["files"].items():
            path = folder / name
            if not _is_as_listed(path, entry):
                path.parent.mkdir(parents=True, exist_ok=True)
                _get(place, name, entry, manifest, path, known)
            bar.update(entry["bytes"])
    if manifest["kind"] == "model":
        _named(place, folder, lambda: check_weights(folder))
    elif manifest["kind"] == "export":
        _named(place, folder, lambda: require_whole_export(folder))
    elif manifest["kind"] == "checkpoint" and (fault := what_is_missing(folder)):
        raise CheckpointError(f"{place} cannot be resumed from: {fault}; upload it again")
    (folder / MANIFEST_NAME).unlink()


def was_fetching(folder: Path) -> bool:
    """Whether a call of `fetch_folder` that failed or was killed left this folder."""
    return (folder / MANIFEST_NAME).is_file()


def _get(place: Place, name: str, entry: Entry, manifest: Manifest, path: Path, known: Callable | None) -> None:
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    here = known and known(entry)
    if here:
        try:
            os.link(here, part)
        except OSError:  # a file system without links
            shutil.copyfile(here, part)
    elif manifest.get("compression"):
        packed = path.with_name(f"{path.name}.zst.part")
        place.get(stored_name(name, manifest), packed)
        _decompress(packed, part, entry["bytes"], place / name)
        packed.unlink()
    else:
        place.get(name, part)
    if not _is_as_listed(part, entry):
        size = part.stat().st_size
        part.unlink()
        raise CheckpointError(
            f"{place / name} is not what was uploaded ({size:,} bytes, {entry['bytes']:,} were sent; or another "
            "checksum): upload it again"
        )
    os.replace(part, path)


def _named(place: Place, folder: Path, action: Callable[[], object]) -> None:
    try:
        action()
    except MyPTError as error:
        raise type(error)(str(error).replace(str(folder), str(place))) from error


def kind_of(files: list[Outgoing]) -> str:
    """The kind of folder that the files make up: model, checkpoint, dataset or export."""
    names = {file.name for file in files}
    if are_an_export(names):
        return "export"
    return "dataset" if METADATA_NAME in names else "checkpoint" if STATE_NAME in names else "model"


def _kind_without_manifest(there: Iterable[str]) -> str | None:
    """The kind of a folder whose upload was interrupted, by the weights there; None as long as it holds none."""
    names = {name.removesuffix(".zst") for name in there}
    if any(WEIGHTS.fullmatch(name) for name in names):
        return "model"
    exported = any(EXPORTED_WEIGHTS.fullmatch(name) for name in names)
    return "export" if exported and are_an_export(names) else None


def _manifest_of(files: list[Outgoing], message: str, compress: bool) -> Manifest:
    entries: dict[str, Entry] = {}
    for file in files:
        in_memory = isinstance(file.content, bytes)
        digest = xxhash.xxh3_128(file.content).hexdigest() if in_memory else xxh3_128(file.content)
        entries[file.name] = {"bytes": file.size, "xxh3_128": digest}
    manifest: Manifest = {"format": "mypt-folder", "version": 1, "kind": kind_of(files), "message": message}
    if compress:
        manifest["compression"] = "zstd"
    if run := _run_of(files):
        manifest["run"] = run
    return manifest | {"files": entries}


def _run_of(files: list[Outgoing]) -> str | None:
    """The hash of the run that the files are of, by the environment.json among them."""
    for file in files:
        if isinstance(file.content, Path) and file.name.rpartition("/")[2] == ENVIRONMENT_NAME:
            return recorded_run(file.content.parent)
    return None


def _unchanged(before: Manifest | None, manifest: Manifest, there: dict[str, int]) -> set[str]:
    """Names that the store holds as they are, by the manifest there and the sizes that are listed."""
    if not before or before.get("compression") != manifest.get("compression"):
        return set()
    found = set()
    for name, entry in manifest["files"].items():
        old = before["files"].get(name)
        if old and (old["bytes"], old["xxh3_128"]) == (entry["bytes"], entry["xxh3_128"]):
            size = old.get("stored", old["bytes"])
            found |= {name} if there.get(stored_name(name, before)) == size else set()
    return found


def _require_loadable(place: Place, manifest: Manifest) -> None:
    """Raises CheckpointError for a model or an export with files that none of ours has, such as pickles."""
    for name in manifest["files"]:
        code = name.endswith(".py") and "/" not in name
        is_ours = is_model_file(name) or name in (ENVIRONMENT_NAME, REPORT_NAME) or code
        if manifest["kind"] == "model" and not is_ours:
            raise CheckpointError(f"{place} lists {name}, which is no file of a model; nothing was downloaded")
        if manifest["kind"] == "export" and not is_export_file(name):
            raise CheckpointError(f"{place} lists {name}, which is no file of an export; nothing was downloaded")


def _is_as_listed(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and xxh3_128(path) == entry["xxh3_128"]


def digest_of(manifest: Manifest) -> str:
    """The name of a manifest: equal for equal files."""
    names = [(name, entry["xxh3_128"]) for name, entry in sorted(manifest["files"].items())]
    return xxhash.xxh3_128(repr(names).encode()).hexdigest()


def _require_zstd():
    """The package zstandard. Raises MyPTError if it is not installed."""
    try:
        import zstandard
    except ImportError as error:
        raise MyPTError('--compress zstd needs the package zstandard: pip install "mypt[zstd]"') from error
    return zstandard


@contextmanager
def _compressed(content: Path | bytes) -> Iterator[Path]:
    """A temporary file with the packed content. Raises OSError for a full disk."""
    compressor = _require_zstd().ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
    with tempfile.NamedTemporaryFile(prefix="mypt-", suffix=".zst") as packed:
        if isinstance(content, bytes):
            packed.write(compressor.compress(content))
        else:
            with open(content, "rb") as source:
                compressor.copy_stream(source, packed, read_size=_CHUNK, write_size=_CHUNK)
        packed.flush()
        yield Path(packed.name)


def _decompress(packed: Path, path: Path, size: int, name: object) -> None:
    """Unpack a file that must come to `size` bytes. Raises CheckpointError for another content, which names `name`."""
    zstandard = _require_zstd()
    written = 0
    try:
        with open(packed, "rb") as source, open(path, "wb") as target:
            for chunk in zstandard.ZstdDecompressor().read_to_iter(source, read_size=_CHUNK):
                written += len(chunk)
                if written > size:  # a small file may unpack to more than any disk holds
                    break
                target.write(chunk)
    except zstandard.ZstdError as error:
        raise CheckpointError(f"{name} cannot be unpacked ({error}); upload it again") from None
    if written != size:
        raise CheckpointError(f"{name} does not unpack to {size:,} bytes; upload it again")
