"""Fetch dataset directories from object stores into the cache once, and verify them."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import xxhash

from mypt.errors import CheckpointError, DataError
from mypt.files import replace_text
from mypt.json_files import read_json
from mypt.remote.cache import cached_folder
from mypt.remote.place import Place
from mypt.shards.format import METADATA_NAME
from mypt.storage.manifest import Entry, Manifest, dump_manifest, kind_in_words, read_manifest
from mypt.storage.transfer import digest_of, fetch_folder

_LISTED = "manifest.json"  # beside a copy: what it was fetched by


@cache  # the data of a run stay the same
def local_dataset(uri: str) -> Path | None:
    """The directory of this machine that holds a copy of a dataset; None if the store has none at that URI.

    Shards that an earlier copy has, such as those before `mypt append`, are linked, not fetched again.

    Raises:
        DataError: There is no room for it, or the URI is that of a model.
        CheckpointError: A file is not what was uploaded.
        MyPTError: The store refuses or fails.
    """
    place = Place.parse(uri)
    manifest = read_manifest(place)
    if manifest is None:
        return None
    if manifest["kind"] != "dataset":
        raise DataError(f"{uri} is {kind_in_words(manifest['kind'])}, not a dataset; name a dataset directory or text")
    if METADATA_NAME not in manifest["files"]:
        raise CheckpointError(f"{uri} lists no {METADATA_NAME}; upload it again")
    digest = xxhash.xxh3_128(f"{uri} {digest_of(manifest)}".encode()).hexdigest()
    size = sum(entry["bytes"] for entry in manifest["files"].values())

    def fill(folder: Path) -> None:
        fetch_folder(place, folder, manifest, known=_known(folder.parents[1]))
        replace_text(folder.parent / _LISTED, dump_manifest(manifest))

    return cached_folder(uri, place.name, digest, size, fill)


def _known(root: Path) -> Callable[[Entry], Path | None]:
    """Finds a file of the same content in another copy."""
    found: dict[str, Path] = {}
    for listed in root.glob(f"*/{_LISTED}"):
        copies = [path for path in listed.parent.iterdir() if path.is_dir() and path.suffix != ".part"]
        for name, entry in read_json(listed, Manifest, CheckpointError)["files"].items():
            found |= {entry["xxh3_128"]: copies[0] / name} if copies else {}

    def known(entry: Entry) -> Path | None:
        path = found.get(entry["xxh3_128"])
        return path if path and os.path.isfile(path) else None

    return known
