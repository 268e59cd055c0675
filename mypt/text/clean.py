"""Repair, normalise and filter documents; count by name all that is changed or dropped."""

import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter

import numpy as np

from mypt.text.plain import Document, whole_documents

NOT_TEXT_SHARE = 0.1  # of the characters of a document or a line
# Control characters that text has no use for: all but tab, line ends, form feed and escape.
CONTROLS = bytes([*range(0x09), *range(0x0E, 0x1B), *range(0x1C, 0x20), 0x7F])
EXAMPLES = 3  # kept of what each reason dropped
EXAMPLE_CHARACTERS = 200

# Documents are looked at in batches, which costs little for each; few enough that a batch fits in memory.
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 1 << 16

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_TEXT = re.compile(f"[{re.escape(CONTROLS.decode())}\ufffd]")
# A line of one or two characters and blanks. In a text it is searched from line end to line end, for speed.
_SHORT_LINE = re.compile(r"[^\S\n]*+(?:\S[^\S\n]*+){1,2}+")
_SHORT_LINE_IN_TEXT = re.compile(rf"\n{_SHORT_LINE.pattern}(?![^\n])")


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
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def drop_reason(text: str) -> str | None:
    """Why a document is dropped, or None: `empty` (white space alone) or `not_text`.

    not_text: more than a tenth of the characters are control characters or U+FFFD (a binary file, another encoding).
    No prose and no source code fails these rules.
    """
    if not text or text.isspace():
        return "empty"
    return "not_text" if _is_not_text(text) else None


def line_drop_reason(line: str) -> str | None:
    """`not_text` as for a document, `short` (fewer than 3 characters without blanks), or None; a blank line is kept."""
    if _is_not_text(line):
        return "not_text"
    return "short" if _SHORT_LINE.fullmatch(line) else None


def _is_not_text(text: str) -> bool:
    return bool(_NOT_TEXT.search(text)) and len(_NOT_TEXT.findall(text)) > NOT_TEXT_SHARE * len(text)


