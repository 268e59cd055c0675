"""Write the report of a run: on demand, and at the end of every `mypt train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mypt.checkpoints.state import METRICS_NAME
from mypt.errors import CheckFailed, MyPTError
from mypt.files import replace_text
from mypt.report.content import read_content
from mypt.report.page import page
from mypt.report.samples import EACH, MOST_BYTES, Samples, make_samples, model_folder, read_samples, weights_bytes
from mypt.storage.run_files import GENERATOR, REPORT_NAME
from mypt.terminal import say
from mypt.training.launch import rank
from mypt.training.result import RESULT_NAME


def write_report(run: Path, out: Path | None = None, *, samples: int = EACH, most_bytes: float = float("inf")) -> Path:
    """Write the page about a run to `out` (default: report.html in its folder), and return where it is.

    samples: texts of each evaluation set that the model continues, unless samples.json has them already; 0: the page
    has those of samples.json, if any, and no model is loaded. most_bytes: of weights that are loaded for it.
    Raises CheckpointError for a folder that is no run or is damaged, MyPTError for an `out` that holds something else,
    OSError if it cannot be written.
    """
    out = out or run / REPORT_NAME
    content = read_content(run)
    require_report(out)
    found, reason = _samples(run, samples, most_bytes)
    text = page(content, found, reason)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, text)
    return out


def require_report(out: Path) -> None:
    """Raise MyPTError if `out` exists and is not a report of an earlier call."""
    if out.is_dir():
        raise MyPTError(f"--out {out} is a folder; name the file to write, such as {out / REPORT_NAME}")
    if out.exists():
        with open(out, encoding="utf-8", errors="replace") as file:
            if GENERATOR not in file.read(500):
                raise MyPTError(f"--out {out} exists and is no report of mypt; choose another name, or remove it")


def _samples(run: Path, each: int, most_bytes: float) -> tuple[Samples | None, str]:
    """The samples, or the reason why there are none."""
    found = read_samples(run)
    if not each or (found and found["each"] == each):
        return found, "" if found else "none were asked for"
    folder = model_folder(run)
    if folder and weights_bytes(folder) > most_bytes:
        return found, "the model is large; mypt report loads it and makes them"
    try:
        return make_samples(run, each), ""
    except (MyPTError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: torch's for too little memory
        return found, str(error) or type(error).__name__


@contextmanager
def report_at_end(run: Path) -> Iterator[None]:
    """Write the report of a run when the block ends that trains it, however it ends.

    A report that cannot be made is one line on standard error. Only the main process of a launch writes it, and only if
    the block changed something in the run folder.
    """
    before, ended = _times(run), False
    try:
        yield
        ended = True
    except CheckFailed:  # of a finished run: a guard that no step kept, or an upload
        ended = True
        raise
    finally:
        try:
            after = _times(run)
            if rank() == 0 and any(after) and (after != before or not (run / REPORT_NAME).exists()):
                write_report(run, samples=EACH if ended else 0, most_bytes=MOST_BYTES)
        except (Exception, KeyboardInterrupt) as error:  # whatever it is: the run itself has ended as it has
            say(f"no {REPORT_NAME}: {str(error) or type(error).__name__}", error=True)


def _times(run: Path) -> list[int]:
    """The times, in ns, at which the records of the training were written."""
    paths = (run / RESULT_NAME, run / METRICS_NAME)
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]
