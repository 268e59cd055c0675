"""Trackers that `training.report_to` names: one that is not there, or does not start, ends a run before its steps."""

import difflib
from collections.abc import Callable, Iterable
from functools import partial

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from mypt.errors import RecipeError

OURS = ("tensorboard", "trackio")  # the extra mypt[tracking] installs them


def require_trackers(report_to: str | list[str] | None) -> None:
    """Raises RecipeError for a name that HF does not know (with the nearest), or whose package is not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(str(name), INTEGRATION_TO_CALLBACK, 1)
            guess = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(INTEGRATION_TO_CALLBACK)}"
            raise RecipeError(f"training.report_to names {name!r}; {guess}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            what = "pip install 'mypt[tracking]'" if name in OURS else " ".join(str(error).split())
            raise RecipeError(f"training.report_to: {name} is not installed: {what}") from None


def require_start(callbacks: Iterable[TrainerCallback]) -> None:
    """Let a tracker that does not start (no login, no network, no folder to write) raise a RecipeError of one line.

    The run stops there: whoever names a tracker wants this run's numbers in it, and so far nothing is lost.
    """
    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    for callback in callbacks:
        if name := names.get(type(callback)):
            callback.on_train_begin = partial(_start, name, callback.on_train_begin)


def _start(name: str, begin: Callable, *args, **kwargs):
    try:
        return begin(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(
            f"training.report_to: {name} does not start ({type(error).__name__}: {reason}); correct that, or train "
            "without it: --training.report_to=none"
        ) from error
