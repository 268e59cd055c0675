"""The validation split that a dataset of the hub or a DatasetDict on the disk brings along."""

from pathlib import Path

from mypt.text import hub
from mypt.text.tables import splits_of

NAMES = ("validation", "valid", "val", "dev")


def own_validation(source: str) -> str | None:
    """The source of the validation split that belongs to `source`; None if it has none, or is that split itself.

    Raises DataError for a dataset that cannot be read.
    """
    path, _, split = source.partition("#")
    if source.startswith(hub.PREFIX):
        names, split = hub.splits(source), hub.split_of(source)
    elif not Path(source).is_file() and Path(path).is_dir():
        names = splits_of(Path(path)) or []
    else:
        return None
    if split in NAMES:
        return None
    found = next((name for name in NAMES if name in names), None)
    return found and f"{path}#{found}"
