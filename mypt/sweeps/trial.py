"""One run of `mypt train` as a process: started with overrides, watched through its metrics, ended by SIGTERM.

A trial of a sweep and a rung of a ladder are such runs. This module imports no torch.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from mypt.checkpoints.state import METRICS_NAME
from mypt.errors import CheckpointError, Interrupted
from mypt.files import replace_text
from mypt.training.result import RESULT_NAME, Result, read_result
from mypt.yaml12 import dump_yaml, load_yaml

LOG_NAME = "train.log"
POLL = 0.2  # seconds between two looks at a running process
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 600.0  # seconds that a process may take to save after SIGTERM, then SIGKILL

# The process asks Linux to be killed when the thread that started it ends, even by kill -9 of the whole process
# (PR_SET_PDEATHSIG, which outlasts exec); the check is for a parent that ended before that. Its run folder is whole.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Ended:
    """How a process of `run_trial` ended.

    Attributes:
        state: Of `Result` (`completed`, `stopped`, `interrupted`, `failed`), or `pruned` (ended because `on_metrics`
            asked for it), `refused` (bad input: it ended with exit code 2 before a run was there) or `killed` (by a
            signal that it could not answer; the folder can be resumed).
        reason: One word: that of `Result`; `pruned`, `refused`, or the signal's name.
        exit_code: As of subprocess: minus the signal's number for a killed process.
        step: Optimizer steps that are trained; None where no run has recorded it.
        objective: `eval_constrained_loss` of OUT/best in nats, the target's loss where nothing is guarded; None
            without evaluation sets, and for a run that did not end by itself.
        best_step: The saved step that it is.
        seconds: Wall time of the process; cpu_seconds: its processor time, user and system, its workers' included.
        message: What it printed last.
    """

    state: str
    reason: str
    exit_code: int
    step: int | None
    objective: float | None
    best_step: int | None
    seconds: float
    cpu_seconds: float
    message: str


def write_recipe(path: Path, content: dict) -> None:
    """Write the recipe of trials, unless the file holds it already: other processes may be reading it."""
    text = dump_yaml(content)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        replace_text(path, text)


def train_command(recipe: str | Path, overrides: Mapping[str, object], folder: str | Path) -> list[str]:
    """The words of `mypt train` for the recipe with overrides {section.key: value}, begun or resumed in `folder`."""
    given = {**overrides, "training.output_dir": str(folder)}
    return ["mypt", "train", str(recipe), "--resume", "--yes", *(as_override(*pair) for pair in given.items())]


def as_override(key: str, value: object) -> str:
    """--section.key=value, which `mypt.recipe.load_recipe` reads as this value."""
    plain = isinstance(value, str) and value and "\n" not in value and _reads_as(value, value)
    return f"--{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def _reads_as(text: str, value: object) -> bool:
    try:
        return load_yaml(text) == value
    except yaml.YAMLError:
        return False


@contextmanager
def stop_on_signal(kept: str) -> Iterator[threading.Event]:
    """An event for `run_trial`, which SIGINT, SIGTERM and SIGHUP set, unless they are ignored, as under nohup.

    The second SIGINT is a KeyboardInterrupt at once. kept: what is saved then, for the message. In the main thread.

    Raises:
        Interrupted: At the end of the context, if a signal came.
    """
    stop, received = threading.Event(), []

    def on_signal(number: int, frame: object) -> None:
        received.append(number)
        stop.set()
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    heard = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        name = signal.Signals(received[0]).name
        raise Interrupted(f"stopped by {name}; {kept}: the same command continues", received[0])


def run_trial(
    recipe: str | Path,
    overrides: Mapping[str, object],
    folder: str | Path,
    *,
    env: Mapping[str, str] | None = None,
    on_metrics: Callable[[dict], bool | None] | None = None,
    stop: threading.Event | None = None,
) -> Ended:
    """Run `mypt train RECIPE --resume` in `folder` with overrides to its end, and wait for it.

    A folder that holds a part of this run is resumed, a finished one only read. The process is killed when the calling
    thread ends (on Linux), so that no orphan writes in the folder; elsewhere the folder's lock keeps a second one out.

    Args:
        recipe: A YAML recipe or a run folder.
        overrides: {"section.key": value} over the recipe; the caller gives training.max_steps, if it must differ.
        folder: The run folder (training.output_dir). Output goes to train.log there, after what earlier calls left.
        env: Changes to the environment, such as CUDA_VISIBLE_DEVICES or OMP_NUM_THREADS.
        on_metrics: Called with every new entry of metrics.jsonl (`step` and what was logged at it: `loss`, or
            `eval_constrained_loss` and the sets' losses). If it returns True the process gets SIGTERM, saves a
            checkpoint and ends: `pruned`.
        stop: When it is set, the process gets SIGTERM, too: `interrupted`.

    Returns:
        How it ended. That is read from result.json, not from the exit code.

    Raises:
        OSError: The process could not be started, or the log not written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command, before, began = train_command(recipe, overrides, folder), _version(folder / RESULT_NAME), time.monotonic()
    words = [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), sys.executable, "-m", *command]
    metrics = Metrics(folder / METRICS_NAME)
    with open(folder / LOG_NAME, "ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode(errors="backslashreplace"))
        log.flush()
        begin = log.tell()
        process = subprocess.Popen(
            words, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
        try:
            code, usage, pruned, asked = _watch(process, metrics, on_metrics, stop)
        except BaseException:  # of on_metrics, or Ctrl-C in the thread that waits
            process.kill()
            process.wait()
            raise
    seconds = time.monotonic() - began
    changed = _version(folder / RESULT_NAME) != before
    result = _result(folder) if changed or code == 0 else None
    message = result.message if result else _last_line(folder / LOG_NAME, begin)
    state, reason = _state(result, code, pruned=pruned and asked, stopped=asked)
    return Ended(
        state=state,
        reason=reason,
        exit_code=code,
        step=result.step if result else metrics.last_step,
        objective=result.objective if result and state in ("completed", "stopped") else None,
        best_step=result.best_step if result else None,
        seconds=round(seconds, 3),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
        message=message,
    )


def _watch(
    process: subprocess.Popen,
    metrics: Metrics,
    on_metrics: Callable[[dict], bool | None] | None,
    stop: threading.Event | None,
) -> tuple[int, object, bool, bool]:
    """Wait for a process: exit code, resource usage, whether `on_metrics` wants its end, whether it got SIGTERM."""
    pruned, asked = False, None
    while True:
        code, usage = _ended(process)
        for entry in metrics.new() if on_metrics else ():
            pruned |= bool(on_metrics(entry))
        if code is not None:
            return code, usage, pruned, asked is not None
        if asked is None and (pruned or (stop and stop.is_set())):
            process.terminate()
            asked = time.monotonic()
        elif asked is not None and time.monotonic() - asked > GRACE:
            process.kill()
        time.sleep(POLL)


def _state(result: Result | None, code: int, *, pruned: bool, stopped: bool) -> tuple[str, str]:
    """State and reason of a process. pruned, stopped: whether it got SIGTERM, and whether `on_metrics` asked for it."""
    by_sigterm = result.reason == signal.SIGTERM.name if result else code == -signal.SIGTERM
    if stopped and by_sigterm:
        return ("pruned", "pruned") if pruned else ("interrupted", signal.SIGTERM.name)
    if result:
        return result.state, result.reason
    if code < 0:
        return "killed", signal.Signals(-code).name
    return ("refused", "refused") if code == 2 else ("failed", "error")


def _ended(process: subprocess.Popen):
    """Exit code and resource usage of a process and what it waited for; (None, None) while it runs."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None, None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


def _result(folder: Path) -> Result | None:
    try:
        return read_result(folder)
    except CheckpointError:
        return None


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _last_line(path: Path, begin: int) -> str:
    """The last line that is not blank, of the last 64 KiB after `begin`."""
    with open(path, "rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - (1 << 16)))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


class Metrics:
    """The entries of a run's metrics.jsonl, each once, though a run that is resumed writes the file anew."""

    def __init__(self, path: Path):
        self._path = path
        self._position, self._last = 0, b""
        self._seen: set[tuple] = set()
        self.last_step: int | None = None

    def new(self) -> list[dict]:
        """Entries that were written since the last call; a line that is half written waits for the next."""
        try:
            with open(self._path, "rb") as file:
                file.seek(max(0, self._position - len(self._last)))
                if file.read(len(self._last)) != self._last:  # written anew
                    file.seek(0)
                    self._position = 0
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = whole.splitlines(keepends=True)
        self._last = lines[-1] if lines else self._last
        return [entry for line in lines if (entry := self._entry(line))]

    def _entry(self, line: bytes) -> dict | None:
        try:
            entry = json.loads(line)
            key = entry["step"], *sorted(entry)
        except (ValueError, KeyError, TypeError):  # of a damaged file
            return None
        if key in self._seen:
            return None
        self._seen.add(key)
        self.last_step = max(self.last_step or 0, entry["step"])
        return entry
