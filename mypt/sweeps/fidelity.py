"""Judge a sweep's ranking by re-runs of its best candidates: rank agreement, seed noise, winner. Arithmetic alone.

An objective is a loss: lower is better. A run that failed or whose objective is NaN or infinite counts as worse than
every other one, and a candidate with such a run is never named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from mypt.evaluation.student import student_probability, student_quantile

LEVEL = 0.05  # probability of naming a candidate that is not the best, however often repeats are added
POWER = 0.8  # probability that the advised repeats settle a difference as large as the measured one
MOST_REPEATS = 200  # of a candidate; a difference that needs more is smaller than anything worth a search
_DRAWS, _GRID = 4_000, np.linspace(-1, 1, 41)

Runs = Mapping[int, float | None]  # the objective of one candidate by seed; None: the run failed


@dataclass(frozen=True)
class Agreement:
    """Rank agreement of two measurements of the same candidates, with 95% intervals (low, high).

    Spearman's rho and Kendall's tau-b are NaN, and the intervals (-1, 1), where one side is all ties.
    """

    candidates: int
    spearman: float
    spearman_interval: tuple[float, float]
    kendall: float
    kendall_interval: tuple[float, float]


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one run's objective over seeds, pooled over candidates, and its degrees of freedom.

    NaN without a repeat.
    """

    deviation: float
    degrees: int


@dataclass(frozen=True)
class Candidate:
    """One row of the verdict. mean, deviation: over its runs, NaN where they cannot be computed."""

    name: str
    mean: float
    deviation: float
    runs: int
    failed: int


@dataclass(frozen=True)
class Verdict:
    """The verdict of re-runs on candidates.

    Attributes:
        candidates: The best mean first; those with a failed run last.
        noise: Of one run, over seeds.
        paired: Whether all candidates ran with the same seeds, and were compared seed by seed.
        winner: The candidate that is better than every other one beyond the noise; None if there is none.
        best: The candidate of the lowest mean; None without two candidates that could win.
        next: The candidate that is hardest to tell from `best`.
        difference: Mean of `next` less mean of `best`.
        margin: Half the width of the interval of `difference` at `level`.
        level: Of the test, two-sided.
        p_value: Of the test.
        more_repeats: Further runs of every candidate that would settle a difference of this size with the probability
            `POWER`; None where it is settled, or where `MOST_REPEATS` runs of each would not do.
        reason: The verdict in one line.
    """

    candidates: list[Candidate]
    noise: Noise
    paired: bool
    winner: str | None
    best: str | None
    next: str | None
    difference: float
    margin: float
    level: float
    p_value: float
    more_repeats: int | None
    reason: str


# ---- rank agreement ----


def ranks(values: Sequence[float | None]) -> np.ndarray:
    """Ranks from 1, ties at their mean rank; None, NaN and infinite values share the last place."""
    worst = np.array([_finite(value) for value in values], dtype=float)
    return (worst[:, None] > worst).sum(1) + ((worst[:, None] == worst).sum(1) + 1) / 2


