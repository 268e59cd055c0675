"""Standard output and error as they are found: a terminal, a pipe, an object that only writes, or nothing at all.

Services, notebooks and windowed programs set `sys.stdout` and `sys.stderr` to None or to objects without `isatty` and
`flush`. All of mypt asks, prints lines and shows progress bars through this module.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def is_terminal(stream: object) -> bool:
    """Whether a stream is a terminal; False for None, a closed one and one that cannot tell."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def say(line: str, *, error: bool = False) -> None:
    """Print a line at once, above a progress bar if there is one. error: to standard error, not output."""
    stream = sys.stderr if error else sys.stdout
    if stream is None or getattr(stream, "closed", False):
        return
    if bars := sys.modules.get("tqdm"):
        bars.tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
    with suppress(AttributeError):
        stream.flush()


def progress_bar(*, shown: bool = True, leave: bool = False, **options):
    """A tqdm bar (options: its arguments) on standard error if that is a terminal; else one that shows nothing."""
    from tqdm.auto import tqdm

    return tqdm(disable=not (shown and is_terminal(sys.stderr)), leave=leave, **options)


@contextmanager
def usable_streams() -> Iterator[None]:
    """`sys.stdout` and `sys.stderr` inside have what libraries call: `write`, `flush` and `isatty`."""
    given = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in given.items():
        complete = all(hasattr(stream, method) for method in ("write", "flush", "isatty"))
        if not complete or getattr(stream, "closed", False):
            setattr(sys, name, _Stream(stream))
    try:
        yield
    finally:
        for name, stream in given.items():
            setattr(sys, name, stream)


class _Stream(io.TextIOBase):
    """Passes text on to an object that has at least `write`, or drops it."""

    encoding = "utf-8"

    def __init__(self, target: object):
        self._target = None if getattr(target, "closed", False) else target

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if hasattr(self._target, "write"):
            self._target.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(AttributeError):
            self._target.flush()
