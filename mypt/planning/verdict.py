"""Whether a run is worth it: coverage, size hints, repetition and tokens per parameter joined in one verdict."""

import math
from fractions import Fraction

from mypt.errors import MyPTError
from mypt.planning.coverage import (
    GOOD,
    MAXIMUM,
    MINIMUM,
    OPTIMAL,
    VERY_HIGH,
    exact,
    find_band,
    is_within,
    whole,
)
from mypt.planning.scaling import (
    TOKENS_PER_PARAMETER,
    dataset_hint,
    effective_tokens,
    model_hint,
    predicted_loss,
)

FEW_TOKENS_PER_PARAMETER = 5  # a quarter of the compute-optimal number: the model is clearly large for the data


def assess(
    sources: list[dict], tokens_per_step: int, steps: int, start_step: int = 0, parameters: dict | None = None
) -> dict:
    """What a run sees of its data and whether that is enough, as JSON-ready figures.

    sources: dicts with `name`, `tokens`, and optionally `weight` (1), `tokens_seen` (0; before `start_step`, from the
    ledger) and `estimated` (False). parameters: `total` and, if known, `non_embedding`, for figures that need a model;
    with `adapters`, those of LoRA beside a frozen model of the other sizes, there are none of these figures, since the
    rules behind them are about models that learn from scratch.

    Coverage, band, recommended steps and verdict are those of the main source, the one with the largest weight, of
    which a step sees only its share.

    Raises MyPTError for no source, sizes below 1, or a start beyond the end.
    """
    if not sources:
        raise MyPTError("no training source was given; name one in data.train, or its size with --tokens")
    if not 0 <= start_step <= whole("steps", steps):
        raise MyPTError(f"start_step is {start_step}, expected 0 to {steps}, the steps of the whole run")
    adapters, base = (parameters or {}).get("adapters"), (parameters or {}).get("total")
    parameters = None if adapters else parameters
    rows = _rows(sources, whole("tokens_per_step", tokens_per_step), steps - start_step)
    main = max(rows, key=lambda row: row["weight"])
    step = Fraction(main.pop("step"))
    for row in rows:
        row.pop("step", None)
    recommended = {
        f"{passes:g}x": _steps_until(passes, main, step, start_step) for passes in (MINIMUM, OPTIMAL, MAXIMUM)
    }
    viewed, total = main["tokens_viewed"], main["tokens"]
    verdict = judge(viewed, total, step, parameters["total"] if parameters else None)
    return {
        "sources": rows,
        "main": main["name"],
        "steps": steps,
        "start_step": start_step,
        "tokens_per_step": tokens_per_step,
        "tokens_viewed": sum(row["tokens_viewed"] for row in rows),
        "coverage": main["coverage"],
        "band": main["band"],
        "recommended_steps": recommended,
        "scaling": _scaling(rows, parameters),
        "verdict": verdict,
        "suggestion": _suggest(verdict, main, step, steps, start_step),
        **({"adapters": adapters, "frozen": base} if adapters else {}),
    }


def _rows(sources: list[dict], tokens_per_step: int, steps_left: int) -> list[dict]:
    weights = [exact("weight", source.get("weight", 1)) for source in sources]
    rows = []
    for source, weight in zip(sources, weights, strict=True):
        total = whole(f"tokens of {source['name']}", source["tokens"])
        step = tokens_per_step * weight / sum(weights)
        seen = source.get("tokens_seen", 0)
        viewed = seen + round(steps_left * step)
        rows.append(
            {
                "name": source["name"],
                "weight": float(weight / sum(weights)),
                "tokens": total,
                "estimated": source.get("estimated", False),
                "tokens_seen": seen,
                "tokens_viewed": viewed,
                "coverage": viewed / total,
                "band": find_band(viewed, total, step).name,
                "step": step,
            }
        )
    return rows


def _steps_until(passes: float, main: dict, step: Fraction, start_step: int) -> int:
    """The step of the run at which the main source has been seen `passes` times, at today's tokens per step."""
    remaining = exact("passes", passes) * main["tokens"] - main["tokens_seen"]
    return max(1, start_step + math.ceil(remaining / step))


