"""Ctrl-C while the `mypt` command starts, ends or imports a library: one line and exit code 130, no traceback.

A KeyboardInterrupt would come out of whatever line of an import it meets, and libraries turn it into errors of their
own or swallow it. Elsewhere in a command it is raised, so that what is half done is tidied up.
"""

# Nothing that takes time to import, since Ctrl-C before `install` is a traceback: `signal` itself imports more.
import _signal as signal
import os
import sys
from itertools import pairwise

CODE = 128 + signal.SIGINT
_raised = False


def install() -> None:
    """For a process that was started as `mypt` or `python -m mypt`, unless it ignores Ctrl-C as background jobs do."""
    words = sys.orig_argv
    started = "mypt" in [os.path.splitext(os.path.basename(word))[0] for word in words[1:2]]
    if (started or ("-m", "mypt") in pairwise(words)) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


class raised:
    """A context in which Ctrl-C is a KeyboardInterrupt, unless something is being imported."""

    def __enter__(self) -> None:
        global _raised
        _raised = True

    def __exit__(self, *exception) -> None:
        global _raised
        _raised = False


def _interrupted(number: int, frame) -> None:
    if _raised and not _importing(frame):
        raise KeyboardInterrupt
    try:  # noqa: SIM105 - contextlib takes time to import
        sys.stdout.flush()
    except Exception:  # gone, full, or in the middle of a write
        pass
    os.write(2, b"mypt: interrupted\n")
    os._exit(CODE)


def _importing(frame) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
