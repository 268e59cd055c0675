"""The unit of text: what is deduplicated, split into train and val, and ended by an EOS token."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import repeat
from typing import NamedTuple


class Document(NamedTuple):
    """One text, or a part of one that is too long to be held in memory."""

    text: str
    ended: bool = True  # False: the document goes on in the next item


_new = partial(tuple.__new__, Document)


def whole_documents(texts: Iterable[str]) -> Iterator[Document]:
    """Each text as a document; at half the cost of calling `Document`, which counts where documents are lines."""
    return map(_new, zip(texts, repeat(True)))
