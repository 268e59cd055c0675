"""What a change of a guarded set's loss means, in one word and in one sentence."""

from collections.abc import Iterable

from mypt.errors import MyPTError

TOLERANCE = 0.05  # nats per token
# A set whose loss rose by more than this many tolerances, and by more than two standard errors, is in this state.
THRESHOLDS = (("critical", 4.0), ("warning", 2.0), ("watch", 1.0))
# `eval_constrained_loss` starts here when a guard is beyond its tolerance: finite, since Trainer compares it.
INFEASIBLE = 1000.0
ACTED_ON = ("warning", "critical")


def require_sets(names: Iterable[str], target: str | None, guard: list[str] | None) -> None:
    """Raise MyPTError if `target` or a set in `guard` is none of the evaluation sets `names`."""
    for name in ([target] if target else []) + (guard or []):
        if name not in names:
            raise MyPTError(f"forgetting names the set {name!r}; the evaluation sets are: {', '.join(names)}")


def judge(delta: float, delta_error: float, tolerance: float = TOLERANCE) -> str:
    """healthy, watch, warning or critical: a guarded set's loss changed by `delta` nats, known to `delta_error`.

    A NaN is never healthy.
    """
    if delta <= 2 * delta_error:
        return "healthy"
    return next((state for state, times in THRESHOLDS if not delta <= times * tolerance), "healthy")


def verdict(history: list[dict], target: str, guard: list[str], tolerance: float) -> str:
    """One sentence on the last measurement, with a suggestion where a guarded set lost too much.

    history: as in forgetting.json, the last entry's `sets` holding `delta` and `state` by name.
    """
    last = history[-1]["sets"]
    gain = f"{target} {last[target]['delta']:+.2f} nats"
    if not guard:
        return f"{gain}; no guarded set."
    changes = ", ".join(f"{name} {last[name]['delta']:+.2f} ({last[name]['state']})" for name in guard)
    lost = [name for name in guard if last[name]["state"] != "healthy"]
    if not lost:
        return f"kept: {gain}, {changes}; every guarded set is within {tolerance:g} nats or the noise."
    return (
        f"forgetting: {gain}, {changes}. Give {', '.join(lost)} a larger share of data.train (5 to 25% replay), "
        "or lower the learning rate."
    )
