"""Run the same function over numbered pieces of work in several processes; results come back in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mypt.errors import DataError
from mypt.terminal import show_tracebacks, visible_libraries

_libraries = visible_libraries()  # entered in a worker, for as long as it lives


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


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