def spearman(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Spearman's rho: Pearson's correlation of the ranks, ties at their mean rank. NaN if one side is all ties."""
    one, other = ranks(first), ranks(second)
    one, other = one - one.mean(), other - other.mean()
    return _ratio(float(one @ other), math.sqrt(float(one @ one) * float(other @ other)))


def kendall(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Kendall's tau-b (1945): concordant less discordant pairs over sqrt((pairs - ties of first) (pairs - of second)).

    NaN if one side is all ties.
    """
    one, other = _pair_signs(ranks(first)[None])[0], _pair_signs(ranks(second)[None])[0]
    return _ratio(float(one @ other), math.sqrt(float(one @ one) * float(other @ other)))


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> Agreement:
    """Both coefficients of two measurements, with 95% intervals that hold for any number of candidates.

    The intervals invert the test (Clopper and Pearson 1934): they hold every correlation r of two normal variables
    under which a coefficient at least as extreme as the measured one has a probability above 2.5% on each side. Rank
    coefficients of any monotone transforms of the two are distributed alike; their distribution is simulated with a
    fixed seed. Population values are Greiner's (1909): tau = 2/pi asin(r), rho = 6/pi asin(r/2). A bootstrap would
    give a perfect order of four candidates the interval from 1 to 1.
    """
    count, measured = len(first), (spearman(first, second), kendall(first, second))
    if any(map(math.isnan, measured)):
        return Agreement(count, measured[0], (-1.0, 1.0), measured[1], (-1.0, 1.0))
    kept = ([], [])  # values of tau, for rho and for tau
    for tau, simulated in zip(_GRID, _simulated(count), strict=True):
        for found, value, taus in zip(simulated, measured, kept, strict=True):
            if min((found >= value - 1e-9).mean(), (found <= value + 1e-9).mean()) > 0.025:
                taus.append(tau)
    step = _GRID[1] - _GRID[0]
    rho, tau = ((float(max(min(taus) - step, -1)), float(min(max(taus) + step, 1))) for taus in kept)
    rho = tuple(6 / math.pi * math.asin(math.sin(math.pi / 2 * end) / 2) for end in rho)
    return Agreement(count, measured[0], rho, measured[1], tau)


@lru_cache(8)
def _simulated(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws of rho and tau of `count` pairs of normal variables, at each population tau of the grid."""
    one, noise = np.random.default_rng(0).standard_normal((2, _DRAWS, count))
    place, signs, spread = _places(one), _pair_signs(one), (count**2 - 1) / 12 * count
    found = []
    for tau in _GRID:
        other = math.sin(math.pi / 2 * tau) * one + math.cos(math.pi / 2 * tau) * noise
        found.append(((place * _places(other)).sum(1) / spread, (signs * _pair_signs(other)).mean(1)))
    return found


def _places(values: np.ndarray) -> np.ndarray:
    """The ranks in each row, less their mean."""
    return values.argsort(1).argsort(1) - (values.shape[1] - 1) / 2


def _pair_signs(values: np.ndarray) -> np.ndarray:
    """The order of every pair of columns: (rows, n) -> (rows, n (n - 1) / 2) of -1, 0 and 1."""
    one, other = np.triu_indices(values.shape[1], 1)
    return np.sign(values[:, one] - values[:, other])


# ---- noise and winner ----


def seed_noise(candidates: Mapping[str, Runs]) -> Noise:
    """The standard deviation within candidates whose runs all finished, pooled, with the sum of (runs - 1) degrees."""
    tables = [np.array([*runs.values()]) for runs in _sound(candidates).values()]
    return _pooled(sum(float(((runs - runs.mean()) ** 2).sum()) for runs in tables), sum(len(t) - 1 for t in tables))


def judge(candidates: Mapping[str, Runs], look: int = 1, level: float = LEVEL) -> Verdict:
    """Name the best candidate if it is better than every other one beyond the noise, else how many repeats would do.

    Two steps of two-sided t tests of the best mean against each other one, at the same level:

    1. By the pair alone: by the differences of one seed each where all candidates ran with the same seeds, else
       Welch's. Candidates that are worse are out.
    2. Those that are left, with the pooled standard deviation of them and the best: of the residuals of the two-way
       layout, (k - 1)(s - 1) degrees of freedom, where k of them ran with the same s seeds, else that of `seed_noise`.
       That of the pair is taken where it is larger.

    Candidates that are worse often scatter more, and would hide a difference between the best; calm ones would make
    one of chance. No factor is needed for choosing the best of k: that one of several equal candidates beats *all*
    others by so much is less probable than for two of them (Gutmann and Maymin 1987, Annals of Statistics 15). A
    verdict after further repeats is another chance to err: look i (from 1) is tested at level / 2^i, and all looks
    together stay within the level.

    The advice is the power formula n = 2 s^2 (t(1 - level/2) + t(POWER))^2 / difference^2 (Colas et al. 2018,
    1806.08295), solved for n with the degrees of freedom of n, at the level of the next look.

    Args:
        candidates: {name: {seed: objective}}, of runs that were meant to be compared.
        look: Which verdict about these candidates this is, counted over the numbers of repeats.
        level: Probability of naming one that is not the best, over all looks.
    """
    rows = [_row(name, runs) for name, runs in candidates.items()]
    rows.sort(key=lambda row: (row.failed > 0, _finite(row.mean)))
    sound, noise, level = _sound(candidates), seed_noise(candidates), level / 2**look
    paired = len({frozenset(runs) for runs in sound.values()}) == 1

    def verdict(reason: str, **found) -> Verdict:
        unknown = dict.fromkeys(("difference", "margin", "p_value"), math.nan)
        absent = dict.fromkeys(("winner", "best", "next", "more_repeats"))
        return Verdict(rows, noise, paired, level=level, reason=reason, **absent | unknown | found)

    if len(sound) < 2:
        left = f"only {next(iter(sound))} has" if sound else "no candidate has"
        return verdict(f"no winner: {left} finished every run, so there is nothing to compare")
    best, *others = (row for row in rows if row.name in sound)
    if not noise.degrees:
        reason = "no winner: the noise is unknown without a second seed of each candidate"
        return verdict(reason, best=best.name, more_repeats=1)
    pairs = {row.name: _pair_error(sound[best.name], sound[row.name], paired) for row in others}
    left = [row for row in others if not _is_beyond(row.mean - best.mean, *pairs[row.name], level)]
    pool = {row.name: sound[row.name] for row in (best, *left)}
    if left:
        shared = _residual_noise(pool) if paired else seed_noise(pool)
        for row in left:
            error = shared.deviation * math.sqrt(1 / best.runs + 1 / row.runs)
            pairs[row.name] = max(error, pairs[row.name][0]), shared.degrees
    if not all(error > 0 for error, _ in pairs.values()):
        return verdict("no winner: other seeds change nothing, so that these are no repeats; see training.seed")
    near = min(left or others, key=lambda row: (row.mean - best.mean) / pairs[row.name][0])
    difference, (error, degrees) = near.mean - best.mean, pairs[near.name]
    margin = student_quantile(1 - level / 2, degrees) * error
    p_value = 2 * (1 - student_probability(difference / error, degrees))
    found = {"best": best.name, "next": near.name, "difference": difference, "margin": margin, "p_value": p_value}
    test = f"{'paired ' if paired else ''}t test at {level:.2%}, p = {p_value:.2g}"
    measured = f"{best.name} leads {near.name} by {difference:.4f} +/- {margin:.4f} ({test})"
    if all(_is_beyond(row.mean - best.mean, *pairs[row.name], level) for row in others):
        return verdict(f"winner: {measured}", winner=best.name, **found)
    runs = min(row.runs for row in (best, *others))
    more = _repeats(difference / error * math.sqrt(2 / runs), len(pool), runs, level / 2)
    if more is None:
        advice = f"more than {MOST_REPEATS} runs of each would be needed: take either"
    else:
        advice = f"{more} more repeats of each would settle a difference of this size with {POWER:.0%} probability"
    return verdict(f"no winner: {measured}, which is inside the noise; {advice}", more_repeats=more, **found)


def _residual_noise(sound: dict[str, dict[int, float]]) -> Noise:
    """The noise of the two-way layout of candidates and seeds, without what is a seed's own."""
    table = np.array([[runs[seed] for seed in sorted(runs)] for runs in sound.values()])
    residuals = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return _pooled(float((residuals**2).sum()), (table.shape[0] - 1) * (table.shape[1] - 1))


def _pair_error(one: dict[int, float], other: dict[int, float], paired: bool) -> tuple[float, float]:
    """Standard error of the difference of two means by their own runs, and its degrees; (0, 0) if not known."""
    if paired:
        differences = [other[seed] - value for seed, value in one.items()]
        return math.sqrt(float(np.var(differences, ddof=1)) / len(one)), len(one) - 1
    if min(len(one), len(other)) < 2:
        return 0.0, 0
    parts = [(float(np.var([*runs.values()], ddof=1)) / len(runs), len(runs) - 1) for runs in (one, other)]
    total = sum(part for part, _ in parts)
    below = sum(part**2 / degrees for part, degrees in parts)  # Welch and Satterthwaite
    return math.sqrt(total), total**2 / below if below > 0 else 0


def _is_beyond(difference: float, error: float, degrees: float, level: float) -> bool:
    return error > 0 and difference > student_quantile(1 - level / 2, degrees) * error


def _pooled(squares: float, degrees: int) -> Noise:
    return Noise(math.sqrt(squares / degrees) if degrees else math.nan, degrees)


def _repeats(effect: float, count: int, runs: int, level: float) -> int | None:
    """Further runs of each of `count` candidates that settle a difference of `effect` deviations; None: too many."""
    normal = NormalDist()  # its quantiles are below Student's: what it asks for is too few
    least = 2 * ((normal.inv_cdf(1 - level / 2) + normal.inv_cdf(POWER)) / effect) ** 2 if effect > 0 else math.inf
    if least > MOST_REPEATS:
        return None
    for total in range(max(runs + 1, int(least)), MOST_REPEATS + 1):
        degrees = (count - 1) * (total - 1)  # the fewer of both layouts
        if effect * math.sqrt(total / 2) >= student_quantile(1 - level / 2, degrees) + student_quantile(POWER, degrees):
            return total - runs
    return None


def _row(name: str, runs: Runs) -> Candidate:
    finite = [value for value in runs.values() if _finite(value) < math.inf]
    deviation = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return Candidate(
        name, float(np.mean(finite)) if finite else math.nan, deviation, len(runs), len(runs) - len(finite)
    )


def _sound(candidates: Mapping[str, Runs]) -> dict[str, dict[int, float]]:
    """The candidates none of whose runs failed."""
    return {
        name: dict(runs)
        for name, runs in candidates.items()
        if runs and all(_finite(value) < math.inf for value in runs.values())
    }


def _finite(value: float | None) -> float:
    """The value, or infinity for None, NaN and either infinity."""
    return value if value is not None and math.isfinite(value) else math.inf


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan
