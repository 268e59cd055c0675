"""Display of a sweep while it runs: a table on a terminal, a line for each event elsewhere."""

import sys
import threading
import time
from dataclasses import dataclass
from typing import Self

from mypt.formatting import duration
from mypt.terminal import LiveTable, is_terminal, say

SHOWN = 12  # trials that ended, the last ones, in the table


@dataclass
class _Row:
    device: str
    values: str
    began: float
    percent: int = 0
    loss: float | None = None
    state: str = "running"
    seconds: float = 0.0


class Progress:
    """A context. to_error: to standard error, not output. total: trials of the sweep. done: of earlier calls."""

    def __init__(self, total: int, done: int = 0, *, to_error: bool = False):
        self._total, self._done, self._to_error = total, done, to_error
        self._rows: dict[int, _Row] = {}
        self._turn = threading.Lock()
        shown = is_terminal(sys.stderr if to_error else sys.stdout)
        self._live = LiveTable(self._table, error=to_error) if shown else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._live:
            self._live.stop()

    def tell(self, line: str) -> None:
        if self._live:
            self._live.say(line)
        else:
            say(line, error=self._to_error)

    def started(self, number: int, device: str, values: str, seconds: float | None) -> None:
        """seconds: that it is expected to take."""
        with self._turn:
            self._rows[number] = _Row(device, values, time.monotonic())
        if not self._live:
            about = f", about {duration(seconds)}" if seconds else ""
            self.tell(f"trial {number} on {device}: {values}{about}")

    def reported(self, number: int, percent: int, loss: float) -> None:
        with self._turn:
            row = self._rows[number]
            row.percent, row.loss = percent, loss
        if not self._live:
            self.tell(f"trial {number}: {percent}%, loss {loss:.4f}")

    def ended(self, number: int, state: str, words: str, loss: float | None) -> None:
        """words: how it ended, as a line has it."""
        with self._turn:
            row = self._rows[number]
            row.state, row.seconds, row.loss = (
                state,
                time.monotonic() - row.began,
                loss if loss is not None else row.loss,
            )
            self._done += state != "interrupted"
        if not self._live:
            self.tell(f"trial {number}: {words} ({self._done} of {self._total} trials ended)")

    def _table(self) -> tuple[str, list[str], list[list[object]]]:
        with self._turn:
            rows = sorted(self._rows.items())
            title = f"{self._done} of {self._total} trials ended"
        running = [row for row in rows if row[1].state == "running"]
        ended = [row for row in rows if row[1].state != "running"][-SHOWN:]
        cells = []
        for number, row in [*ended, *running]:
            seconds = row.seconds or time.monotonic() - row.began
            loss = "" if row.loss is None else f"{row.loss:.4f}"
            cells.append([number, row.device, row.state, f"{row.percent}%", loss, duration(seconds), row.values])
        return title, ["trial", "device", "state", "part", "loss", "time", "values"], cells
