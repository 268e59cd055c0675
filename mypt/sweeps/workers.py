"""The workers of a sweep: one thread for each device, which takes trials of the study and runs their processes."""

import json
import math
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import optuna

from mypt.errors import CheckFailed, MyPTError
from mypt.formatting import duration
from mypt.sweeps.progress import Progress
from mypt.sweeps.record import turn, write_record
from mypt.sweeps.study import BEAT, Claimed, Study
from mypt.sweeps.sweep import Device, Sweep, make_record
from mypt.sweeps.sweep_data import place_eval_text
from mypt.sweeps.trial import Ended, run_trial, stop_on_signal

ATTEMPTS = 3  # processes of a trial that may be killed, before it counts as failed
IN_A_ROW = 10  # trials that fail for the same reason, before the sweep stops


def run_workers(sweep: Sweep, study: Study, devices: list[Device], *, to_error: bool = False) -> None:
    """Run the trials of a study to their ends; `to_error`: print to standard error.

    Raises as `Workers.run`.
    """
    done = sum(entry.state.is_finished() and not entry.user_attrs.get("gone") for entry in study.entries())
    with Progress(sweep.trials, done, to_error=to_error) as progress:
        workers = Workers(sweep, study, devices, progress)
        if done:
            progress.tell(f"continuing the study {study.name}: {done} of {sweep.trials} trials have ended")
        try:
            workers.run()
        except optuna.exceptions.StorageInternalError as error:
            words = str(error.__cause__ or error).strip().partition("\n")[0]
            raise MyPTError(f"the storage was lost ({words}); the same command continues the sweep") from error
        workers.write()
        for words in study.running():
            progress.tell(f"still running elsewhere: {words}")


