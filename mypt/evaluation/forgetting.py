"""Judge what evaluation sets lost since step 0, and decide what follows: functions of readings and settings alone."""

from __future__ import annotations

import math
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
# What follows when a guarded set lost too much, and how often in a run. `warn` and `stop` change nothing that could
# need time to show, so they have no bound.
ACTIONS = {"warn": None, "stop": None, "reduce_lr": 5, "raise_replay": 5, "rollback": 3}
COOL_DOWN = 1  # evaluations after an action in which it is not repeated: it needs time to show
MOST_RAISED = 4.0  # the largest factor on a replay source's share in one step
FIRST_SHARE = 0.25  # of the samples, for a replay source that had less: Ibrahim et al. 2024, 2403.08763
MOST_REPLAY = 0.5  # of the samples, for all raised sources together
_PARTS = 1_000  # shares are in thousandths, as a mixture draws them


@dataclass(frozen=True)
class Policy:
    """Which evaluation set is learned, which are to be kept, and what follows when one is not.

    Attributes:
        target: The set that is learned.
        guard: The sets that are to be kept.
        tolerance: Nats per token that a guarded set may lose.
        action: One of `ACTIONS`.
        act_at: The action follows when a guarded set lost more than this many tolerances.
    """

    target: str
    guard: Sequence[str]
    tolerance: float = TOLERANCE
    action: str = "warn"
    act_at: float = 1.0

    def __post_init__(self):
        if not self.tolerance > 0:
            raise MyPTError(f"forgetting tolerance is {self.tolerance:g}, expected nats above 0, such as {TOLERANCE:g}")
        if self.action not in ACTIONS:
            raise MyPTError(f"forgetting action is {self.action!r}, expected one of: {', '.join(ACTIONS)}")
        if not 0 < self.act_at < math.inf:
            raise MyPTError(f"forgetting act_at is {self.act_at}, expected a number of tolerances above 0")

    @property
    def limit(self) -> float:
        """Nats per token beyond which the action follows, unless the noise is larger."""
        return self.act_at * self.tolerance


@dataclass(frozen=True)
class Decision:
    """An action of the policy, and the guarded sets that gave the reason: {name: (delta, its standard error)}."""

    action: str
    sets: dict[str, tuple[float, float]]


def guarded_sets(names: Iterable[str], target: str, guard: Iterable[str] | None) -> list[str]:
    """The sets that are to be kept: those in `guard`, or all of `names` but the target where it is None."""
    return [name for name in names if name != target] if guard is None else [*guard]


def require_sets(names: Iterable[str], target: str | None, guard: Sequence[str] | None) -> None:
    """Raise MyPTError if `target` or a set in `guard` is none of the evaluation sets `names`."""
    for name in ([target] if target else []) + list(guard or []):
        if name not in names:
            raise MyPTError(f"forgetting names the set {name!r}; the evaluation sets are: {', '.join(names)}")


def require_tolerance(tolerance: float) -> None:
    """Raise MyPTError unless `--tolerance` is a number above 0."""
    if not 0 < tolerance < math.inf:
        raise MyPTError(f"--tolerance is {tolerance:g} nats, expected a number above 0, such as {TOLERANCE:g}")


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


def kept_all(entry: dict, policy: Policy) -> bool:
    """Whether every guarded set was healthy in an entry of `assess`."""
    return all(entry["sets"][name]["state"] == "healthy" for name in policy.guard)


def decide(history: Sequence[dict], policy: Policy, acted: Sequence[int] = ()) -> Decision | None:
    """Decide what follows after the measurements so far; None while nothing does.

    A guarded set calls for the action when its delta is above `policy.limit` *and* two standard errors, or NaN. `warn`
    is said once, and again when the set was kept in between. `stop` follows at once. The others need time to show:
    they are not repeated within `COOL_DOWN` evaluations, nor for a set whose loss falls, nor more often than `ACTIONS`
    says.

    Args:
        history: Entries of `assess`, the newest last; those of a resumed run may lack all but `step`, and of their sets
            all but `loss`, `delta`, `delta_error` and `state`.
        acted: Steps at which this action was carried out before.
    """
    lost = _beyond(history[-1], policy)
    if not lost or policy.action == "stop":
        return Decision(policy.action, lost) if lost else None
    before = history[-2] if len(history) > 1 else None
    if policy.action == "warn":
        lost = {name: change for name, change in lost.items() if not (before and name in _beyond(before, policy))}
        return Decision("warn", lost) if lost else None
    if len(acted) >= ACTIONS[policy.action]:
        return None
    if acted and sum(entry["step"] > acted[-1] for entry in history) <= COOL_DOWN:
        return None
    if before:
        falls = {name for name, (delta, _) in lost.items() if delta < before["sets"][name]["delta"]}
        lost = {name: change for name, change in lost.items() if name not in falls}
    return Decision(policy.action, lost) if lost else None


def _beyond(entry: dict, policy: Policy) -> dict[str, tuple[float, float]]:
    """Change and standard error of the guarded sets that lost more than the action's limit and the noise."""
    changes = {name: (entry["sets"][name]["delta"], entry["sets"][name]["delta_error"]) for name in policy.guard}
    return {
        name: (delta, error) for name, (delta, error) in changes.items() if not delta <= allowed(error, policy.limit)
    }


def raised_shares(shares: Sequence[float], lost: dict[int, float]) -> list[float] | None:
    """Shares of the training sources after those of replay sources are raised; None where nothing can be raised.

    A source's share is multiplied by exp(delta / tolerance), at most `MOST_RAISED`, from `FIRST_SHARE` on; all raised
    sources together get at most `MOST_REPLAY`. The others keep their ratio, and at least a thousandth each.

    Args:
        shares: Of the samples, in thousandths; they add up to 1.
        lost: {index of a replay source: nats that its set lost, in tolerances}; NaN counts as infinite.
    """
    parts = [round(share * _PARTS) for share in shares]
    others = [index for index, part in enumerate(parts) if part and index not in lost]
    had, raised = sum(parts[index] for index in lost), {}
    for index, excess in lost.items():
        factor = math.exp(excess) if excess < math.log(MOST_RAISED) else MOST_RAISED  # NaN, too
        raised[index] = round(max(parts[index] * factor, FIRST_SHARE * _PARTS, parts[index]))
    room, asked = max(0, round(MOST_REPLAY * _PARTS) - had), sum(raised.values()) - had
    if asked > room:
        raised = {index: parts[index] + (part - parts[index]) * room // asked for index, part in raised.items()}
    if not others or sum(raised.values()) == had:
        return None
    left = _PARTS - sum(raised.values())
    raised |= {index: max(1, parts[index] * left // (_PARTS - had)) for index in others}
    raised[max(others, key=lambda index: parts[index])] += _PARTS - sum(raised.values())  # what the rounding left
    return [raised.get(index, 0) / _PARTS for index in range(len(parts))]


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
