"""Write a file in one step."""

import os
from pathlib import Path


def replace_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a kill -9, meets the old file or the new one, never half of it."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