class Workers:
    """Run the trials of a study to their ends, on these devices, together with the other processes that joined it."""

    def __init__(self, sweep: Sweep, study: Study, devices: list[Device], progress: Progress):
        self._sweep, self._study, self._devices, self._progress = sweep, study, devices, progress
        self._running: dict[int, Claimed] = {}
        self._failures: deque[str] = deque(maxlen=IN_A_ROW)
        self._stopping = threading.Event()
        self._turn = threading.Lock()
        self._error: BaseException | None = None
        self._working = len(devices)

    def run(self) -> None:
        """Until no trial waits.

        Raises:
            Interrupted: After SIGINT, SIGTERM or SIGHUP, when the trials that ran have saved and ended.
            CheckFailed: Ten trials in a row failed for the same reason.
        """
        # Daemons: after a second Ctrl-C nothing waits for them, and a process dies with the thread that started it.
        threads = [threading.Thread(target=self._guarded, args=(device,), daemon=True) for device in self._devices]
        beating = threading.Thread(target=self._guarded, args=(None,), daemon=True)
        with stop_on_signal("trials that ran are saved") as stop:
            for thread in [*threads, beating]:
                thread.start()
            try:
                while self._working:
                    time.sleep(0.1)  # not `join`, which Ctrl-C lets take a thread for ended (Python 3.11)
                    if stop.is_set():
                        self._stop()
            finally:
                self._stop()
            if self._error:
                raise self._error

    def _stop(self) -> None:
        self._stopping.set()
        for claimed in list(self._running.values()):
            claimed.stop.set()

    def _guarded(self, device: Device | None) -> None:
        """A thread's work: trials on a device, or signs of life. The first error stops the sweep; `run` raises it."""
        try:
            if device is None:
                self._beat()
            else:
                self._work(device)
        except BaseException as error:
            self._error = self._error or error
            self._stop()
        finally:
            if device is not None:
                with self._turn:
                    self._working -= 1

    def _beat(self) -> None:
        while not self._stopping.wait(BEAT):
            for claimed in list(self._running.values()):
                self._study.beat(claimed)

    def _work(self, device: Device) -> None:
        while not self._stopping.is_set():
            claimed = self._study.claim()
            if claimed:
                self._running[claimed.number] = claimed
                try:
                    self._run(claimed, device)
                finally:
                    del self._running[claimed.number]
            elif not self._study.has_unknown():
                return
            else:
                self._stopping.wait(1)

    def _run(self, claimed: Claimed, device: Device) -> None:
        sweep, number = self._sweep, claimed.number
        folder = sweep.folder(number)
        try:
            overrides = sweep.given(claimed.params, claimed.configuration)
        except MyPTError as error:  # values that do not fit together
            overrides, ended = claimed.params, _refused(str(error))
            seconds, attempts = None, 0
        else:
            ended, seconds = None, sweep.lengths.seconds(overrides)
        values = claimed.configuration or _words(claimed.params)
        self._study.describe(claimed, overrides=overrides, folder=str(folder), device=device.name)
        self._progress.started(number, device.name, values, seconds)
        if ended is None:
            place_eval_text(sweep.data, folder)
            ended, attempts = self._attempts(claimed, device, overrides, folder)
        state = _state(ended)
        self._study.finish(
            claimed,
            state,
            ended.objective,
            **{name: getattr(ended, name) for name in ("reason", "step", "best_step", "seconds", "cpu_seconds")},
            message=ended.message[:500],
            attempts=attempts,
            standard_error=_standard_error(folder, ended.best_step) if state == "completed" else None,
        )
        self._progress.ended(number, state, _ending(state, ended), ended.objective)
        self.write()
        self._count(state, ended)

    def _attempts(self, claimed: Claimed, device: Device, overrides: dict, folder: Path) -> tuple[Ended, int]:
        """Run a trial, again where its process was killed by somebody else: it resumes from its last checkpoint."""
        length, total, attempts = overrides["training.max_steps"], (0.0, 0.0), 0

        def on_metrics(entry: dict) -> bool:
            if "eval_constrained_loss" not in entry or not entry["step"]:
                return False
            value = entry["eval_constrained_loss"]
            value = math.inf if value is None else value  # NaN and infinity are null in the file
            percent = max(1, round(100 * entry["step"] / length))
            self._progress.reported(claimed.number, percent, value)
            return self._study.report(claimed, percent, value) and percent < 100

        while True:
            stop = claimed.stop
            if self._stopping.is_set():  # between two attempts, or before the first
                stop.set()
            ended = run_trial(
                self._sweep.trial_recipe, overrides, folder, env=device.env, on_metrics=on_metrics, stop=stop
            )
            attempts += 1
            total = total[0] + ended.seconds, total[1] + ended.cpu_seconds
            held = ended.state == "refused" and "another process is writing" in ended.message
            ended_by_others = ended.state in ("killed", "interrupted") or held
            if stop.is_set() or attempts == ATTEMPTS or not ended_by_others:
                state = "killed" if ended_by_others and not stop.is_set() else ended.state
                return replace(ended, state=state, seconds=round(total[0], 3), cpu_seconds=round(total[1], 3)), attempts
            why = ended.message if held else f"its process was ended by {ended.reason}"
            self._progress.tell(f"trial {claimed.number}: {why}; it is resumed")
            self._stopping.wait(1)

    def _count(self, state: str, ended: Ended) -> None:
        """Stop the sweep after ten failures in a row for one reason: the eleventh would be no different."""
        with self._turn:
            failed = state == "failed" or ended.reason == "diverged"
            if not failed:
                self._failures.clear()
                return
            self._failures.append(ended.reason)
            if len(self._failures) == IN_A_ROW and len({*self._failures}) == 1:
                raise CheckFailed(
                    f"{IN_A_ROW} trials in a row ended with {ended.reason}: {ended.message}", ended.reason
                )

    def write(self) -> None:
        """sweep.json, as the study is now."""
        with self._turn, turn(self._sweep.out):
            write_record(self._sweep.out, make_record(self._sweep, self._study))


def _refused(message: str) -> Ended:
    return Ended("refused", "refused", 2, None, None, None, 0.0, 0.0, message)


def _state(ended: Ended) -> str:
    """That of the study. A trial that diverged counts as pruned, so that the search learns from it."""
    if ended.state in ("completed", "stopped"):
        return "completed" if ended.objective is not None else "failed"
    if ended.state == "pruned" or ended.reason == "diverged":
        return "pruned"
    return "interrupted" if ended.state == "interrupted" else "failed"


def _ending(state: str, ended: Ended) -> str:
    """How a trial ended, in words."""
    about = f"{duration(ended.seconds)}, {duration(ended.cpu_seconds)} of CPU"
    if state == "completed":
        return f"completed ({ended.reason}), {ended.objective:.4f} at step {ended.best_step}, {about}"
    if state == "pruned":
        return f"{ended.reason} at step {ended.step}, {about}"
    return f"{state} ({ended.reason}): {ended.message}"


def _standard_error(folder: Path, step: int | None) -> float | None:
    """Standard error of the target's loss at a step, as forgetting.json has it; None where it does not."""
    try:
        report = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
        found = next(entry for entry in report["history"] if entry["step"] == step)
        return found["sets"][report["target"]]["standard_error"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _words(params: dict[str, object]) -> str:
    """training.learning_rate 0.0012, ...: numbers with four digits."""
    return ", ".join(f"{key} {f'{value:.4g}' if isinstance(value, float) else value}" for key, value in params.items())
