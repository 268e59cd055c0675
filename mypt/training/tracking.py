"""Trackers that `training.report_to` names: asked for before hours of work, not after."""

import difflib

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
