"""Copy text files from object stores, so that they are read as files of this machine."""

from __future__ import annotations

import os
import re
from fnmatch import translate
from functools import cache
from glob import has_magic
from pathlib import Path

import xxhash

from mypt.errors import DataError, MyPTError
from mypt.files import is_inner_path
from mypt.remote.cache import cached_folder
from mypt.remote.place import Found, Place, is_remote, require_no_secret
from mypt.terminal import bytes_bar


def local_path(source: str) -> str:
    """The path of a source on this machine: of s3://bucket/text.jsonl, a folder or a glob there, a copy in the cache.

    A file that has changed in the store is another copy. Any other source is returned as it is. Raises DataError if
    nothing is there, MyPTError if the store fails.
    """
    return _copy(source) if is_remote(source) else source


@cache  # the files of a run stay the same
def _copy(uri: str) -> str:
    require_no_secret(uri)  # before a `?` is taken for a part of a glob
    scheme, _, path = uri.partition("://")
    parts = path.rstrip("/").split("/")
    fixed = next((index for index, part in enumerate(parts) if has_magic(part)), len(parts))
    pattern = "/".join(parts[fixed:])
    place = Place.parse(f"{scheme}://{'/'.join(parts[:fixed])}")
    found, inner = _found(place, pattern)
    if not found:
        raise DataError(f"source {uri} matches no file in the store; check the name")
    if "dataset_metadata.json" in found:
        raise DataError(f"source {uri} is a dataset directory, which is already prepared; name it in data.train")
    stamps = sorted((name, one.size, one.version) for name, one in found.items())
    digest = xxhash.xxh3_128(repr((str(place), stamps)).encode()).hexdigest()
    total = sum(one.size for one in found.values())

    def fill(folder: Path) -> None:
        with bytes_bar(f"fetching {uri}", total) as bar:
            for name, one in found.items():
                _fetch(place, name, one, folder / (name or place.name))
                bar.update(one.size)

    folder = cached_folder(uri, "text" if inner == "" else place.name, digest, total, fill)
    return str(folder / place.name) if inner == "" else str(folder / inner) if inner else str(folder)


def _found(place: Place, pattern: str) -> tuple[dict[str, Found], str | None]:
    """The files to copy, by their names below `place`; "" is `place` itself, a single file."""
    if not pattern and (one := place.find_file()):
        return {"": one}, ""
    files = place.find()
    if pattern:
        # `**/` of a glob also stands for nothing; the glob over the copies leaves out what was copied too much.
        match = re.compile(translate(pattern.replace("**/", "*"))).match
        files = {name: one for name, one in files.items() if match(name)}
    for name in files:
        if not is_inner_path(name):
            raise DataError(
                f"{place} holds an object named {name!r}, which is no path below it; rename it, or give a glob without "
                "it"
            )
    return files, pattern or None


def _fetch(place: Place, name: str, one: Found, path: Path) -> None:
    if path.is_file() and path.stat().st_size == one.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    place.get(name or None, part)
    if part.stat().st_size != one.size:
        raise MyPTError(f"{place} changed while it was fetched; run the command again")
    if one.written:  # by which a run knows its text again
        os.utime(part, ns=(one.written, one.written))
    os.replace(part, path)
