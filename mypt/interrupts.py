"""Ctrl-C while the `mypt` command starts, ends or imports a library: one line and exit code 130, no traceback.

A KeyboardInterrupt would come out of whatever line of an import it meets, and libraries turn it into errors of their
own or swallow it. Elsewhere in a command it is raised, so that what is half done is tidied up.
"""

# Nothing that takes time to import, since Ctrl-C before `install` is a traceback: `signal` itself imports more.
import _signal as signal
import os
import sys

CODE = 128 + signal.SIGINT
_raising = False


def install() -> None:
    """For a process that was started as `mypt` or `python -m mypt`, unless it ignores Ctrl-C as background jobs do."""
    # The word that names the program: a path, or the module of -m. While a module is sought, sys.argv[0] is "-m".
    words = sys.orig_argv[-len(sys.argv) :][:1] if sys.argv else []
    names = [os.path.splitext(os.path.basename(word.removeprefix("-m")))[0] for word in words]
    started = names == ["mypt"] and sys.argv[0] in ("-m", *words)
    if started and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


class RaiseKeyboardInterrupt:
    """A context in which Ctrl-C is a KeyboardInterrupt, unless something is being imported."""

    def __enter__(self) -> None:
        global _raising
        _raising = True

    def __exit__(self, *exception) -> None:
        global _raising
        _raising = False


def _interrupted(number: int, frame) -> None:
    if _raising and not _importing(frame):
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
