"""Predict forgetting and the target's loss of a long run from short ones, by replay ratio: fits and a recommendation.

A probe is a complete run of few steps, with its whole learning-rate schedule; what is fitted are the ends of probes.
Both laws have an amplitude A and a growth that is fast at first and then slows down:

    g(n)           = ((1 + (n / tau)^p)^(c / p) - 1) p / c     n^p below tau; then n^c, log n (c = 0), a limit (c < 0)
    forgetting     = A g(n) / (1 + B r n^k)                    nats that a guarded set loses
    target's loss  = L0 - A g((1 - s r) n)                     L0: its loss at step 0

with n optimizer steps and r the share of samples that are replayed. Without replay forgetting is a shifted power law of
the steps (Kalajdzievski 2024, arXiv 2401.05605). At a given length it falls with the ratio by a factor 1 + B r, as in
Bethune et al. 2025 (arXiv 2502.06042); here the factor may grow with the length. p is from 1 to 2, since near a minimum
the loss rises with the square of the distance; s, from 0 to 1, is how much of a replayed sample is lost for the target.

The shapes (tau, p, c, B, k, s) lie on a grid, and each has the weight of its marginal likelihood; A and the variance of
the noise are integrated out. An interval therefore holds all shapes that the probes leave open, and widens with the
distance from the probes to the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mypt.errors import MyPTError
from mypt.planning.scaling import Interval

LEVEL = 0.95  # of every interval
NOISE = 0.005  # nats: the scatter of a probe's end that is assumed before any is measured, as of two measurements
FINEST = 0.01  # between two ratios that are recommended
_PRIOR = 2  # measurements
_COUNT = 0.7  # measurements that a probe is worth: all see the same samples, so their errors are not independent
_DRAWS = 4_000
# The grid, with the longest probe as the unit of steps.
_START = np.linspace(1, 2, 3)  # p
_TAU, _POWER = np.geomspace(0.001, 30, 16), np.linspace(-2, 1, 13)  # tau and c of forgetting
_REPLAY, _LENGTH = np.geomspace(0.1, 1_000, 17), np.linspace(0, 3, 7)  # B and k
_BEYOND = np.linspace(0, 1, 3)  # how much of k above 1 holds beyond the longest probe, which no probe can tell
_TARGET_TAU, _TARGET_POWER = np.geomspace(0.01, 30, 81), np.linspace(-1, 0.25, 11)
_COST = np.linspace(0, 1, 5)  # s


@dataclass(frozen=True)
class Probe:
    """The end of one probe.

    Attributes:
        ratio: Share of the samples that were replayed.
        steps: Optimizer steps.
        sets: As `mypt.evaluation.forgetting.assess` has them: loss, delta since step 0, delta_error and state by set.
    """

    ratio: float
    steps: int
    sets: dict[str, dict]


@dataclass(frozen=True)
class Prediction:
    """The end of a run with this share of replayed samples: loss of the target, change of each guarded set."""

    ratio: float
    target: Interval
    guard: dict[str, Interval]


@dataclass(frozen=True)
class Interpolated:
    """Weight interpolation without replay: the largest alpha from the start (0) that keeps every guarded set.

    Attributes:
        steps: Of the probe that was interpolated.
        alpha: Of that probe (`mypt.evaluation.interpolate.largest_kept`); 0 if no step keeps every guard.
        target_loss: There, in nats.
        curve: The points that were measured: alpha, and the sets as `assess` has them.
        alpha_at_end, target_at_end: Expected of the whole run; None where the curve leaves it open.
    """

    steps: int
    alpha: float
    target_loss: float
    curve: list[dict]
    alpha_at_end: Interval | None = None
    target_at_end: Interval | None = None


@dataclass(frozen=True)
class Advice:
    """The recommendation that follows from the probes.

    Attributes:
        steps: Optimizer steps of the run.
        tolerance: Nats per token that a guarded set may lose.
        target_start: The target's loss at step 0.
        probes: What was measured.
        predictions: At the end of the run, for the probed ratios, the recipe's own and the recommended one.
        ratio: The smallest share whose upper bound stays within the tolerance for every guarded set; None if there is
            none up to the largest probed one.
        determined: False if `ratio` is None and the probes do not exclude that a probed share is enough.
        reason: In words.
        option: Of `mypt train`, for `ratio`.
        interpolated: What weight interpolation gives without replay, at the probe's length; the reason where it cannot
            be tried; None if no probe is without replay.
    """

    steps: int
    tolerance: float
    target_start: float
    probes: list[Probe]
    predictions: list[Prediction]
    ratio: float | None
    determined: bool
    reason: str
    option: str | None = None
    interpolated: Interpolated | str | None = None


class Curve:
    """A fitted law.

    Args:
        shape: (ratios, steps), float64 (points,) each -> float64 (nodes, points): the law for an amplitude of 1.
        ratios, steps, values: The ends of the probes; values in nats.
    """

    def __init__(
        self,
        shape: Callable[[np.ndarray, np.ndarray], np.ndarray],
        ratios: Sequence[float],
        steps: Sequence[int],
        values: Sequence[float],
    ):
        self._shape = shape
        ratios, steps, values = (np.asarray([*each], dtype=float) for each in (ratios, steps, values))
        if not np.isfinite(values).all():
            raise MyPTError("a probe ended with a loss that is NaN or infinite; lower training.learning_rate")
        basis = shape(ratios, steps)
        norm = np.sqrt(np.square(basis).sum(axis=1))
        unit = basis / norm[:, None]
        amplitude = unit @ values  # least squares, and the scale on which A has a flat prior
        rest = _COUNT * np.square(values - amplitude[:, None] * unit).sum(axis=1) + _PRIOR * NOISE**2
        freedom = _COUNT * (len(values) - 1) + _PRIOR
        score = -freedom / 2 * np.log(rest)
        weights = np.exp(score - score.max())
        random = np.random.default_rng(0)
        self._node = random.choice(len(score), _DRAWS, p=weights / weights.sum())
        noise = np.sqrt(rest[self._node] / random.chisquare(freedom, _DRAWS))
        self._amplitude = (amplitude[self._node] + noise / _COUNT**0.5 * random.standard_normal(_DRAWS)) / norm[
            self._node
        ]
        self._scatter = noise * random.standard_normal(_DRAWS)

    def predict(self, ratio: float, steps: int) -> Interval:
        """The predicted measurement at the end of a run."""
        shape = self._shape(np.array([ratio]), np.array([float(steps)]))[self._node, 0]
        tail = 100 * (1 - LEVEL) / 2
        bounds = np.percentile(self._amplitude * shape + self._scatter, [tail, 50, 100 - tail])
        return Interval(*map(float, bounds))


def fit_forgetting(probes: Sequence[Probe], name: str) -> Curve:
    """Fit the change of the guarded set `name` at the ends of probes."""
    longest = max(probe.steps for probe in probes)
    growth, kept = _nodes(_TAU, _START, _POWER), _nodes(_REPLAY, _LENGTH, _BEYOND)

    def shape(ratios: np.ndarray, steps: np.ndarray) -> np.ndarray:
        share, (replay, length, beyond) = steps / longest, kept
        exponent = np.where(share > 1, np.minimum(length, 1 + beyond * (length - 1)), length)
        factor = 1 / (1 + replay * ratios * share**exponent)
        return (_growth(share, *growth)[:, None] * factor).reshape(-1, len(steps))

    return Curve(shape, *zip(*((p.ratio, p.steps, p.sets[name]["delta"]) for p in probes), strict=True))


def fit_target(probes: Sequence[Probe], name: str) -> Curve:
    """Fit the fall of the target's loss since step 0 at the ends of probes."""
    longest = max(probe.steps for probe in probes)
    tau, start, power, cost = _nodes(_TARGET_TAU, _START, _TARGET_POWER, _COST)

    def shape(ratios: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return _growth((1 - cost * ratios) * steps / longest, tau, start, power)

    return Curve(shape, *zip(*((p.ratio, p.steps, -p.sets[name]["delta"]) for p in probes), strict=True))


def _nodes(*axes: np.ndarray) -> list[np.ndarray]:
    """Every combination of the axes' values: for each axis float64 (combinations, 1)."""
    return [axis.reshape(-1, 1) for axis in np.meshgrid(*axes, indexing="ij")]


def _growth(steps: np.ndarray, tau: np.ndarray, start: np.ndarray, power: np.ndarray) -> np.ndarray:
    """g, but for a factor that A takes."""
    logarithm, power = np.log1p((steps / tau) ** start), power / start
    safe = np.where(power == 0, 1, power)
    return np.where(power == 0, logarithm, np.expm1(safe * logarithm) / safe)


def advise(
    probes: Sequence[Probe],
    target: str,
    guard: Sequence[str],
    tolerance: float,
    *,
    steps: int,
    ratio: float,
    interpolated: Interpolated | str | None = None,
) -> Advice:
    """Fit the probes, predict the run and recommend a ratio.

    Args:
        target, guard: The set that is learned, and those that are to be kept.
        tolerance: Nats per token that a guarded set may lose.
        steps: Optimizer steps of the run.
        ratio: The share that the recipe replays now.
        interpolated: As `Advice` has it, without what is expected of the run.

    Raises:
        MyPTError: A probe's loss is NaN or infinite.
    """
    first = probes[0].sets[target]
    start = first["loss"] - first["delta"]
    gain = fit_target(probes, target)
    guards = {name: fit_forgetting(probes, name) for name in guard}

    def predict(ratio: float) -> Prediction:
        fall = gain.predict(ratio, steps)
        loss = Interval(start - fall.high, start - fall.middle, start - fall.low)
        return Prediction(ratio, loss, {name: curve.predict(ratio, steps) for name, curve in guards.items()})

    tried = sorted({probe.ratio for probe in probes})
    numbers = range(math.ceil(tried[0] / FINEST), math.floor(tried[-1] / FINEST) + 1)
    candidates = map(predict, sorted({*tried, *(round(number * FINEST, 6) for number in numbers)}))
    chosen = next((found for found in candidates if _worst(found) <= tolerance), None)
    least = predict(tried[-1])
    excluded = max(change.low for change in least.guard.values()) > tolerance
    if isinstance(interpolated, Interpolated):
        interpolated = _at_end(interpolated, predict(0.0), target, start, tolerance)
    shown = {ratio: predict(ratio) for ratio in (*tried, ratio)} | ({chosen.ratio: chosen} if chosen else {})
    return Advice(
        steps,
        tolerance,
        start,
        [*probes],
        [shown[ratio] for ratio in sorted(shown)],
        chosen.ratio if chosen else None,
        bool(chosen) or excluded,
        _reason(chosen, least, excluded, tolerance, max(probe.steps for probe in probes), steps),
        interpolated=interpolated,
    )


def _at_end(measured: Interpolated, end: Prediction, target: str, start: float, tolerance: float) -> Interpolated:
    """The expected interpolation of the whole run, if its curve has the shape of the probe's.

    A guarded set that lost F at alpha 1 has lost F alpha^q at alpha, with q fitted to the probe's curve, and the
    target's gain is shared out over alpha as the probe's was.
    """
    points = [point for point in measured.curve if 0 < point["alpha"] < 1]
    last, crossings = measured.curve[-1]["sets"], []
    for name, change in end.guard.items():
        if change.high <= tolerance:
            continue  # kept at alpha 1
        whole = last[name]["delta"]
        lost = [(math.log(point["alpha"]), point["sets"][name]["delta"]) for point in points]
        lost = [(place, math.log(loss / whole)) for place, loss in lost if whole > 0 and loss > 0]
        power = sum(place * loss for place, loss in lost) / sum(place**2 for place, _ in lost) if lost else 0
        if power <= 0:
            return measured
        bounds = (change.high, change.middle, change.low)
        crossings.append([min(1.0, (tolerance / loss) ** (1 / power)) if loss > 0 else 1.0 for loss in bounds])
    if not last[target]["delta"] < 0:
        return measured
    alpha = Interval(*map(min, zip(*crossings, strict=True))) if crossings else Interval(1.0, 1.0, 1.0)
    alphas = [0.0, *(point["alpha"] for point in measured.curve if point["alpha"])]
    gains = [0.0, *(point["sets"][target]["delta"] for point in measured.curve if point["alpha"])]

    def loss(whole: float, place: float) -> float:
        return start + (whole - start) * float(np.interp(place, alphas, gains)) / gains[-1]

    best, worst = loss(end.target.low, alpha.high), loss(end.target.high, alpha.low)
    expected = Interval(best, loss(end.target.middle, alpha.middle), worst)
    return replace(measured, alpha_at_end=alpha, target_at_end=expected)


def _worst(prediction: Prediction) -> float:
    """The largest upper bound of a guarded set."""
    return max(change.high for change in prediction.guard.values())


def _reason(
    chosen: Prediction | None, least: Prediction, excluded: bool, tolerance: float, longest: int, steps: int
) -> str:
    kept = f"within {tolerance:g} nats after {steps:,} steps"
    if chosen and chosen.ratio == 0:
        return f"no replay is needed: the upper bound of what every guarded set loses is {kept}"
    if chosen:
        return f"replay {chosen.ratio:.1%}: the smallest share whose upper bound keeps every guarded set {kept}"
    if excluded:
        return f"no share up to {least.ratio:.1%} keeps every guarded set {kept}"
    return (
        f"not determined: probes of up to {longest:,} steps leave open whether {least.ratio:.1%} replay keeps every "
        f"guarded set {kept}"
    )


def replay_table(advice: Advice, target: str) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of what was measured at the end of the longest probes, and predicted for the run."""
    longest = max(probe.steps for probe in advice.probes)
    measured = {probe.ratio: probe.sets for probe in advice.probes if probe.steps == longest}
    guard = [*advice.predictions[0].guard]
    columns = ["replay"]
    for steps in (longest, advice.steps):
        columns += [f"{name}, {steps:,} steps" for name in (target, *guard)]
    rows = []
    for found in advice.predictions:
        sets = measured.get(found.ratio)
        row = [f"{found.ratio:.1%}", f"{sets[target]['loss']:.3f}" if sets else ""]
        row += [f"{sets[name]['delta']:+.3f} +/- {sets[name]['delta_error']:.3f}" if sets else "" for name in guard]
        row += [_shown(found.target, ".3f"), *(_shown(found.guard[name], "+.3f") for name in guard)]
        rows.append(row)
    return "Replay: measured by probes, and predicted with 95% intervals (nats per token)", columns, rows


def _shown(interval: Interval, form: str) -> str:
    return f"{interval.middle:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def replay_lines(advice: Advice, target: str) -> list[str]:
    """The recommendation, and what weight interpolation gives without replay."""
    lines = [advice.reason]
    if advice.option:
        lines.append(f"  mypt train with {advice.option}")
    elif not advice.determined:
        lines.append("  longer probes leave less open: --probe-steps")
    else:
        lines.append("  a larger share (--replay-ratios), a lower learning rate or a shorter run forgets less")
    found = advice.interpolated
    if isinstance(found, str):
        lines.append(f"interpolation without replay cannot be tried: {found}")
    elif found:
        line = f"without replay, `mypt interpolate` keeps every guarded set of the probe of {found.steps:,} steps"
        line += f" at alpha {found.alpha:g} with {target} {found.target_loss:.3f}" if found.alpha else " at no alpha"
        if found.alpha_at_end:
            line += f"; after {advice.steps:,} steps at alpha {_shown(found.alpha_at_end, '.2f')}"
            line += f" with {target} {_shown(found.target_at_end, '.3f')} are expected"
        lines.append(line)
    return lines