def judge(viewed: int, total_tokens: int, tokens_per_step: int | Fraction, parameters: int | None = None) -> dict:
    """Level (good, note, warning), sentence and advised passes (low, high) for a dataset seen `viewed / total` times.

    The size hints of dataset and model decide where they and the band disagree; either hint is enough. Fewer passes
    are fine, too, if the model gets its compute-optimal 20 tokens per parameter.
    """
    low, high, reason = advised_passes(total_tokens, parameters)
    band = find_band(viewed, total_tokens, tokens_per_step)
    per_parameter = viewed / parameters if parameters else None
    but = "the band is good, but" if band is GOOD else "too few passes:"
    if is_within(viewed, low, high, total_tokens, tokens_per_step):
        level, sentence = "good", f"{reason}, and this run is within"
        if band is not GOOD:
            sentence = f"fine, although the band is {band.name}: {reason}, and the hints decide"
    elif viewed < low * total_tokens and per_parameter and per_parameter >= TOKENS_PER_PARAMETER:
        level, sentence = (
            "good",
            (
                f"enough for this model, although the band is {band.name}: it gets {figure(per_parameter)} tokens per "
                f"parameter, and about {TOKENS_PER_PARAMETER} are compute-optimal; {reason}"
            ),
        )
    elif viewed < low * total_tokens:
        level, sentence = "note" if band is GOOD else band.level, f"{but} {reason}"
    else:
        level = "warning" if band is VERY_HIGH else "note"
        but = but.replace("too few", "too many")
        sentence = f"{but} {reason}; further passes are worth less and less"
    if level == "good" and per_parameter and per_parameter < FEW_TOKENS_PER_PARAMETER:
        level, sentence = (
            "note",
            (
                f"{sentence}; but with {figure(per_parameter)} tokens per parameter the model is large for this data, "
                "unless it was trained before"
            ),
        )
    return {"level": level, "sentence": sentence, "advised": [low, high]}


def advised_passes(total_tokens: int, parameters: int | None) -> tuple[int, int, str]:
    """Fewest and most passes that the dataset's or the model's size allows, and the hints in words."""
    low, high = dataset_hint(total_tokens)
    reason = f"{low}-{high}x is advised for {short(total_tokens)} tokens"
    if not parameters:
        return low, high, reason
    model_low, model_high = model_hint(parameters)
    other = "" if (model_low, model_high) == (low, high) else f"{model_low}-{model_high}x for "
    reason += f" and {other}{short(parameters)} parameters"
    return min(low, model_low), max(high, model_high), reason


def _scaling(rows: list[dict], parameters: dict | None) -> dict:
    """Figures of the whole run: all sources together, each with its own repetition."""
    viewed = sum(row["tokens_viewed"] for row in rows)
    unique = sum(min(row["tokens"], row["tokens_viewed"]) for row in rows)
    effective = sum(effective_tokens(row["tokens_viewed"], row["tokens"]) for row in rows if row["tokens_viewed"])
    figures = {"tokens_viewed": viewed, "effective_tokens": round(effective), "worth": effective / max(viewed, 1)}
    if parameters and viewed:
        figures |= {
            "tokens_per_parameter": viewed / parameters["total"],
            "predicted_loss": predicted_loss(parameters["total"], viewed, unique),
        }
        if parameters.get("non_embedding"):
            figures["tokens_per_non_embedding_parameter"] = viewed / parameters["non_embedding"]
    return figures


def _suggest(verdict: dict, main: dict, step: Fraction, steps: int, start_step: int) -> str | None:
    """Which number of steps would suit better; None where the verdict is good or steps are not the point."""
    low, high = verdict["advised"]
    viewed, total = main["tokens_viewed"], main["tokens"]
    if verdict["level"] == "good" or is_within(viewed, low, high, total, step):
        return None
    if viewed < low * total:
        least = _steps_until(low, main, step, start_step)
        return f"raise training.max_steps to at least {least:,} for {low}x (now {steps:,})"
    most = _steps_until(high, main, step, start_step)
    if most <= start_step:
        return "stop here, or add data"
    return f"lower training.max_steps to {most:,} for {high}x (now {steps:,}), or use more data"


def short(number: float) -> str:
    """A count in at most three significant digits: 950, 12.3k, 1.23M, 500M, 1.2B, 3T."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{figure(number / limit)}{letter}"
    return figure(number)


def figure(number: float) -> str:
    """A number in three significant digits, without an exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 1e-4 else f"{number:.6f}"
