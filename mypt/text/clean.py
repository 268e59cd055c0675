"""Repair, normalise and filter documents; whatever is changed or dropped is counted under a name."""

import re
import unicodedata
from collections import Counter

from mypt.text.document import Document

NOT_TEXT_SHARE = 0.1  # of a document's characters

_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters that text has no use for (tab, line ends, form feed and escape are fine) and U+FFFD.
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")


def repair(text: str) -> tuple[str, int]:
    """Replace each lone surrogate, hence each byte that was not UTF-8, by U+FFFD; returns the text and their number."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.subn("\ufffd", text)
    return text, 0


def normalize(text: str) -> str:
    r"""Unicode NFC, line ends as `\n`, no blanks (spaces and tabs) at the ends of lines. Idempotent."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    return unicodedata.normalize("NFC", text)


def drop_reason(text: str) -> str | None:
    """Why a document is worth nothing to a language model, or None.

    Only rules that no prose and no source code fails: `empty` (white space alone) and `not_text` (more than a
    tenth of the characters are control characters or U+FFFD: a binary file, UTF-16, another encoding).
    """
    if not text or text.isspace():
        return "empty"
    if _NOT_TEXT.search(text) and len(_NOT_TEXT.findall(text)) > NOT_TEXT_SHARE * len(text):
        return "not_text"
    return None


class Cleaner:
    """Cleans documents one by one and counts what it did.

    `counts` has `documents` (seen), `invalid_utf8` (bytes replaced) and `normalized` (documents changed);
    `dropped` has the number of documents by reason. A document of no characters is dropped in any case.
    """

    def __init__(self, *, normalize: bool = True, lowercase: bool = False, filter: bool = True) -> None:
        self.normalize, self.lowercase, self.filter = normalize, lowercase, filter
        self.counts: Counter[str] = Counter(documents=0, invalid_utf8=0, normalized=0)
        self.dropped: Counter[str] = Counter()

    def __call__(self, document: Document) -> Document | None:
        """The cleaned document, or None if it is dropped."""
        text, invalid = repair(document.text)
        self.counts["documents"] += 1
        self.counts["invalid_utf8"] += invalid
        if self.lowercase:
            text = text.lower()
        if self.normalize:
            normal = normalize(text)
            self.counts["normalized"] += normal != text
            text = normal
        reason = drop_reason(text) if self.filter else None if text else "empty"
        if reason:
            self.dropped[reason] += 1
            return None
        return document._replace(text=text)
