"""The first of the two passes over the text: hashes, counts and the sample from which a tokenizer is trained."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mypt.errors import DataError
from mypt.text.clean import Cleaner
from mypt.text.dedup import first_occurrences, text_hash
from mypt.text.document import Document
from mypt.text.sources import SourceFile, choose_unit, read_documents


@dataclass(frozen=True)
class Reading:
    """How files become cleaned documents; two passes with equal readings give equal documents."""

    files: list[SourceFile]
    units: dict[SourceFile, str]
    text_column: str
    normalize: bool
    lowercase: bool
    filter: bool
    max_documents: int | None

    def documents(self, cleaner: Cleaner | None = None) -> Iterator[tuple[Document, bytes]]:
        """The documents that cleaning keeps, each with its UTF-8 bytes, in the order of the input."""
        cleaner = cleaner or self.cleaner()
        raw = (doc for file in self.files for doc in read_documents(file, self.units[file], self.text_column))
        for document in islice(raw, self.max_documents):
            if (cleaned := cleaner(document)) is not None:
                yield cleaned, cleaned.text.encode()

    def cleaner(self) -> Cleaner:
        return Cleaner(normalize=self.normalize, lowercase=self.lowercase, filter=self.filter)


@dataclass
class Survey:
    """What the first pass saw. 8 bytes of hash and 1 of verdict are kept of each document."""

    hashes: np.ndarray  # uint64 (documents,)
    keep: np.ndarray  # bool (documents,): not a duplicate
    bytes: int  # UTF-8 bytes of all documents, duplicates included
    cleaner: Cleaner

    def kept(self, reading: Reading) -> Iterator[tuple[int, Document, bytes]]:
        """Read the text again: (ordinal, document, UTF-8 bytes) of what is kept.

        Raises DataError if the text is not what the survey saw.
        """
        ordinal = -1
        for ordinal, (document, data) in enumerate(reading.documents()):
            if ordinal >= len(self.hashes) or text_hash(data) != int(self.hashes[ordinal]):
                raise DataError(f"{document.id} changed while it was being prepared; run the same command again")
            if self.keep[ordinal]:
                yield ordinal, document, data
        if ordinal + 1 != len(self.hashes):
            raise DataError("the sources became shorter while they were being prepared; run the same command again")


def choose_units(files: Iterable[SourceFile], asked: str | None, keep_whole: bool) -> dict[SourceFile, str]:
    """What a document is, for each file: as asked, else by the file's size (`choose_unit`)."""
    return {file: asked or choose_unit(file, keep_whole) for file in files}


def survey(reading: Reading, dedup: bool, observe: Callable[[str], object], advance: Callable[[int], object]) -> Survey:
    """Read everything once; `observe` sees each document's text and `advance` its bytes.

    Raises DataError if no document is left.
    """
    cleaner = reading.cleaner()
    hashes = array("Q")
    total = 0
    for document, data in reading.documents(cleaner):
        hashes.append(text_hash(data))
        total += len(data)
        observe(document.text)
        advance(len(data))
    if not hashes:
        reasons = ", ".join(f"{count} {reason}" for reason, count in cleaner.dropped.items()) or "no document in them"
        raise DataError(f"the sources hold no text ({reasons}); give other files, or --no-filter to keep everything")
    found = np.frombuffer(hashes, dtype=np.uint64)
    keep = first_occurrences(found) if dedup else np.ones(len(found), dtype=bool)
    return Survey(found, keep, total, cleaner)
