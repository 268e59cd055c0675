"""Write a file, or a folder, in one step."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
