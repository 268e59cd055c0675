"""Diagnose a run from Trainer's log history: what its curves show, by which rule, and what to try next."""

import math
from dataclasses import asdict, dataclass

import numpy as np

MIN_POINTS = 8  # fewest log entries of a straight line, for a usable error of its slope
MIN_EVALUATIONS = 5  # fewest evaluations for a statement about overfitting
WORTH = 0.02  # nats per doubling of the steps; less is a plateau
SWING, NOISY = 0.03, 0.1  # shares of the mean loss: slow swings, any scatter


@dataclass(frozen=True)
class Line:
    """Loss against ln(step) by least squares, over log entries from step `first` to `last`.

    Attributes:
        per_doubling, error: Nats that the loss falls while the steps double, and the standard error.
        scatter: Standard deviation around the line.
        mean: Mean loss.
        correlation, crossings: Correlation of neighbouring residuals, and how often they change sign.
    """

    first: int
    last: int
    points: int
    per_doubling: float
    error: float
    scatter: float
    mean: float
    correlation: float
    crossings: int


def diagnose(log_history: list[dict], eval_key: str = "eval_loss", data: dict | None = None) -> dict:
    """Apply the rules in order; the first one that holds gives the state.

    Args:
        log_history: Trainer's entries with `step`, `loss`, `learning_rate` and `eval_key`.
        data: `passes` over the main source, `advised` [fewest, most] passes and `tokens_per_parameter`, for the advice.

    Returns:
        Ready for JSON: `state` (unknown, diverging, overfitting, oscillating, still_falling, falling_with_rate, plateau
        or unclear), two `lines` for people, and `rules` with the figures of each.
    """
    steps, losses, rates = training_curve(log_history)
    begin, end = steady_stretch(rates)
    constant = end - begin >= max(MIN_POINTS, (len(rates) - begin) / 3)
    stop = end if constant else len(rates)
    count = max(MIN_POINTS, math.ceil((stop - begin) / 3))
    if stop - begin < MIN_POINTS:
        words = f"{stop - begin} of the {MIN_POINTS} log entries after the warm-up that a slope with its error needs"
        return _result("unknown", words, "train longer, or log more often: lower training.logging_steps", {}, data)
    window = slice(stop - count, stop)
    rules = {
        "diverging": rise(losses[begin:], float(losses[0]), readings(log_history, eval_key)),
        "overfitting": overfitting(log_history, eval_key),
        "line": asdict(fit(steps[window], losses[window])),
        "constant_rate": constant,
        "learning_rate": [float(rates[window][0]), float(rates[-1])],
        "after": float(losses[stop - 1] - losses[-1]),
    }
    state = _state(rules)
    return _result(state, _words(state, rules), _advice(state, rules, data), rules, data)


