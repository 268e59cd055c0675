"""Texts of records written as text, JSON lines and CSV, streamed."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from typing import IO

from mypt.errors import DataError
from mypt.text.plain import decoded

_LIST_CHARACTERS = 1 << 20  # or a little more
_scan = json.JSONDecoder().scan_once


def json_texts(file: IO[bytes], path: str, begin: int, end: int | None, column: str) -> Iterator[list[str]]:
    """The texts of the JSON objects, one a line, between two bytes of a file; blank lines are skipped."""
    before = 0
    for lines in _whole_lines(decoded(file, begin, end)):
        texts = []
        for number, line in enumerate(lines, 1):
            try:
                record, stop = _scan(line, 0)
                text = record[column]
                if type(text) is str and (stop == len(line) or not line[stop:].strip(" \t\r")):
                    texts.append(text)
                    continue
            except (StopIteration, ValueError, LookupError, TypeError, RecursionError):
                pass
            if (line := line.removeprefix("\ufeff")).strip():
                texts.append(_json_text(line, column, f"{path}:{_lines_before(path, begin) + before + number}"))
        before += len(lines)
        yield texts


def _whole_lines(chunks: Iterable[str]) -> Iterator[list[str]]:
    r"""Lines without their `\n` (JSON needs no other line end), in lists."""
    held: list[str] = []
    for chunk in chunks:
        head, newline, tail = chunk.partition("\n")
        held.append(head)
        if newline:
            *lines, rest = tail.split("\n")
            yield ["".join(held), *lines]
            held = [rest]
    if last := "".join(held):
        yield [last]


def _json_text(line: str, column: str, place: str) -> str:
    """The text of a record that is unusual or wrong."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: broken JSON ({error}); expected one object per line") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: a {type(record).__name__}; expected an object such as {{{column!r}: '...'}}")
    if column not in record:
        raise DataError(f"{place}: no column {column!r}; --text-column is one of: {', '.join(record)}")
    if not isinstance(record[column], str | None):
        kind = type(record[column]).__name__
        raise DataError(f"{place}: column {column!r} holds a {kind}, not text; choose another --text-column")
    return record[column] or ""


def _lines_before(path: str, position: int) -> int:
    count = 0
    if position:
        with open(path, "rb") as file:
            while position > 0 and (data := file.read(min(1 << 20, position))):
                count += data.count(b"\n")
                position -= len(data)
    return count


def csv_texts(file: IO[bytes], path: str, column: str) -> Iterator[list[str]]:
    """The texts of a CSV file with a header row, in lists; quoted fields may hold line ends."""
    csv.field_size_limit(sys.maxsize)
    stream = io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(stream, strict=True)
    texts: list[str] = []
    size = 0
    try:
        header = next(rows, None)
        if not header:
            raise DataError(f"{path} has no header row; its first line must name the columns")
        if column not in header:
            names = ", ".join(header)[:200]
            raise DataError(f"{path}: no column {column!r} in its header row; --text-column is one of: {names}")
        place, width = header.index(column), len(header)
        for row in rows:
            if len(row) != width:
                if not row:
                    continue
                fields = f"a row of {len(row)} fields under a header of {width}"
                raise DataError(f"{path}:{rows.line_num}: {fields}; repair it, or quote the field that holds commas")
            texts.append(row[place])
            size += len(row[place])
            if size > _LIST_CHARACTERS:
                yield texts
                texts, size = [], 0
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: broken CSV ({error}); repair that row") from None
    yield texts
