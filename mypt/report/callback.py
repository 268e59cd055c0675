"""Write the report of a run while it trains."""

import time
from pathlib import Path

from transformers import TrainerCallback

from mypt.report.samples import EACH, MOST_BYTES
from mypt.report.write import REPORT_NAME, write_report
from mypt.terminal import say

PAUSE = 30.0  # seconds between two reports at least
SHARE = 100  # a report may take a hundredth of the time


class ReportCallback(TrainerCallback):
    """Write report.html at saves, without new samples, at most every `PAUSE` seconds, and before the run is uploaded.

    It never ends a run.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self._next = time.monotonic() + PAUSE

    def on_save(self, args, state, control, **kwargs):
        began = time.monotonic()
        if not state.is_world_process_zero or began < self._next:
            return
        _write(Path(args.output_dir), samples=0)
        self._next = time.monotonic() + max(PAUSE, SHARE * (time.monotonic() - began))

    def before_upload(self, run: Path) -> None:
        _write(run, samples=EACH, most_bytes=MOST_BYTES)


def _write(run: Path, **options) -> None:
    try:
        write_report(run, **options)
    except Exception as error:  # whatever it is: the run continues
        say(f"no {REPORT_NAME}: {error or type(error).__name__}", error=True)
