"""Judge what evaluation sets lost since step 0, and decide what follows: functions of readings and settings alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mypt.errors import MyPTError

if TYPE_CHECKING:  # a recipe is checked with this module before torch is imported
    from mypt.evaluation.evaluator import Readings
    from mypt.evaluation.loss import WindowLosses

TOLERANCE = 0.05  # nats per token
# A set whose loss rose by more than this many tolerances, and by more than two standard errors, is in this state.
THRESHOLDS = (("critical", 4.0), ("warning", 2.0), ("watch", 1.0))
# `eval_constrained_loss` starts here when a guard is beyond its tolerance: finite, since Trainer compares it.
INFEASIBLE = 1000.0
ACTED_ON = ("warning", "critical")
ACTIONS = ("warn", "stop")


@dataclass(frozen=True)
class Policy:
    """Which evaluation set is learned, which are to be kept, and what follows when one is not.

    Attributes:
        target: The set that is learned.
        guard: The sets that are to be kept.
        tolerance: Nats per token that a guarded set may lose.
        action: `warn`, or `stop` when a guarded set reaches `warning`.
    """

    target: str
    guard: Sequence[str]
    tolerance: float = TOLERANCE
    action: str = "warn"

    def __post_init__(self):
        if not self.tolerance > 0:
            raise MyPTError(f"forgetting tolerance is {self.tolerance:g}, expected nats above 0, such as {TOLERANCE:g}")
        if self.action not in ACTIONS:
            raise MyPTError(f"forgetting action is {self.action!r}, expected one of: {', '.join(ACTIONS)}")


@dataclass(frozen=True)
class Decision:
    """An action of the policy, and the guarded sets that gave the reason."""

    action: str
    sets: list[str]


def require_sets(names: Iterable[str], target: str | None, guard: Sequence[str] | None) -> None:
    """Raise MyPTError if `target` or a set in `guard` is none of the evaluation sets `names`."""
    for name in ([target] if target else []) + list(guard or []):
        if name not in names:
            raise MyPTError(f"forgetting names the set {name!r}; the evaluation sets are: {', '.join(names)}")


def judge(delta: float, delta_error: float, tolerance: float = TOLERANCE) -> str:
    """healthy, watch, warning or critical: a guarded set's loss changed by `delta` nats, known to `delta_error`.

    A NaN is never healthy.
    """
    if delta <= allowed(delta_error, tolerance):
        return "healthy"
    return next((state for state, times in THRESHOLDS if not delta <= times * tolerance), "healthy")


def allowed(delta_error: float, tolerance: float) -> float:
    """The largest change, in nats, that is healthy: the tolerance, or two standard errors if they are more."""
    return max(tolerance, 2 * delta_error)


def describe_sets(sets: dict[str, dict]) -> str:
    """`domain 2.15 | general 2.89 (+0.04 +/- 0.01, healthy)`, of the sets that `assess` gives."""
    parts = []
    for name, reading in sets.items():
        part = f"{name} {reading['loss']:.2f}"
        if reading["state"] not in ("target", "other"):
            part += f" ({reading['delta']:+.2f} +/- {reading['delta_error']:.2f}, {reading['state']})"
        parts.append(part)
    return " | ".join(parts)


def assess(step: int, readings: Readings, baseline: dict[str, WindowLosses], policy: Policy) -> dict:
    """The entry of forgetting.json's history: each set's loss, change since step 0 and state, and one loss for all.

    Losses are in nats per token. `state` of a set that is not guarded is `target` or `other`. `constrained_loss` is the
    target's if every guard is healthy, else 1000 + the nats that the worst one lost beyond the tolerance.
    """
    sets, lost = {}, []
    for name, reading in readings.items():
        losses = reading.losses
        delta, error = losses.delta(baseline[name])
        state = "target" if name == policy.target else "other"
        if name in policy.guard:
            state = judge(delta, error, policy.tolerance)
            lost += [delta] * (state != "healthy")
        sets[name] = {
            "loss": losses.loss,
            "standard_error": losses.standard_error,
            "bits_per_byte": reading.bits_per_byte,
            "delta": delta,
            "delta_error": error,
            "state": state,
        }
    constrained = INFEASIBLE + max(lost) - policy.tolerance if lost else sets[policy.target]["loss"]
    return {"step": step, "sets": sets, "constrained_loss": constrained}


def decide(history: list[dict], policy: Policy) -> Decision | None:
    """Decide the action after the measurements so far; None while every guarded set is kept.

    history: entries of `assess`, the newest last; those of a resumed run may lack all but `step`, and of their sets all
    but `loss`, `delta`, `delta_error` and `state`.
    """
    lost = [name for name, reading in history[-1]["sets"].items() if reading["state"] in ACTED_ON]
    return Decision(policy.action, lost) if lost else None


def verdict(history: list[dict], policy: Policy) -> str:
    """One sentence on the last measurement, with a suggestion where a guarded set lost too much."""
    last, target = history[-1]["sets"], policy.target
    gain = f"{target} {last[target]['delta']:+.2f} nats"
    if not policy.guard:
        return f"{gain}; no guarded set."
    changes = ", ".join(f"{name} {last[name]['delta']:+.2f} ({last[name]['state']})" for name in policy.guard)
    lost = [name for name in policy.guard if last[name]["state"] != "healthy"]
    if not lost:
        return f"kept: {gain}, {changes}; every guarded set is within {policy.tolerance:g} nats or the noise."
    return (
        f"forgetting: {gain}, {changes}. Give {', '.join(lost)} a larger share of data.train (5 to 25% replay), "
        "or lower the learning rate."
    )
