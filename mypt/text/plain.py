"""Cut plain text into documents: whole files, blocks between blank lines, or lines, in bounded memory."""

import codecs
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import IO, NamedTuple

LONGEST = 1_000_000  # characters; longer lines and blocks are cut into several documents, longer files read in parts

_CHUNK = 1 << 18  # bytes read at a time
_BOM = codecs.BOM_UTF8

# A line ends with \n, \r\n or \r. A blank line holds nothing but what str.isspace calls white space.
_END = r"(?:\n|\r\n?+)"
_BLANK_LINES = re.compile(rf"{_END}(?:[^\S\r\n]*+{_END})+")
_BLANK_LINES_LF = re.compile(r"\n(?:[^\S\n]*+\n)+")
_LEADING_BLANK_LINES = re.compile(rf"(?:[^\S\r\n]*+{_END})+")
_SPACES = [chr(code).encode() for code in range(0x3001) if chr(code).isspace() and chr(code) not in "\r\n"]
_SPACE_BYTES = b"".join(_SPACES) + b"\r\n"

# A document may begin (in bytes) after a line end, or after one that a blank line follows.
LINE_BOUNDARY = re.compile(rb"\n|\r\n?+")
RECORD_BOUNDARY = re.compile(rb"\n")
_BLANK_LINE = rb"(?=(?:" + b"|".join(map(re.escape, _SPACES)) + rb")*+[\r\n])"
BLOCK_BOUNDARY = re.compile(rb"(?:\n|\r\n?+)" + _BLANK_LINE)
_BLOCK_BOUNDARY_LF = re.compile(rb"\n" + _BLANK_LINE)  # the same where there is no \r, and 15 times as fast
BOUNDARIES = {"block": BLOCK_BOUNDARY, "line": LINE_BOUNDARY}

# Where a text may be cut so that normalising the parts and joining them equals normalising the whole.
_LINE_END = re.compile(r"(?<=\S)[\r\n]")
_WORD_END = re.compile(r"(?<=\S)\s")


class Document(NamedTuple):
    """The unit of text: deduplicated, split into train and val, ended by EOS. A very long one comes in parts."""

    text: str
    ended: bool = True  # False: the next item is the next part


_new = partial(tuple.__new__, Document)


def whole_documents(texts: Iterable[str]) -> Iterator[Document]:
    """Each text as a document; at half the cost of calling `Document`, which counts where documents are lines."""
    return map(_new, zip(texts, repeat(True)))


def batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """The texts in lists of so many characters or a few more; the last list has the rest."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def beginning(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The first texts, with so many characters together; the last of them may be cut."""
    left = characters
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def boundary(file: IO[bytes], position: int, pattern: re.Pattern[bytes], limit: int = sys.maxsize) -> int:
    """The first place at or after `position` where a document begins: the file's end if there is none.

    Once the search has passed `limit` it ends and returns some place after it.
    """
    if position == 0:
        return 0
    start = position - 1
    file.seek(start)
    window = b""
    while start <= limit and (chunk := file.read(_CHUNK)):
        if chunk.endswith(b"\r"):  # it may be half of \r\n
            chunk += file.read(1)
        window += chunk
        faster = pattern is BLOCK_BOUNDARY and b"\r" not in window
        if match := (_BLOCK_BOUNDARY_LF if faster else pattern).search(window):
            return start + match.end()
        # A blank line may have begun in the white space at the end of the window.
        start += len(window.rstrip(_SPACE_BYTES))
        window = window[len(window.rstrip(_SPACE_BYTES)) :]
    return start + len(window)


def decoded(file: IO[bytes], begin: int = 0, end: int | None = None) -> Iterator[str]:
    """The text of a range of bytes in chunks; without a byte-order mark, invalid bytes as lone surrogates."""
    if begin:
        file.seek(begin)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    left = sys.maxsize if end is None else end - begin
    first = begin == 0
    while left > 0 and (data := file.read(min(_CHUNK, LONGEST, left))):
        left -= len(data)
        if first:
            while len(data) < len(_BOM) and (more := file.read(1)):
                data += more
            data, first = data.removeprefix(_BOM), False
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def cut(chunks: Iterable[str], document: str) -> Iterator[Document]:
    """The documents of one text that comes in chunks of up to LONGEST: `document` is file, block or line."""
    if document == "file":
        return _parts(chunks)
    lists = (_blocks if document == "block" else _lines)(chunks)
    return whole_documents(chain.from_iterable(lists))


