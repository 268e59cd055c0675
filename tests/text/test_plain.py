"""Cutting text: the documents of a file depend on its text alone, not on how it is read."""

import io
import random
from itertools import pairwise

import pytest

from mypt.text import plain
from mypt.text.clean import normalize
from mypt.text.plain import BLOCK_BOUNDARY, LINE_BOUNDARY, RECORD_BOUNDARY, Document, boundary, cut, decoded

PIECES = ["\n", "\r", "\r\n", "\n\n", " ", "\t", "\x0b", "\x85", "\xa0", "\u2028", "\u3000", "\ufeff", "a", "é", "😀 b"]


def random_text(seed: int) -> str:
    draw = random.Random(seed)
    weights = [draw.choice([1, 5, 20]) for _ in PIECES]
    return "".join(draw.choices(PIECES, weights, k=draw.choice([0, 1, 5, 50, 300])))


def texts(text: str, document: str) -> list[str]:
    found = list(cut([text[i : i + plain.LONGEST] for i in range(0, len(text), plain.LONGEST)], document))
    assert all(item.ended for item in found)
    return [item.text for item in found]


def reference(text: str, document: str) -> list[str]:
    """Lines and blocks as Python's own universal newlines and str.isspace have them, line by line."""
    lines = list(io.StringIO(text, newline=""))
    if document == "line":
        return [line.rstrip("\r\n") for line in lines]
    blocks = [""]
    for line in lines:
        if line.strip():
            blocks[-1] += line
        elif blocks[-1]:
            blocks.append("")
    return [block.rstrip("\r\n") for block in blocks if block]


@pytest.mark.parametrize("document", ["block", "line"])
def test_blocks_and_lines_are_those_of_a_loop_over_the_lines(document):
    for seed in range(600):
        text = random_text(seed)
        assert texts(text, document) == reference(text, document), seed


@pytest.mark.parametrize("document", ["file", "block", "line"])
@pytest.mark.parametrize("longest", [7, 30, 1_000_000])
def test_the_size_of_the_chunks_changes_nothing(document, longest, monkeypatch):
    monkeypatch.setattr(plain, "LONGEST", longest)
    for seed in range(200):
        text = random_text(seed)
        whole = list(cut([text[i : i + longest] for i in range(0, len(text), longest)], document))
        for size in (1, 2, 5):
            assert list(cut([text[i : i + size] for i in range(0, len(text), size)], document)) == whole, (seed, size)


@pytest.mark.parametrize(
    ("document", "pattern"), [("line", LINE_BOUNDARY), ("block", BLOCK_BOUNDARY), ("block", LINE_BOUNDARY)]
)
def test_cutting_the_bytes_at_boundaries_cuts_no_document(document, pattern, monkeypatch):
    """A file read as several ranges of bytes has the documents of the whole file; a range of one is a document less."""
    monkeypatch.setattr(plain, "_CHUNK", 5)
    differs = 0
    for seed in range(200):
        data = random_text(seed).encode()
        file = io.BytesIO(data)
        ends = sorted({boundary(file, place, pattern) for place in range(0, len(data) + 1, 3)} | {len(data)})
        read = [
            item.text for begin, end in pairwise(ends) for item in cut(decoded(io.BytesIO(data), begin, end), document)
        ]
        differs += read != [item.text for item in cut(decoded(io.BytesIO(data)), document)]
    assert differs == 0 if (document, pattern) != ("block", LINE_BOUNDARY) else differs > 0


def test_a_boundary_is_the_first_at_or_behind_the_place():
    file = io.BytesIO(b"ab\r\ncd\re\n \n\nf")
    assert [boundary(file, place, LINE_BOUNDARY) for place in range(14)] == [
        0,
        4,
        4,
        4,
        4,
        7,
        7,
        7,
        9,
        9,
        11,
        11,
        12,
        13,
    ]
    assert [boundary(file, place, RECORD_BOUNDARY) for place in (0, 1, 4, 5, 13)] == [0, 4, 4, 9, 13]
    assert [boundary(file, place, BLOCK_BOUNDARY) for place in (0, 1, 9, 10, 11, 12)] == [0, 9, 9, 11, 11, 13]


