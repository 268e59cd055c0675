"""Stream the texts of records written as JSON lines, JSON arrays and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import IO

from mypt.text.bad_records import OnFault, RecordError
from mypt.text.plain import batches, decoded

_LIST_CHARACTERS = 1 << 20
LONGEST_VALUE = 1 << 26  # characters of one record of JSON, one line or field of CSV
_scan = json.JSONDecoder().scan_once
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_OUTER_KEY = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:')
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def json_texts(
    file: IO[bytes], path: str, column: str, on_fault: OnFault, begin: int = 0, end: int | None = None
) -> Iterator[list[str]]:
    """The texts of the JSON objects, one a line, in a range of bytes, in lists; blank lines are skipped."""
    before, lines_before = 0, None  # the lines before `begin` are counted at the first fault
    for lines in _whole_lines(decoded(file, begin, end)):
        texts = []
        for number, line in enumerate(lines, 1):
            try:
                record, stop = _scan(line, 0)
                text = record[column]
                ended = stop == len(line) or not line[stop:].strip(" \t\r")
                if ended and type(text) is str and len(line) <= LONGEST_VALUE:
                    texts.append(text)
                    continue
            except (StopIteration, ValueError, LookupError, TypeError, RecursionError):
                pass
            if (line := line.removeprefix("\ufeff")).strip():
                try:
                    texts.append(_line_text(line, column))
                except _BadRecord as bad:
                    if lines_before is None:
                        lines_before = _lines_before(file, begin)
                    place = f"line {lines_before + before + number}"
                    on_fault(RecordError(path, place, bad.reason, bad.detail, line))
        before += len(lines)
        yield texts


def _whole_lines(chunks: Iterable[str]) -> Iterator[list[str]]:
    r"""Lines without their `\n` (JSON needs no other line end), in lists.

    Of a line of more than LONGEST_VALUE characters only that many and one more.
    """
    held: list[str] = []
    size = 0
    for chunk in chunks:
        head, newline, tail = chunk.partition("\n")
        held.append(head[: max(0, LONGEST_VALUE + 1 - size)])
        size += len(held[-1])
        if newline:
            *lines, rest = tail.split("\n")
            yield ["".join(held), *lines]
            held, size = [rest], len(rest)
    if last := "".join(held):
        yield [last]


class _BadRecord(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def _line_text(line: str, column: str) -> str:
    """The text of a line that is unusual or wrong."""
    if len(line) > LONGEST_VALUE:
        detail = f"a line of more than {LONGEST_VALUE:,} characters; write its text to a file of its own, as plain text"
        raise _BadRecord("broken_json", detail)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRecord("broken_json", f"broken JSON ({error}); expected one object per line") from None
    return _text_of(record, column)


def _text_of(record, column: str) -> str:
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise _BadRecord("not_an_object", f"a {kind}; expected an object such as {{{column!r}: '...'}}")
    if column not in record:
        raise _BadRecord("no_column", f"no column {column!r}; {_columns(record)}")
    if not isinstance(record[column], str | None):
        kind = type(record[column]).__name__
        raise _BadRecord("not_a_text", f"column {column!r} holds a {kind}, not text; choose another --text-column")
    return record[column] or ""


def _columns(record: dict) -> str:
    lists = [key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        return _not_lines(", ".join(record), lists[0])
    return f"--text-column is one of: {', '.join(record)}"


def _not_lines(keys: str, key: str) -> str:
    return f"the keys are {keys}. Write the records one per line: jq -c '.[\"{key}\"][]' FILE > NEW.jsonl"


def _lines_before(file: IO[bytes], position: int) -> int:
    """Line ends before a byte; only files that can seek are read from a byte other than 0."""
    if not position:
        return 0
    here, count = file.tell(), 0
    file.seek(0)
    while position > 0 and (data := file.read(min(1 << 20, position))):
        count += data.count(b"\n")
        position -= len(data)
    file.seek(here)
    return count


def json_value_texts(file: IO[bytes], path: str, column: str, on_fault: OnFault) -> Iterator[list[str]]:
    """The texts of the objects of a JSON file, in lists: of an array, or one after the other, over any lines.

    A file is never held as a whole. Broken JSON ends the file: where the next record begins is not known.
    """
    return batches(_value_texts(_values(decoded(file)), path, column, on_fault), _LIST_CHARACTERS)


def _value_texts(values: Iterator, path: str, column: str, on_fault: OnFault) -> Iterator[str]:
    for number in count(1):
        try:
            value = next(values)
            text = _text_of(value, column)
        except StopIteration:
            return
        except _BadRecord as bad:
            beginning = "" if bad.reason == "broken_json" else json.dumps(value, ensure_ascii=False)
            on_fault(RecordError(path, f"record {number}", bad.reason, bad.detail, beginning))
        else:
            yield text


def _values(chunks: Iterator[str]) -> Iterator:
    """The elements of the arrays, and the other values, of a JSON text that comes in chunks.

    Raises _BadRecord for what is no JSON, and for a value of more than LONGEST_VALUE characters.
    """
    buffer = _Buffer(chunks)
    in_array, comma = False, False  # comma: another element must follow, or (before the first) may not
    while mark := buffer.skip_space():
        if not in_array:
            if mark == "[":
                buffer.place += 1
                in_array, first = True, True
            else:
                yield buffer.value()
            continue
        if mark == "]" and (first or not comma):
            buffer.place += 1
            in_array = False
        elif mark == "," and not first and not comma:
            buffer.place += 1
            comma = True
        elif first or comma:
            yield buffer.value()
            first, comma = False, False
        else:
            raise buffer.broken(f"expected ',' or ']', found {mark!r}")
    if in_array:
        raise buffer.broken("the array has no end; the file may be cut off")


class _Buffer:
    """A window on a JSON text: `place` is where the next value or mark begins."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self.text, self.place, self._chunks, self._lines = "", 0, chunks, 1

    def skip_space(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self.place = _SPACE.match(self.text, self.place).end()
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._more():
                return ""

    def value(self):
        """The value that begins at `place`, which is moved after it."""
        while True:
            try:
                value, end = _scan(self.text, self.place)
                if end < len(self.text) or not self._more():  # the next chunk may continue a number
                    self.place = end
                    return value
                continue
            except StopIteration as error:
                message, place = "Expecting value", error.value
            except ValueError as error:  # not always a JSONDecodeError: a number may have too many digits
                message, place = getattr(error, "msg", str(error)), getattr(error, "pos", self.place)
            except RecursionError:
                message, place = "nested too deeply", self.place
            unfinished = place > len(self.text) - 16 or message.startswith("Unterminated string")
            behind = place - self.place
            # At each failure as much again is read, so that a long value is parsed a few times only.
            wanted = 2 * (len(self.text) - self.place)
            if not unfinished or not self._more(wanted):
                self.place += behind
                raise self.broken(message)
            if len(self.text) - self.place > LONGEST_VALUE:
                raise self._too_long()

    def broken(self, message: str) -> _BadRecord:
        line = self._lines + self.text.count("\n", 0, self.place)
        return _BadRecord("broken_json", f"broken JSON in line {line} ({message}); the file is not read further")

    def _too_long(self) -> _BadRecord:
        key = _OUTER_KEY.match(self.text, self.place)
        hint = "expected an array of objects, or one object per line"
        hint = f"{hint}; {_not_lines(key[1] + ', ...', key[1])}" if key else hint
        return _BadRecord("broken_json", f"a value of more than {LONGEST_VALUE:,} characters; {hint}")

    def _more(self, wanted: int = 0) -> bool:
        """Read a chunk, or so many characters after `place`; False at the end of the file."""
        parts = [self.text[self.place :]]
        self._lines += self.text.count("\n", 0, self.place)
        size = len(parts[0])
        while (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            size += len(chunk)
            if chunk and size >= wanted:
                break
        grown = size > len(parts[0])
        self.text, self.place = "".join(parts), 0
        return grown


def csv_texts(file: IO[bytes], path: str, column: str, on_fault: OnFault) -> Iterator[list[str]]:
    """The texts of a CSV or TSV file with a header row, in lists; quoted fields may hold line ends.

    The delimiter is the one with which the header row has the column: a tab first in .tsv, else a comma, then a tab, a
    semicolon, a bar.
    """
    return batches(_row_texts(file, path, column, on_fault), _LIST_CHARACTERS)


def _row_texts(file: IO[bytes], path: str, column: str, on_fault: OnFault) -> Iterator[str]:
    csv.field_size_limit(LONGEST_VALUE)
    stream = io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8-sig", errors="surrogateescape", newline="")
    first = stream.readline(LONGEST_VALUE)
    lines = _CsvLines(stream)
    rows = csv.reader(chain([first], lines), strict=True, delimiter=_delimiter(first, path, column))
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise RecordError(path, "line 1", "broken_csv", f"broken CSV ({error}); repair that row", first) from None
    if header.count(column) != 1:
        detail = f"{path}: {header.count(column)} columns are called {column!r}; rename all but one of them"
        if not header:
            detail = f"{path} has no header row; its first line must name the columns"
        elif column not in header:
            names = ", ".join(header)[:200]
            detail = f"{path}: no column {column!r} in its header row; --text-column is one of: {names}"
        raise RecordError(path, "", "no_column", detail)
    place, width = header.index(column), len(header)
    while True:
        begun_at = rows.line_num + lines.lost + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            last = rows.line_num + lines.lost
            more = f"; its quotes make lines {begun_at} to {last} one row" * (last > begun_at)
            detail = f"broken CSV ({error}){more}; repair that row"
            on_fault(RecordError(path, f"line {begun_at}", "broken_csv", detail))
            continue
        if len(row) == width:
            yield row[place]
        elif row:
            delimiter = rows.dialect.delimiter
            detail = f"a row of {len(row)} fields under a header of {width}"
            detail += f"; repair it, or quote the field that holds {_DELIMITERS[delimiter]}"
            on_fault(RecordError(path, f"line {begun_at}", "row_width", detail, delimiter.join(row)))


class _CsvLines:
    """The lines of a file. One of more than LONGEST_VALUE characters raises csv.Error; the next line is after its row.

    lost: how many lines the reader has not seen, and so not counted.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._quoted, self.lost = stream, False, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        if len(line) <= LONGEST_VALUE:
            return line
        while line and (self._quoted or not line.endswith(("\n", "\r"))):
            self.lost += line.endswith(("\n", "\r"))
            line = self._read()
        self.lost += 1
        raise csv.Error(f"a line of more than {LONGEST_VALUE:,} characters")

    def _read(self) -> str:
        line = self._stream.readline(LONGEST_VALUE + 1)
        self._quoted ^= line.count('"') % 2 == 1  # whether the next line continues a field
        return line


def _delimiter(header: str, path: str, column: str) -> str:
    """The first delimiter that gives the header the column; else the one that gives it the most columns."""
    tabbed = any(suffix in path.lower() for suffix in (".tsv", ".tab"))
    found = []
    for delimiter in "\t,;|" if tabbed else _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if column in names:
            return delimiter
        found.append((-len(names), len(found), delimiter))
    return min(found)[2]
