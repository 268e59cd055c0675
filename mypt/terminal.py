"""Print to standard output and error, which may be a terminal, a pipe, an object that only writes, or absent.

Services, notebooks and windowed programs set `sys.stdout` and `sys.stderr` to None or to objects without `isatty` and
`flush`. All of mypt asks, prints lines and shows progress bars through this module, which escapes the characters that a
terminal obeys: names, paths and text come from files that anybody may have written.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# Control characters but tab and line end, lone surrogates, and characters that a terminal does not show: those that
# change the direction of what follows (bidi), line separators, marks of no width (but the joiners that scripts need).
_UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""`text` with characters that a terminal obeys or hides as Python's escapes: `\x1b`, `\u202e`, `\udce9`.

    Tabs and line ends stay.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    """`visible` text with line ends and tabs as escapes too: for a cell of a table, a label, an error."""
    return visible(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def is_terminal(stream: object) -> bool:
    """Whether a stream is a terminal; False for None, a closed one and one without the method."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def say(*lines: object, error: bool = False) -> None:
    """Print lines (none: an empty one) at once, `visible`, above a progress bar if there is one.

    Each of `lines` is one line: line ends within it, such as those of a name, are shown as escapes.
    error: to standard error, not output. Raises OSError if standard output cannot be written; what standard error does
    not take is lost.
    """
    text = "\n".join(visible(str(line)).replace("\n", "\\n") for line in lines or ("",)) + "\n"
    if not error:
        _write_output(text)
        return
    try:
        _write(text, sys.stderr)
    except OSError:
        discard(sys.stderr)


def say_error(line: object) -> None:
    """Print a line to standard error, as `say`."""
    say(line, error=True)


def say_json(value: object) -> None:
    """Print a value as JSON. Characters that standard output cannot encode are written as JSON's escapes."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text)
    if _encodable(text, sys.stdout) != text:
        text = json.dumps(value, indent=1)
    _write_output(f"{text}\n")


def write(text: str) -> None:
    """Write a model's text to standard output at once: `visible` on a terminal, unchanged elsewhere."""
    _write_output(visible(text) if is_terminal(sys.stdout) else text)


def progress_bar(*, shown: bool = True, leave: bool = False, desc: str | None = None, **options):
    """A tqdm bar (options: its arguments) on standard error if that is a terminal; else one that shows nothing."""
    from tqdm.auto import tqdm

    label = desc and one_line(desc)
    return tqdm(desc=label, disable=not (shown and is_terminal(sys.stderr)), leave=leave, **options)


def bytes_bar(what: str, total: int, shown: bool = True):
    """A `progress_bar` over bytes; `what` is its label."""
    return progress_bar(shown=shown, desc=what, total=total, unit="B", unit_scale=True)


def print_table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print `rows` under `columns`: by rich on a terminal, aligned text elsewhere.

    The first column is left-aligned, the others right-aligned.
    """
    from rich.cells import cell_len

    titles, *cells = [[_encodable(one_line(cell), sys.stdout) for cell in row] for row in [columns, *rows]]
    if is_terminal(sys.stdout):
        from rich.console import Console

        Console().print(_rich_table(_encodable(one_line(title), sys.stdout), titles, cells))
        return
    if title:
        say(one_line(title))
    widths = [max(map(cell_len, column)) for column in zip(titles, *cells, strict=True)]
    for row in [titles, *cells]:
        blanks = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        rest = [blank + cell for blank, cell in zip(blanks[1:], row[1:], strict=True)]
        say("  ".join([row[0] + blanks[0], *rest]).rstrip())


def _rich_table(title: str, columns: list[str], rows: list[list[str]]):
    from rich.table import Table
    from rich.text import Text  # no markup: a name may hold [red]

    table = Table(title=Text(title) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


class LiveTable:
    """A table that is drawn anew twice a second on a terminal, below the lines that are printed; it leaves no trace.

    Args:
        read: Gives title, columns and rows, as of `print_table`; called from a thread of its own.
        error: On standard error, not output.
    """

    def __init__(self, read: Callable[[], tuple[str, list[str], list[list[object]]]], *, error: bool = False):
        from rich.console import Console
        from rich.live import Live

        self._read, self._stream = read, sys.stderr if error else sys.stdout
        console = Console(file=self._stream)
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._live.console.print(self._shown(line), markup=False, highlight=False)

    def _table(self):
        title, columns, rows = self._read()
        return _rich_table(self._shown(title), columns, [[self._shown(cell) for cell in row] for row in rows])

    def _shown(self, text: object) -> str:
        return _encodable(one_line(text), self._stream)


def show_tracebacks() -> None:
    """Make Python's own tracebacks `visible` from now on: of all threads, and of errors that Python ignores."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_traceback
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_ignored


def _print_traceback(kind: type[BaseException], error: BaseException | None, trace, *title: str) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    say(*title, *text.removesuffix("\n").split("\n"), error=True)


def _print_thread(found) -> None:
    if found.exc_type is not SystemExit:
        name = found.thread.name if found.thread else threading.get_ident()
        _print_traceback(found.exc_type, found.exc_value, found.exc_traceback, f"Exception in thread {name}:")


def _print_ignored(found) -> None:
    title = f"{found.err_msg or 'Exception ignored in'}: {found.object!r}"
    _print_traceback(found.exc_type, found.exc_value, found.exc_traceback, title)


def discard(stream: object) -> None:
    """Discard the buffer of a standard stream, and everything written to it or to its descriptor from now on."""
    with suppress(AttributeError, OSError, ValueError):  # an object that is not a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def flushed_output() -> Iterator[None]:
    """Flush standard output at the end of the block. Text that it refuses is dropped, or Python would retry at exit.

    Raises OSError if it cannot be written.
    """
    try:
        yield
    finally:
        try:
            with _named():
                sys.stdout.flush()
        except OSError:
            discard(sys.stdout)
            raise


@contextmanager
def usable_streams() -> Iterator[None]:
    """Give `sys.stdout` and `sys.stderr` the methods that libraries call: `write`, `flush` and `isatty`."""
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


@contextmanager
def visible_libraries() -> Iterator[None]:
    """Make the warnings and log messages of all libraries `visible` inside the block."""
    form, factory = warnings.formatwarning, logging.getLogRecordFactory()

    class Record(factory if isinstance(factory, type) else logging.LogRecord):
        def getMessage(self) -> str:
            return visible(super().getMessage())

        def __setattr__(self, name: str, value: object) -> None:  # tracebacks, which formatters leave in the record
            shown = name in ("exc_text", "stack_info") and value
            super().__setattr__(name, visible(value) if shown else value)

    warnings.formatwarning = lambda *args, **options: visible(form(*args, **options))
    logging.setLogRecordFactory(Record)
    try:
        yield
    finally:
        warnings.formatwarning = form
        logging.setLogRecordFactory(factory)


def _write_output(text: str) -> None:
    with _named():
        _write(text, sys.stdout)


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def _write(text: str, stream: object) -> None:
    if stream is None or getattr(stream, "closed", False):
        return
    text = _encodable(text, stream)
    if bars := sys.modules.get("tqdm"):
        bars.tqdm.write(text, file=stream, end="")
    else:
        stream.write(text)
    with suppress(AttributeError):
        stream.flush()


def _encodable(text: str, stream: object) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class _Stream(io.TextIOBase):
    """A stream that forwards text to an object with at least `write`, or drops it."""

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
