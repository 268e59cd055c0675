"""One preparation: its input, its settings, and the staging folder that keeps what is finished."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from mypt.errors import DataError
from mypt.preparation.units import Piece
from mypt.preparation.workers import run_in_order
from mypt.shards.publishing import UNITS, write_error
from mypt.shards.settings import PrepareSettings
from mypt.terminal import progress_bar
from mypt.text.sources import Unit, stamp


@dataclass(frozen=True)
class PrepareRun:
    """What every step of a preparation is given."""

    staging: Path  # inside the directory that is made
    settings: PrepareSettings
    units: list[Unit]  # the input, in order
    workers: int
    say: Callable[[str], object]
    progress: bool
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise DataError(f"workers is {self.workers}; it must be 1 or more (left out: one for each core)")

    @property
    def folder(self) -> Path:
        """Of the finished units."""
        return self.staging / UNITS

    @property
    def pieces(self) -> list[Piece]:
        return [Piece(number, unit) for number, unit in enumerate(self.units)]

    def scratch(self) -> Path:
        """An empty folder for files that nobody needs after a kill."""
        path = self.folder / "scratch"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def corpus(self) -> str:
        """A hash that changes with any unit and with any setting that decides a tokenizer."""
        content = [self.settings.training(), [[unit.to_dict(), stamp(unit)] for unit in self.units]]
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

    def sample(self, characters: int) -> list[str]:
        """The beginnings of up to four units, spread over the input, `characters` from each."""
        texts = []
        for number in sorted({len(self.units) * part // 4 for part in range(4)}):
            left = characters
            for text, _ in Piece(number, self.units[number]).documents(self.settings.cleaner(), self.settings.on_fault):
                texts.append(text[:left])
                left -= len(text)
                if left <= 0:
                    break
        return texts

    def each(
        self, what: str, function: Callable, pieces: list[Piece], call: Callable[[Piece], tuple]
    ) -> Iterator[tuple[Piece, Any]]:
        """Each piece with function(*call(piece)), in order; of `max_documents` only the pieces that are needed."""
        left, used = self.settings.max_documents, []

        def calls() -> Iterator[tuple]:
            for piece in pieces:
                if left == 0:
                    return
                used.append(piece if left is None else replace(piece, limit=left))
                yield call(used[-1])

        workers = min(self.workers, len(pieces)) if left is None else 1  # each decides how many the next may read
        with self.bar(what, len(pieces), "units") as bar:
            for number, result in enumerate(run_in_order(function, calls(), workers)):
                left = None if left is None else left - result.documents_read
                bar.update()
                yield used[number], result

    def bar(self, what: str, total: int, unit: str):
        return progress_bar(shown=self.progress, desc=what, total=total, unit=f" {unit}", unit_scale=True)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn an OSError into a DataError that reports what is kept, and about how much more room is needed."""
        try:
            yield
        except OSError as error:
            paths = [path for path in self.folder.glob("*.ids") if path.with_suffix(".json").is_file()]
            kept, held = "nothing was finished yet", sum(path.stat().st_size for path in paths)
            if paths:
                needed = 2 * held * len(self.units) / len(paths) - held  # the units, then the shards
                kept = f"{len(paths)} of {len(self.units)} units are finished and kept, about {needed / 1e6:,.1f} MB"
                kept += " more are needed"
            raise write_error(error, self.staging.parent, kept) from None


def few(names: Collection[object], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" * (len(names) > most)
    return ", ".join(map(str, islice(names, most))) + more
