"""Versions of installed packages, also where MyPT runs from a source tree (PYTHONPATH) and has no metadata."""

from functools import cache
from importlib import metadata


def version_of(package: str) -> str:
    """Its version; "not installed" where Python's metadata does not know the package."""
    try:
        return _found(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache  # parsing a package's metadata takes milliseconds; what is not found is looked for again
def _found(package: str) -> str:
    return metadata.version(package)
