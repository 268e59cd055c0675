"""The unit of text: what is deduplicated, split into train and val, and ended by an EOS token."""

from typing import NamedTuple


class Document(NamedTuple):
    """One text and where it came from."""

    text: str
    id: str  # file and ordinal in it: notes/a.txt:0
    source: str  # the source as the user gave it: a path or a glob
