"""Write a file in one step."""

import os
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
