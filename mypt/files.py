"""Write a file, or a folder, in one step."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_text(path: str | Path, text: str) -> None:
    r"""Write `text` to `path` so that a reader, or a kill -9, meets the old file or the new one, never half of it.

    A lone surrogate, which is how Python spells a byte of a file's name that is not UTF-8, becomes `\udce9` and the
    like: in JSON the same text again.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def flush_folder(folder: str | Path) -> None:
    """Wait until every file below `folder`, and the folder itself, would survive a power cut. Raises OSError."""
    folders = []
    for root, _, names in os.walk(folder):
        folders.append(root)
        for name in names:
            _flush(os.path.join(root, name))
    for path in reversed(folders):
        flush_names(path)


def flush_names(folder: str | Path) -> None:
    """Make the names in a folder (new, renamed, removed files) survive a power cut, where its file system can."""
    with suppress(OSError):  # some network file systems, and Windows, cannot flush a folder
        _flush(folder)


def _flush(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_free(path: str | Path) -> bool:
    """Whether a folder can be made there: there is nothing, or an empty folder in which nobody stands now."""
    path = Path(path)
    if not path.is_dir():
        return not path.exists()
    return not any(path.iterdir()) and path.resolve() != Path.cwd()


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its place when the block ends, and is removed when the block fails.

    `path` must be free (`is_free`).
    """
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.name}.tmp")  # hidden: DIR.tmp may be a folder of the user's
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
