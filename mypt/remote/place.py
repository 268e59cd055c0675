"""List, read, write and remove the files of one folder in an object store, with retries and errors in one line."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from mypt.errors import CheckFailed, MyPTError, without_secrets
from mypt.remote.clients import SCHEMES, file_system, may_pass, reason, refusal

_EACH = [scheme.form for scheme in SCHEMES.values() if scheme.form]
FORMS = f"{', '.join(_EACH[:-1])} or {_EACH[-1]}"
WAITS = (1, 4, 16)  # seconds before the second, third and fourth try of a request
_URI = re.compile(rf"({'|'.join(SCHEMES)})://([^\s?#\\]*)")
_NO_BUCKET = re.compile(r"(specified|such) (bucket|container)", re.IGNORECASE)
T = TypeVar("T")


def is_remote(source: str) -> bool:
    """Whether a source names an object store, by its scheme alone."""
    return source.partition("://")[0] in SCHEMES and "://" in source


def require_no_secret(uri: str) -> None:
    """Raise MyPTError, without the secret, for a URI with a password or a signature."""
    if re.search(r"[?&](sig|X-Amz-Signature|X-Goog-Signature)=", uri) or re.search(r"://[^/@]*:[^/@]*@", uri):
        raise MyPTError(
            f"{without_secrets(uri)} holds a secret, which recipes and logs would keep; give it by the environment "
            "(docs/stores.md)"
        )


class Found(NamedTuple):
    """A file of a store: bytes, what changes with its content, and the time of its last change in ns."""

    size: int
    version: str
    written: int | None

    @classmethod
    def of(cls, entry: dict) -> Found:
        """From the entry of a file by fsspec's clients."""
        times = [entry.get(name) for name in ("LastModified", "updated", "last_modified", "mtime")]
        written = next((_nanoseconds(value) for value in times if value), None)
        version = entry.get("ETag") or entry.get("etag") or written
        return cls(int(entry["size"] or 0), str(version), written)


@dataclass(frozen=True)
class Place:
    """A folder of an object store, named by its URI without a slash at the end; `place / name` is one below it.

    Every method raises MyPTError for a wrong request, and CheckFailed for a store that fails or cannot be reached,
    after several tries.
    """

    uri: str

    @classmethod
    def parse(cls, uri: str) -> Place:
        """Raises MyPTError for another form, and for a URI that holds a secret: none is repeated."""
        require_no_secret(uri)
        match = _URI.fullmatch(uri)
        scheme, path = match.groups() if match else ("", "")
        parts = path.strip("/").split("/")
        absolute = path.startswith("/") if scheme == "file" else bool(parts[0])
        if not match or not absolute or any(part in ("", ".", "..") for part in parts):
            raise MyPTError(f"{without_secrets(uri)!r} is not of the form {FORMS}")
        return cls(f"{scheme}://{path.rstrip('/')}")

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return self.uri.rpartition("/")[2]

    @property
    def _client(self):
        return file_system(self.uri)

    @property
    def _path(self) -> str:
        return _stripped(self.uri)

    def files(self) -> dict[str, int]:
        """Bytes of every file below the folder, by its path in it; empty if nothing is there."""
        return {name: one.size for name, one in self.find().items()}

    def find(self) -> dict[str, Found]:
        """Every file below the folder, by its path in it; empty if nothing is there."""

        def find() -> dict[str, dict]:
            try:
                return self._client.find(self._path, detail=True)
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise
                return {}

        below = f"{self._path}/"
        return {
            path.removeprefix(below): Found.of(entry)
            for path, entry in sorted(self._do(find).items())
            if path.startswith(below) and not path.endswith("/")  # the mark of a folder that a console made
        }

    def find_file(self) -> Found | None:
        """The file that the URI itself names; None for a folder, or if nothing is there."""
        try:
            entry = self._do(lambda: self._client.info(self._path))
        except Absent:
            return None
        return Found.of(entry) if entry["type"] == "file" else None

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it is absent."""
        try:
            return self._do(lambda: self._client.cat_file(f"{self._path}/{name}"))
        except Absent:
            return None

    def get(self, name: str | None, path: Path, advance: Callable[[int], object] | None = None) -> None:
        """Copy a file here, or the one that the URI itself names; `advance` gets the bytes as they come.

        Raises Absent if it is not there.
        """
        there = f"{self._path}/{name}" if name else self._path
        try:
            self._do(lambda: self._client.get_file(there, str(path), callback=_progress(advance)))
        except Absent:
            raise Absent(f"{self / name if name else self} is not in the store") from None

    def put(self, name: str, content: Path | bytes, advance: Callable[[int], object] | None = None) -> None:
        """Write a file there, whole or not at all, in place of one that is there."""
        there = f"{self._path}/{name}"
        in_folder = self.uri.startswith("file:")  # where half of a file would be seen
        target = f"{there}.part" if in_folder else there
        try:
            if isinstance(content, bytes):
                self._do(lambda: self._client.pipe_file(target, content))
                if advance:
                    advance(len(content))
            else:
                self._do(lambda: self._client.put_file(str(content), target, callback=_progress(advance)))
            if in_folder:
                self._do(lambda: os.replace(target, there))
        except Absent:
            raise self._no_bucket() from None

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is gone already is none to report."""
        for name in names:
            try:
                self._do(lambda name=name: self._client.rm_file(f"{self._path}/{name}"))
            except Absent:
                continue

    def _do(self, action: Callable[[], T]) -> T:
        """Call `action`, and once more after each of `WAITS` while the store fails for now."""
        waits = () if SCHEMES[self.uri.partition("://")[0]].tries_itself else WAITS
        for wait in (*waits, None):
            try:
                return action()
            except MyPTError:
                raise
            except Exception as error:
                if wait is None or not may_pass(error):
                    raise self._explained(error) from error
                time.sleep(wait)
        raise AssertionError

    def _explained(self, error: Exception) -> MyPTError:
        if may_pass(error):
            return CheckFailed(f"{self}: the store fails or cannot be reached ({reason(error)}); try again")
        of_this_machine = isinstance(error, OSError) and Path(str(error.filename or "")).is_absolute()
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        if of_this_machine and not (absent and self.uri.startswith("file:")):
            raise error  # a full disk, a file that may not be read
        if absent:
            return self._no_bucket() if _NO_BUCKET.search(str(error)) else Absent(f"{self}: {reason(error)}")
        return MyPTError(f"{self}: {refusal(self.uri.partition('://')[0], error)}")

    def _no_bucket(self) -> MyPTError:
        return MyPTError(f"{self}: there is no such bucket or container; make it, or check the name")


class Absent(MyPTError):
    """A file that is not in the store."""


@cache
def _stripped(uri: str) -> str:
    return type(file_system(uri))._strip_protocol(uri).rstrip("/")


def _progress(advance: Callable[[int], object] | None):
    from fsspec.callbacks import DEFAULT_CALLBACK, Callback

    class Progress(Callback):
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

        def absolute_update(self, value: int) -> None:
            advance(value - self.value)
            self.value = value

    return Progress() if advance else DEFAULT_CALLBACK


def _nanoseconds(value: object) -> int | None:
    """A time as the clients give it: a datetime, text of ISO 8601, or seconds."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        value = value.timestamp()
    return int(value * 1_000_000) * 1_000 if isinstance(value, int | float) else None