def training_curve(log_history: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, losses and learning rates of the entries with a finite training loss."""
    entries = [e for e in log_history if e.get("loss") is not None and math.isfinite(e["loss"]) and e["step"] > 0]
    columns = [[e["step"], e["loss"], e.get("learning_rate", 1.0)] for e in entries]
    return tuple(np.array(columns, dtype=float).reshape(-1, 3).T)


def steady_stretch(rates: np.ndarray) -> tuple[int, int]:
    """The start of the last stretch of rates that never rise, and the end of the constant part at its start.

    With a warm-up, a constant part and a cooldown these are the bounds of the constant part. A constant end of at least
    a third of the stretch is taken alone: the run continued at a lower rate.
    """
    if not len(rates):
        return 0, 0
    rises = np.flatnonzero(rates[1:] > rates[:-1] * (1 + 1e-9))
    begin = int(rises[-1]) + 1 if len(rises) else 0
    tail = len(rates)
    while tail > begin and abs(rates[tail - 1] - rates[-1]) <= 0.01 * rates[-1]:
        tail -= 1
    if len(rates) - tail >= max(MIN_POINTS, (len(rates) - begin) / 3):
        return tail, len(rates)
    lower = np.flatnonzero(rates[begin:] < 0.99 * rates[begin])
    return begin, begin + int(lower[0]) if len(lower) else len(rates)


def fit(steps: np.ndarray, losses: np.ndarray) -> Line:
    """The straight line through losses against ln(step); at least 3 points."""
    x = np.log(steps) - np.log(steps).mean()
    slope = float(x @ losses / (x @ x))
    residuals = losses - losses.mean() - slope * x
    scatter = math.sqrt(residuals @ residuals / (len(x) - 2))
    total = residuals @ residuals
    return Line(
        first=int(steps[0]),
        last=int(steps[-1]),
        points=len(steps),
        per_doubling=-slope * math.log(2),
        error=scatter / math.sqrt(x @ x) * math.log(2),
        scatter=scatter,
        mean=float(losses.mean()),
        correlation=float(residuals[1:] @ residuals[:-1] / total) if total else 0.0,
        crossings=int(np.count_nonzero(residuals[1:] * residuals[:-1] < 0)),
    )


def readings(log_history: list[dict], key: str) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation that gave a number."""
    return [(e["step"], e[key]) for e in log_history if e.get(key) is not None and math.isfinite(e[key])]


def rise(losses: np.ndarray, began: float, evaluations: list[tuple[int, float]]) -> dict:
    """How far the last entries lie above the best earlier ones: means of `points` entries each, and the rise's error.

    The error is computed from differences of neighbours, which have no trend. `holds`: the rise is above 4 errors and
    2% of the loss. `lost`: each of the last entries lies more than 10% above the first of all, `began`, and the
    evaluation loss has not fallen. An entry of few tokens may be that low by chance where the model is trained already.
    """
    points = max(3, len(losses) // 6)
    noise = math.sqrt(np.mean(np.diff(losses) ** 2) / 2)
    before = losses[:-points]
    means = np.convolve(before, np.full(points, 1 / points), "valid")
    best = float(means.min()) if len(means) else float(losses[0])
    last = float(losses[-points:].mean())
    error = noise * math.sqrt(2 / points)
    holds = last - best > max(4 * error, 0.02 * best)
    found = {"points": points, "best": best, "last": last, "error": error, "holds": bool(holds)}
    fell = len(evaluations) > 1 and evaluations[-1][1] < evaluations[0][1]
    return found | {"began": began, "lost": bool(losses[-points:].min() > 1.1 * began) and not fell}


def overfitting(log_history: list[dict], key: str) -> dict:
    """Whether `key` rose by more than three standard errors from its lowest readings while the training loss fell.

    Compares means of two neighbouring readings, and of the training losses between the two. Three errors, since the
    lowest of many readings is partly low by chance. The error is computed from the median of second differences, which
    have no slope and give the steep beginning no weight.
    """
    measured = readings(log_history, key)
    found = {"evaluations": len(measured), "holds": False}
    if len(measured) < MIN_EVALUATIONS:
        return found
    steps, values = np.array(measured, dtype=float).T
    pairs = (values[1:] + values[:-1]) / 2
    lowest = int(pairs.argmin())
    train_steps, losses, _ = training_curve(log_history)
    between = [losses[(train_steps > steps[i]) & (train_steps <= steps[i + 1])] for i in (lowest, len(pairs) - 1)]
    error = float(np.median(np.abs(np.diff(values, 2)))) / 0.6745 / math.sqrt(6)  # of a reading, and of two pairs
    found |= {"step": int(steps[lowest + 1]), "rise": float(pairs[-1] - pairs[lowest]), "error": error}
    if lowest >= len(pairs) - 2 or not all(map(len, between)):
        return found
    train = [float(part.mean()) for part in between]
    found |= {"train": train, "gap": float(pairs[-1]) - train[1]}
    return found | {"holds": found["rise"] > 3 * error and train[1] < train[0]}


def _state(rules: dict) -> str:
    line = Line(**rules["line"])
    rising, falling = line.per_doubling < -3 * line.error, line.per_doubling > 2 * line.error
    if rules["diverging"]["lost"] or (rules["diverging"]["holds"] and rising):
        return "diverging"
    if rules["overfitting"]["holds"]:
        return "overfitting"
    swings = (line.correlation > 2 / math.sqrt(line.points) and line.crossings >= 3) or line.correlation < -0.5
    if line.scatter > NOISY * line.mean or (line.scatter > SWING * line.mean and swings):
        return "oscillating"
    if falling and line.per_doubling > WORTH:
        return "still_falling" if rules["constant_rate"] else "falling_with_rate"
    return "plateau" if line.per_doubling + 2 * line.error < 2 * WORTH else "unclear"


def _words(state: str, rules: dict) -> str:
    line, over = Line(**rules["line"]), rules["overfitting"]
    where = f"steps {line.first:,} to {line.last:,}"
    slope = f"{line.per_doubling:.3f} +/- {line.error:.3f} nats per doubling of the steps"
    if state == "diverging":
        high, best, began = (rules["diverging"][name] for name in ("last", "best", "began"))
        if rules["diverging"]["lost"]:
            return f"the training loss is {high:.3f} nats in the end and was {began:.3f} in the first log entry"
        return f"the training loss rose from {best:.3f} to {high:.3f} nats and is rising ({where})"
    if state == "overfitting":
        before, now = over["train"]
        return (
            f"the evaluation loss rose by {over['rise']:.3f} nats (3 standard errors: {3 * over['error']:.3f}) since "
            f"step {over['step']:,}, while the training loss went from {before:.3f} to {now:.3f}"
        )
    if state == "oscillating":
        share = line.scatter / line.mean
        return f"the training loss goes up and down by {line.scatter:.3f} nats ({share:.0%}; {where})"
    if state == "falling_with_rate":
        high, low = rules["learning_rate"]
        return f"it fell {slope} ({where}), while the learning rate went from {high:.2e} to {low:.2e}"
    words = f"the training loss falls {slope} ({where}"
    words += ", at a constant rate)" if rules["constant_rate"] else ")"
    if rules["constant_rate"] and rules["after"] > 0 and rules["learning_rate"][1] < 0.99 * rules["learning_rate"][0]:
        words += f"; the {rules['after']:.3f} nats of the cooldown are the lower rate's, no sign for more steps"
    return words


def _advice(state: str, rules: dict, data: dict | None) -> str:
    seen = data and "the data has been seen {:.2f}x, {}-{}x is advised".format(data["passes"], *data["advised"])
    used_up = bool(data) and data["passes"] >= data["advised"][1]
    per_parameter = data["tokens_per_parameter"] if data else None
    longer = f"longer: raise training.max_steps{f' ({seen})' if seen else ''}"
    if used_up:
        longer = f"more data before more steps ({seen})"
    if state == "diverging":
        return "half the learning rate, or a longer warm-up; take the best saved step"
    if state == "overfitting":
        return f"more data or dropout, or fewer steps: take the best saved one{f' ({seen})' if seen else ''}"
    if state == "oscillating":
        return "half the learning rate, or a larger batch (training.gradient_accumulation_steps)"
    if state == "still_falling":
        return longer
    if state == "falling_with_rate":
        return f"the two cannot be told apart; optimizer.schedule: wsd would show it. If anything, {longer}"
    if state == "unclear":
        return "the noise hides the slope: a larger training.logging_steps, or more steps, would show it"
    if abs(rules["diverging"]["began"] - rules["diverging"]["last"]) < WORTH:
        return f"a higher learning rate: since the first log entry less than {WORTH:g} nats were learned"
    cooled = rules["learning_rate"][1] < 0.99 * rules["learning_rate"][0]
    if rules["constant_rate"] and not cooled:
        return "lower the rate to its end (optimizer.schedule: wsd): that usually gains more than more steps would"
    if per_parameter is not None and per_parameter < 20:
        return f"more data ({per_parameter:.1f} tokens per parameter; from scratch about 20 are best), not more steps"
    return "a larger model or other data, not more steps"


def _result(state: str, words: str, advice: str, rules: dict, data: dict | None) -> dict:
    name = {"unknown": "too few points", "unclear": "cannot tell", "falling_with_rate": "falling with the rate"}
    lines = [f"diagnosis: {name.get(state, state.replace('_', ' '))}: {words}", f"next: {advice}"]
    return {"state": state, "lines": lines, "rules": rules, "data": data}
