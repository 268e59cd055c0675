"""Read versions of installed packages, also where MyPT runs from a source tree and has no metadata."""

from importlib import metadata


def version_of(package: str) -> str:
    """Its version; "not installed" where Python's metadata does not know the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