def cut_text(text: str, document: str) -> Iterator[Document]:
    """The documents of one text that is held in memory."""
    return cut(_slices(text), document)


def _parts(chunks: Iterable[str]) -> Iterator[Document]:
    """One document, in parts of LONGEST to 2 x LONGEST characters if it is longer than 2 x LONGEST."""
    held = ""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > 2 * LONGEST:
            place = _place_to_cut(held, start + LONGEST)
            yield Document(held[start:place], ended=False)
            start = place
        held = held[start:]
    yield Document(held)


def _place_to_cut(text: str, start: int) -> int:
    """At the end of a line; else of a word, where GPT-2's tokenizer cuts in any case; else anywhere."""
    for pattern in (_LINE_END, _WORD_END):
        if match := pattern.search(text, start, start + LONGEST):
            return match.start()
    return start + (text[start - 1 : start + 1] == "\r\n")


def _lines(chunks: Iterable[str]) -> Iterator[list[str]]:
    """Lines without their ends, the longest cut, in lists."""
    rest = ""
    for chunk in chunks:
        text = rest + chunk
        rest = "\r" if text.endswith("\r") else ""  # it may be half of \r\n
        if "\r" in text:
            text = text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n")
        lines = text.split("\n")
        rest = lines.pop() + rest
        if lines and len(lines[0]) > LONGEST:
            lines[:1] = _slices(lines[0])
        if len(rest) > LONGEST + 1:
            *pieces, last = _slices(rest.removesuffix("\r"))
            lines, rest = lines + pieces, last + "\r" * rest.endswith("\r")
        yield lines
    if rest:
        yield list(_slices(rest.removesuffix("\r")))


def _slices(line: str) -> Iterator[str]:
    for start in range(0, max(1, len(line)), LONGEST):
        yield line[start : start + LONGEST]


def _blocks(chunks: Iterable[str]) -> Iterator[list[str]]:
    """Runs of lines that are not blank, without the last line's end, the longest cut, in lists."""
    rest = ""
    for chunk in chunks:
        blocks, rest = _split_blocks(rest + chunk)
        if blocks and len(blocks[0]) > LONGEST:
            blocks[:1] = _short_blocks(blocks[0])
        while _too_long(rest):
            block, rest = _cut_block(rest)
            blocks += [block] * bool(block.strip())
        yield blocks
    blocks, _ = _split_blocks(rest + "\n\n")
    yield [piece for block in blocks for piece in _short_blocks(block)]


def _split_blocks(text: str) -> tuple[list[str], str]:
    """The blocks that a blank line ends, and the rest, of a text that begins where a block may begin."""
    if text[:1].isspace() and (blank := _LEADING_BLANK_LINES.match(text)):
        text = text[blank.end() :]
    if "\r" not in text:
        *blocks, rest = _BLANK_LINES_LF.split(text)
    elif text.count("\r") == text.count("\r\n"):
        *blocks, rest = (block.rstrip("\r") for block in _BLANK_LINES_LF.split(text))
    else:
        *blocks, rest = _BLANK_LINES.split(text)
    return blocks, rest


def _short_blocks(block: str) -> Iterator[str]:
    while _too_long(block):
        piece, block = _cut_block(block)
        if piece.strip():
            yield piece
    if block.strip():
        yield block


def _too_long(block: str) -> bool:
    """Whether it is too long whatever follows: white space at its end may be that of a blank line."""
    return len(block) > LONGEST and len(block.rstrip()) > LONGEST


def _cut_block(text: str) -> tuple[str, str]:
    """As many whole lines as fit, or else a piece of the first line; and the rest."""
    place = max(text.rfind("\n", 0, LONGEST), text.rfind("\r", 0, LONGEST)) + 1
    if text[place - 1 : place + 1] == "\r\n":
        place = max(text.rfind("\n", 0, place - 1), text.rfind("\r", 0, place - 1)) + 1
    place = place or LONGEST
    rest = text[place:]
    blank = _LEADING_BLANK_LINES.match(rest)
    return text[:place].rstrip("\r\n"), rest[blank.end() :] if blank else rest
