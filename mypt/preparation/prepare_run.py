"""One preparation: its input, its settings, and the staging folder that keeps what is finished."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from mypt.errors import DataError
from mypt.preparation.units import Piece
from mypt.shards.publishing import UNITS, write_error
from mypt.shards.settings import PrepareSettings
from mypt.terminal import progress_bar, show_tracebacks, visible_libraries
from mypt.text.plain import beginning
from mypt.text.sources import Unit, stamp

_libraries = visible_libraries()  # entered in a worker, for as long as it lives


@dataclass(frozen=True)
class PrepareRun:
    """The input, settings and folders that every step of a preparation gets."""

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
        """The folder of the finished units."""
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
            piece = Piece(number, self.units[number])
            documents = piece.documents(self.settings.cleaner(), self.settings.on_fault)
            texts += beginning((document.text for document in documents), characters)
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


def run_in_order(function: Callable[..., Any], calls: Iterable[tuple], workers: int) -> Iterator[Any]:
    """function(*call) for each call, in the order of the calls, on `workers` processes (1: in this one).

    `calls` is read as far ahead as the workers need, and what a function raises is raised here. Raises DataError if a
    worker was killed.
    """
    if workers == 1:
        for call in calls:
            yield function(*call)
        return
    # A fresh interpreter per worker: forking one that has threads (tokenizers, torch) can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting: deque = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(function, *call))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for want of memory; run the same command again with fewer --workers "
            "(what is finished is kept)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread a worker; what it prints is visible, Ctrl-C is the parent's, and a killed parent ends it."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show_tracebacks()
    _libraries.__enter__()

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
