"""Read and write the manifest of a folder in a store: it comes last, so that a folder with one is whole."""

import json
from typing import Literal, NotRequired, TypedDict

from mypt.errors import CheckpointError
from mypt.json_files import Count, InnerPath, Recorded, parse_json
from mypt.remote.place import Place

MANIFEST_NAME = "mypt-manifest.json"


class Entry(Recorded):
    """A file: its size and checksum here; `stored`: its bytes in the store where they are others."""

    stored: NotRequired[Count]


class Manifest(TypedDict):
    """kind: what the folder is. run: the hash of the run that a model or a checkpoint is of (`run_hash`)."""

    format: Literal["mypt-folder"]
    version: Literal[1]
    kind: Literal["model", "checkpoint", "dataset", "export"]
    compression: NotRequired[Literal["zstd"]]
    message: NotRequired[str]
    run: NotRequired[str]
    files: dict[InnerPath, Entry]


def kind_in_words(kind: str) -> str:
    """What a folder is, with its article."""
    return f"an {kind}" if kind == "export" else f"a {kind}"


def read_manifest(place: Place) -> Manifest | None:
    """The manifest of a folder; None if it has none. Raises CheckpointError if it is damaged or names other folders."""
    content = place.read(MANIFEST_NAME)
    if content is None:
        return None
    return parse_json(content, Manifest, place / MANIFEST_NAME, CheckpointError, "upload the folder again")


def replaceable_manifest(place: Place) -> Manifest | None:
    """As `read_manifest`, but None for a damaged manifest, which an upload replaces."""
    try:
        return read_manifest(place)
    except CheckpointError:
        return None


def dump_manifest(manifest: Manifest) -> str:
    return json.dumps(manifest, indent=1)


def write_manifest(place: Place, manifest: Manifest) -> None:
    place.put(MANIFEST_NAME, dump_manifest(manifest).encode())


def stored_name(name: str, manifest: Manifest) -> str:
    """The name in the store of a file that is `name` here."""
    return f"{name}.zst" if manifest.get("compression") else name


def require_manifest(place: Place) -> Manifest:
    """The manifest of a folder. Raises CheckpointError if there is none: nothing there is known to be whole."""
    manifest = read_manifest(place)
    if manifest is not None:
        return manifest
    there = place.files()
    if not there:
        raise CheckpointError(f"{place} holds nothing; check the name")
    # Folders below it that are whole, such as the checkpoints of a run that is still training.
    whole = sorted(name.rpartition("/")[0] for name in there if name.endswith(f"/{MANIFEST_NAME}"))
    if whole:
        listed = ", ".join(f"{place}/{name}" for name in whole[:20])
        raise CheckpointError(f"{place} is not whole itself; whole folders below it: {listed}")
    raise CheckpointError(
        f"{place} holds {len(there)} files and no {MANIFEST_NAME}: its upload is under way, was interrupted, or was "
        "not made by mypt; nothing was downloaded. Upload it again, or wait"
    )
