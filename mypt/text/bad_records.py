"""Raise records and files that cannot be read as errors, or skip and report them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mypt.errors import DataError

BEGINNING = 200  # characters kept of a bad record
ON_ERROR = ("stop", "skip")


class RecordError(DataError):
    """A record, or a file (or the rest of one), that cannot be read.

    reason: one word to count it under. place: `line 17`, `record 17`, or empty for a file. text: the record.
    """

    def __init__(self, path: str, place: str, reason: str, detail: str, text: str = "") -> None:
        where = path + (f":{place.removeprefix('line ')}" if place.startswith("line ") else f": {place}" * bool(place))
        super().__init__(f"{where}: {detail}" if place else detail)
        self.path, self.place, self.reason, self.detail = path, place, reason, detail
        self.text = text[:BEGINNING]

    def to_json(self) -> str:
        """One line of `skipped.jsonl`."""
        entry = {"path": self.path, "place": self.place, "reason": self.reason, "detail": self.detail}
        # A path or a record may hold bytes that are not UTF-8.
        line = json.dumps(entry | {"beginning": self.text}, ensure_ascii=False)
        return line.encode("utf-8", "backslashreplace").decode()


def ignore(fault: RecordError) -> None:
    """Skip what cannot be read, without a report."""


class SkippedRecords:
    """Counts the faults that it is called with and writes them to a file, one JSON object a line."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._found: Counter[str] = Counter()
        self._path.unlink(missing_ok=True)

    def __call__(self, fault: RecordError) -> None:
        with open(self._path, "a" if self._found else "w", encoding="utf-8") as file:
            file.write(fault.to_json() + "\n")
        self._found[fault.reason] += 1

    def counts(self) -> dict[str, int]:
        """The number of faults for each reason."""
        return dict(sorted(self._found.items()))


OnFault = Callable[[RecordError], object]


class Stopped(DataError):
    """A fault that ends the reading."""


def stop(fault: RecordError) -> NoReturn:
    """Raise the fault as an error that names the alternative."""
    raise Stopped(f"{fault} (--on-error skip of mypt prepare, append and tokenizer leaves it out)")
