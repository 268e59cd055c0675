"""Import torch and transformers, which takes seconds, after all checks that do not need them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which walks all that torch and transformers define again and again: a fifth of
    the time. From then on it leaves that out."""
    if "transformers" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load_transformers() -> None:
    """Import torch and transformers, which is to print errors only."""
    with quick_imports():
        from transformers import logging

        from mypt.models import modeling_mypt  # noqa: F401

    logging.set_verbosity_error()
    logging.disable_progress_bar()