def test_a_search_gives_up_behind_its_limit(monkeypatch):
    monkeypatch.setattr(plain, "_CHUNK", 8)
    file = io.BytesIO(b"x" * 100 + b"\n\n")
    assert 50 < boundary(file, 30, BLOCK_BOUNDARY, limit=50) < 80
    assert boundary(file, 30, BLOCK_BOUNDARY) == 101


def test_decoding_drops_one_byte_order_mark_and_keeps_invalid_bytes():
    text = "\ufeffone\ufeff \U0001f600"
    for chunk in (1, 2, 3, 100):
        pieces = io.BytesIO(b"\xef\xbb\xbf" + text.encode() + b"\xff\xf0\x9f")
        pieces.read1 = pieces.read
        read = pieces.read
        pieces.read = lambda size=-1, read=read, chunk=chunk: read(min(size, chunk))
        assert "".join(decoded(pieces)) == text + "\udcff\udcf0\udc9f"


def test_blocks_are_bounded_and_lose_nothing_but_line_ends(monkeypatch):
    monkeypatch.setattr(plain, "LONGEST", 100)
    text = "".join(random.Random(0).choice("ab\n") for _ in range(5000)) + "c" * 1000
    for document in ("block", "line"):
        found = texts(text, document)
        assert max(map(len, found)) == 100
        assert "".join(found).replace("\n", "") == text.replace("\n", "")


def test_a_block_is_cut_between_lines_where_it_can_be(monkeypatch):
    monkeypatch.setattr(plain, "LONGEST", 10)
    assert texts("one two\nthree\nfour\n\nfive\n", "block") == ["one two", "three\nfour", "five"]
    assert texts("abcd\r\ndefgh\r\nijk\n", "block") == ["abcd", "defgh\r\nijk"]
    assert texts("abcdefghi\r\nj", "block") == ["abcdefghi", "j"]
    assert texts("x" * 10 + "\r\n" + "y" * 21 + "\nz", "block") == ["x" * 10, "y" * 10, "y" * 10, "y\nz"]
    assert texts("x" * 10 + "\n\n" + "y" * 11 + "\n\nz", "line") == ["x" * 10, "", "y" * 10, "y", "", "z"]


def test_a_long_file_comes_in_parts_that_normalise_like_the_whole(monkeypatch):
    monkeypatch.setattr(plain, "LONGEST", 40)
    draw = random.Random(3)
    for _ in range(300):
        pieces = draw.choices(["word", " ", "  \n", "\r\n", "\n", "e\u0301", "\t", "x\u0327", " \r"], k=400)
        text = "".join(pieces)
        parts = list(cut([text], "file"))
        assert "".join(part.text for part in parts) == text
        assert [part.ended for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(40 <= len(part.text) <= 80 for part in parts[:-1])
        assert "".join(normalize(part.text) for part in parts) == normalize(text)


def test_parts_end_at_a_line_or_a_word_or_else_anywhere(monkeypatch):
    monkeypatch.setattr(plain, "LONGEST", 10)
    assert [part.text for part in cut(["aaaa bbbb cccc\ndddd eeee"], "file")] == ["aaaa bbbb cccc", "\ndddd eeee"]
    assert [part.text for part in cut(["aaaa bbbb cccc dddd eeee"], "file")] == ["aaaa bbbb cccc", " dddd eeee"]
    assert [part.text for part in cut(["a" * 25], "file")] == ["a" * 10, "a" * 15]
    assert [part.text for part in cut(["\r" * 9 + "\r\n" * 8], "file")] == ["\r" * 9 + "\r\n", "\r\n" * 7]
    assert list(cut(["a" * 20], "file")) == [Document("a" * 20)]
    assert list(cut([], "file")) == [Document("")]