def _escaped(text: str) -> str:
    """Escape control characters and others that do not show: a line end becomes a backslash and an n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _faults(texts: Sequence[str], whole: str, lines: bool) -> tuple[set[str], bytes, np.ndarray]:
    """The faults that occur somewhere in a batch of texts; only for these is each text looked at by itself.

    invalid: lone surrogates; unnormal: `normalize` changes something; not_text: some character is no text; with
    `lines` also short: some line is short. `whole` is the texts with a line end after each. Also returns its UTF-8
    bytes, and the places of the line ends in them, int64 (line ends,); neither if there are lone surrogates.
    """
    try:
        content = whole.encode()
    except UnicodeEncodeError:
        return {"invalid", "unnormal", "not_text", "short"}, b"", np.empty(0, np.int64)
    faults, data = set(), np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data == 10)
    last = data[ends - 1]
    controls = np.count_nonzero(data < 32) > len(ends)  # tabs too
    if (last == 32).any() or (controls and ((last == 9).any() or "\r" in whole)) or not _composed(texts, whole):
        faults.add("unnormal")
    if "\ufffd" in whole or "\x7f" in whole or (controls and len(content.translate(None, CONTROLS)) < len(content)):
        faults.add("not_text")
    if lines and _SHORT_LINE_IN_TEXT.search("\n" + whole):
        faults.add("short")
    return faults, content, ends


def _normalized(texts: Sequence[str], whole: str, content: bytes, ends: np.ndarray) -> tuple[list[str], int]:
    """Each of `texts` as `normalize` gives it, and how many of them changed; the other arguments as in `_faults`."""
    normal = list(texts)
    if "\r" in whole or not _composed(texts, whole):
        normal = list(map(normalize, texts))
        return normal, sum(map(str.__ne__, normal, texts))
    changed, last = 0, np.frombuffer(content, np.uint8)[ends - 1]
    blank = np.flatnonzero((last == 32) | (last == 9))  # lines that end in blanks
    begins = np.append(0, ends + 1)[blank].tolist()
    sizes = map(len, texts if whole.isascii() else map(str.encode, texts))
    stops = np.cumsum(np.fromiter(sizes, np.int64, len(texts)) + 1) - 1
    owners = np.searchsorted(stops, ends[blank])
    lines = zip(owners.tolist(), begins, ends[blank].tolist(), strict=True)
    for i, own in groupby(lines, key=itemgetter(0)):
        parts, place = [], int(stops[i - 1]) + 1 if i else 0
        for _, begin, end in own:
            parts += content[place:begin], content[begin:end].rstrip(b" \t")
            place = end
        normal[i] = b"".join([*parts, content[place : stops[i]]]).decode()
        changed += 1
    return normal, changed


def _composed(texts: Sequence[str], whole: str) -> bool:
    """Whether all of them are in Unicode NFC."""
    if whole.isascii():
        return True
    return unicodedata.is_normalized("NFC", "\n".join([text for text in texts if not text.isascii()]))


class Cleaner:
    """Cleans documents and counts what it did.

    `filter="document"` drops documents for the reasons of `drop_reason`; "line" first drops lines for those of
    `line_drop_reason`; None drops only documents of no characters. The first part of a document decides for the others.

    `counts` has `documents` (seen), `invalid_utf8` (bytes replaced in what is kept) and `normalized` (documents
    changed); `dropped` and `dropped_lines` have numbers by reason; `examples` has the beginnings of the first 3 texts
    that each reason dropped, control characters escaped. `invalid` has, for each document with bytes that were not
    UTF-8, its number among those kept (-1: dropped) and among those seen, and the number of such bytes.
    All of them run ahead of what was yielded by up to a batch of documents.
    """

    def __init__(self, *, normalize: bool = True, lowercase: bool = False, filter: str | None = "document") -> None:
        self.normalize, self.lowercase, self.filter = normalize, lowercase, filter
        self.counts: Counter[str] = Counter(documents=0, invalid_utf8=0, normalized=0)
        self.dropped: Counter[str] = Counter()
        self.dropped_lines: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.invalid: list[tuple[int, int, int]] = []
        self._kept = 0  # documents
        self._ignored = set() if normalize else {"unnormal"}
        self._ignored |= set() if filter else {"not_text"}

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that are kept, cleaned."""
        return chain.from_iterable(self.batches(documents))

    def batches(self, documents: Iterable[Document]) -> Iterator[list[Document]]:
        """Clean documents as `__call__` does; yields lists of a bounded size, which are faster to count and hash."""
        documents, size = iter(documents), 1
        first, keep, counted = True, True, False  # of the document in parts that is being read
        while batch := list(islice(documents, size)):
            texts, ended = zip(*batch, strict=True)
            if self.lowercase:
                texts = [text.lower() for text in texts]
            whole = "\n".join([*texts, ""])
            size = max(1, min(_BATCH_DOCUMENTS, 4 * size, _BATCH_CHARACTERS * len(batch) // len(whole)))
            faults, content, ends = _faults(texts, whole, lines=self.filter == "line")
            faults -= self._ignored
            if first and False not in ended and (not faults or (faults == {"unnormal"} and self.filter != "line")):
                self.counts["documents"] += len(batch)
                if faults:
                    texts, changed = _normalized(texts, whole, content, ends)
                    self.counts["normalized"] += changed
                batch = self._without_empty(list(whole_documents(texts)) if self.lowercase or faults else batch, texts)
                self._kept += len(batch)
                yield batch
                continue
            kept = []
            for text, last in zip(texts, ended, strict=True):
                clean, changed, invalid = self._clean(text, faults)
                if first:
                    self.counts["documents"] += 1
                    keep, counted = self._admit(clean, faults), False
                    self._kept += keep
                if invalid:
                    self.counts["invalid_utf8"] += invalid * keep
                    self.invalid.append((self._kept - 1 if keep else -1, self.counts["documents"] - 1, invalid))
                if changed and not counted:
                    self.counts["normalized"] += 1
                    counted = True
                if keep:
                    kept.append(Document(clean, last))
                first = last
            yield kept

    def lose(self, removed: Sequence[int], lost: dict[int, int]) -> None:
        """Correct `invalid` for kept documents that were `removed` (ascending) later, and for lost U+FFFD of others."""
        gone, entries = set(removed), []
        for row, seen, invalid in self.invalid:
            taken = min(invalid, lost.get(row, 0))
            if row in lost:
                lost[row] -= taken
            if invalid > taken and row not in gone:
                entries.append((row - bisect_left(removed, row), seen, invalid - taken))
        self.invalid = entries
        self.counts["invalid_utf8"] = sum(invalid for row, _, invalid in entries if row >= 0)

    def _without_empty(self, documents: list[Document], texts: Iterable[str]) -> list[Document]:
        """The documents of a batch that needs no change, without those of no text."""
        if all(texts) and not (self.filter and any(map(str.isspace, texts))):
            return documents
        return [document for document in documents if self._admit(document.text)]

    def _admit(self, text: str, faults: Iterable[str] = ()) -> bool:
        """Whether the document of this text is kept; counts it if not."""
        reason = None
        if not text or (self.filter and text.isspace()):
            reason = "empty"
        elif self.filter and "not_text" in faults:
            reason = drop_reason(text)
        if reason:
            self._drop(self.dropped, reason, text)
        return reason is None

    def _clean(self, text: str, faults: set[str]) -> tuple[str, bool, int]:
        """The text, whether normalising changed it, and how many bytes in it were not UTF-8."""
        invalid = 0
        if "invalid" in faults:
            text, invalid = repair(text)
        normal = normalize(text) if "unnormal" in faults else text
        changed = normal != text
        if self.filter == "line" and (
            ("not_text" in faults and _NOT_TEXT.search(normal))
            or (("short" in faults or changed) and _SHORT_LINE_IN_TEXT.search(f"\n{normal}"))
        ):
            left = self._drop_lines(normal)
            if invalid:
                invalid = max(0, invalid - normal.count("\ufffd") + left.count("\ufffd"))
            normal = left
        return normal, changed, invalid

    def _drop_lines(self, text: str) -> str:
        kept = []
        for line in text.split("\n"):
            if reason := line_drop_reason(line):
                self._drop(self.dropped_lines, reason, line)
            else:
                kept.append(line)
        return "\n".join(kept)

    def _drop(self, counter: Counter[str], reason: str, text: str) -> None:
        counter[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(_escaped(text[:EXAMPLE_CHARACTERS])[:EXAMPLE_CHARACTERS])
