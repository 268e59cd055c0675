"""A signal to end: finish the step, save a complete checkpoint, end; a second SIGINT ends at once."""

import os
import signal
import sys
import threading

from transformers import TrainerCallback

from mypt.terminal import discard, say

# What a scheduler or a person sends to end a run; USR1 is SLURM's `--signal=USR1@120`, two minutes before the end, HUP
# comes from a terminal or an ssh session that is closed.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


def outlast_signals(worker: int) -> None:
    """For a DataLoader as `worker_init_fn`: a signal to all processes of a job leaves the workers to the main one.

    That one still needs them for the step under way, and ends them itself, if need be by a SIGTERM: their second one.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class Unread:
    """A standard stream whose terminal, or other end, may be gone: what cannot be written any more is dropped."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


class SignalCallback(TrainerCallback):
    """Ends training at the end of a step after a signal, with a checkpoint of that step.

    As a context manager it holds the handlers: installed in the main thread only, and as they were afterwards. One that
    is ignored, as SIGINT of a shell's background job and SIGHUP under nohup, stays
    ignored.
    stopping: whether training ends; set for all processes alike when one of them got a signal (`StepMonitor`).
    """

    def __init__(self):
        self.received: int | None = None
        self.stopping = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "SignalCallback":
        self.received, self.stopping, self._process = None, False, os.getpid()
        if threading.current_thread() is threading.main_thread():
            held = {number: signal.getsignal(number) for number in SIGNALS}
            # None: a handler that was not set from Python, and could not be set again.
            self._before = {number: old for number, old in held.items() if old not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        for number, old in self._before.items():
            signal.signal(number, old)
        self._before = {}

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a forked process, which inherits the handlers
            if number == signal.SIGTERM:  # how its parent ends it
                os._exit(128 + number)
        elif number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        else:
            self.received = self.received or number
            if signal.Signals(number).name == "SIGHUP" and not isinstance(sys.stdout, Unread):
                sys.stdout, sys.stderr = Unread(sys.stdout), Unread(sys.stderr)

    @property
    def number(self) -> int:
        """The signal that ended training; of a process that got none itself, SIGTERM."""
        return self.received or signal.SIGTERM

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size == 1:
            self.stopping = self.received is not None
        if self.stopping and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = control.should_log = True
            if state.is_world_process_zero:
                name = signal.Signals(self.number).name
                say(f"{name}: saving step {state.global_step} and stopping (a second Ctrl-C stops at once)")
