"""Signals save a checkpoint and exit, at the end of the step; a second SIGINT exits at once."""

import os
import signal
import sys
import threading

from transformers import TrainerCallback

from mypt.terminal import discard, say

# Sent by a scheduler or a person to end a run. SLURM sends USR1 two minutes before the end (`--signal=USR1@120`); a
# terminal or an ssh session that closes sends HUP.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


def outlast_signals(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: its workers outlast a signal that is sent to all processes of a job.

    The main process needs them for the current step and ends them itself, if necessary by a second SIGTERM.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class Unread:
    """A standard stream whose terminal or pipe may be closed; text that cannot be written is dropped."""

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
    """Stop training at the end of a step after a signal, with a checkpoint of that step.

    As a context manager it installs the handlers, in the main thread only, and restores the earlier ones. A signal that
    is ignored stays ignored: SIGINT in a shell's background job, SIGHUP under nohup.

    Attributes:
        received: The first signal that this process got.
        stopping: Whether training stops; the same on all processes when one of them got a signal (`StepMonitor`).
    """

    def __init__(self):
        self.received: int | None = None
        self.stopping = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "SignalCallback":
        self.received, self.stopping, self._process = None, False, os.getpid()
        if threading.current_thread() is threading.main_thread():
            held = {number: signal.getsignal(number) for number in SIGNALS}
            # None: a handler that was not set from Python, and that Python cannot restore.
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
            if number == signal.SIGTERM:  # sent by its parent
                os._exit(128 + number)
        elif number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        else:
            self.received = self.received or number
            if signal.Signals(number).name == "SIGHUP" and not isinstance(sys.stdout, Unread):
                sys.stdout, sys.stderr = Unread(sys.stdout), Unread(sys.stderr)

    @property
    def number(self) -> int:
        """The signal that stopped training; SIGTERM if another process got it."""
        return self.received or signal.SIGTERM

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size == 1:
            self.stopping = self.received is not None
        if self.stopping and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = control.should_log = True
            if state.is_world_process_zero:
                name = signal.Signals(self.number).name
                say(f"{name}: saving step {state.global_step} and stopping (a second Ctrl-C stops at once)")
