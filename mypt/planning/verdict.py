"""Whether a run is worth it: coverage, size hints, repetition and tokens per parameter joined in one verdict."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from mypt.errors import MyPTError
from mypt.formatting import figure, short
from mypt.planning.coverage import GOOD, MAXIMUM, MINIMUM, OPTIMAL, VERY_HIGH, exact, find_band, is_within, whole
from mypt.planning.scaling import TOKENS_PER_PARAMETER, dataset_hint, effective_tokens, model_hint, predicted_loss

FEW_TOKENS_PER_PARAMETER = 5  # a quarter of the compute-optimal number: the model is clearly large for the data


@dataclass(frozen=True)
class DataSource:
    """A source of the training data.

    tokens_seen: before this session, from the ledger. seen_before: by the model that the run starts from.
    """

    name: str
    tokens: int
    weight: float = 1
    tokens_seen: int = 0
    estimated: bool = False
    seen_before: int = 0


@dataclass(frozen=True)
class SourceCoverage:
    """How often a run sees one source, at its end, and what that is worth.

    weight: its share of the samples. seen_before: tokens that the model which the run starts from had seen of it; the
    band counts them, too. effective_tokens: the tokens in all in fresh ones (Muennighoff 2023). worth: their ratio, 1
    up to the first pass.
    """

    name: str
    weight: float
    tokens: int
    estimated: bool
    tokens_seen: int
    tokens_viewed: int
    coverage: float
    band: str
    effective_tokens: int
    worth: float
    seen_before: int = 0

    @property
    def tokens_in_all(self) -> int:
        """Viewed by this run and seen before it."""
        return self.seen_before + self.tokens_viewed


@dataclass(frozen=True)
class Worth:
    """Worth of the viewed tokens of all sources, in fresh ones; the last three are of a model trained from scratch.

    tokens_viewed: with those that the model had seen of the same sources before this run. predicted_loss: nats per
    token, for comparing plans.
    """

    tokens_viewed: int
    effective_tokens: int
    worth: float
    tokens_per_parameter: float | None = None
    predicted_loss: float | None = None
    tokens_per_non_embedding_parameter: float | None = None


@dataclass(frozen=True)
class Verdict:
    """level: good, note or warning. advised: the fewest and the most passes."""

    level: str
    sentence: str
    advised: tuple[int, int]


@dataclass(frozen=True)
class Coverage:
    """How much of its data a run sees, and whether that is enough.

    Coverage, band, recommended steps and verdict are those of the main source, the one with the largest weight, of
    which a step sees only its share. Where the model had seen that source before this run, all but the coverage count
    that, too. passes: the verdict on their number alone, whatever the model's size. suggested_steps: those of the
    suggestion. adapters, frozen: sizes of a LoRA run.
    """

    sources: list[SourceCoverage]
    main: str
    steps: int
    start_step: int
    tokens_per_step: int
    tokens_viewed: int
    coverage: float
    band: str
    recommended_steps: dict[str, int]
    scaling: Worth
    passes: Verdict
    verdict: Verdict
    suggestion: str | None
    suggested_steps: int | None = None
    adapters: int | None = None
    frozen: int | None = None

    @property
    def main_source(self) -> SourceCoverage:
        return next(source for source in self.sources if source.name == self.main)


def assess(
    sources: list[DataSource], tokens_per_step: int, steps: int, start_step: int = 0, parameters: dict | None = None
) -> Coverage:
    """How much of its data a run of `steps` steps in all sees, and whether that is enough.

    parameters: `total` and, if known, `non_embedding`, for figures that need a model; with `adapters`, those of LoRA
    beside a frozen model of the other sizes, there are none of these figures, since the rules behind them are about
    models that learn from scratch.

    Raises MyPTError without a source, or for a size or a number of steps that is not a whole number of at least 1.
    """
    if not sources:
        raise MyPTError("coverage needs at least one training source; name the data, or its size with --tokens")
    if not 0 <= start_step <= whole("steps", steps):
        raise MyPTError(f"start_step is {start_step}, expected 0 to {steps}, the steps of the whole run")
    adapters, base = (parameters or {}).get("adapters"), (parameters or {}).get("total")
    parameters = None if adapters else parameters
    whole("tokens_per_step", tokens_per_step)
    weights = [exact("weight", source.weight) for source in sources]
    shares = [tokens_per_step * weight / sum(weights) for weight in weights]
    seen = [
        _seen(source, share, tokens_per_step, steps - start_step) for source, share in zip(sources, shares, strict=True)
    ]
    index = weights.index(max(weights))
    main, step = seen[index], shares[index]
    viewed = sum(source.tokens_viewed for source in seen)
    scaling = _worth(seen, parameters)
    size, per_parameter = parameters["total"] if parameters else None, scaling.tokens_per_parameter
    passes = judge_data(main.tokens_in_all, main.tokens, step, size, per_parameter)
    verdict = judge(passes, per_parameter)
    suggestion, suggested_steps = _suggest(verdict, main, step, steps, start_step)
    return Coverage(
        sources=seen,
        main=main.name,
        steps=steps,
        start_step=start_step,
        tokens_per_step=tokens_per_step,
        tokens_viewed=viewed,
        coverage=main.coverage,
        band=main.band,
        recommended_steps={
            f"{passes:g}x": _steps_until(passes, main, step, start_step) for passes in (MINIMUM, OPTIMAL, MAXIMUM)
        },
        scaling=scaling,
        passes=passes,
        verdict=verdict,
        suggestion=suggestion,
        suggested_steps=suggested_steps,
        adapters=adapters or None,
        frozen=base if adapters else None,
    )


def _seen(source: DataSource, step: Fraction, tokens_per_step: int, steps_left: int) -> SourceCoverage:
    """step: its tokens in a step."""
    total = whole(f"tokens of {source.name}", source.tokens)
    viewed = source.tokens_seen + round(steps_left * step)
    in_all = source.seen_before + viewed
    effective = effective_tokens(in_all, total) if in_all else 0.0
    return SourceCoverage(
        name=source.name,
        weight=float(step / tokens_per_step),
        tokens=total,
        estimated=source.estimated,
        tokens_seen=source.tokens_seen,
        tokens_viewed=viewed,
        coverage=viewed / total,
        band=find_band(source.seen_before + viewed, total, step).name,
        effective_tokens=round(effective),
        worth=effective / in_all if in_all else 1.0,
        seen_before=source.seen_before,
    )


def _steps_until(passes: float, main: SourceCoverage, step: Fraction, start_step: int) -> int:
    """The step of the run at which the main source has been seen `passes` times, at today's tokens per step.

    0: the model that the run starts from has seen it so often already.
    """
    remaining = exact("passes", passes) * main.tokens - main.seen_before - main.tokens_seen
    return max(0, start_step + math.ceil(remaining / step))


def judge(passes: Verdict, tokens_per_parameter: float | None) -> Verdict:
    """The verdict of `judge_data`, with a note on a model that is large for the data."""
    if passes.level != "good" or not 0 < (tokens_per_parameter or 0) < FEW_TOKENS_PER_PARAMETER:
        return passes
    words = f"with {figure(tokens_per_parameter)} tokens per parameter the model is large for this data"
    return replace(passes, level="note", sentence=f"{passes.sentence}; but {words}, unless it was trained before")


def judge_data(
    viewed: int,
    total_tokens: int,
    tokens_per_step: int | Fraction,
    parameters: int | None = None,
    tokens_per_parameter: float | None = None,
) -> Verdict:
    """Whether `viewed / total` passes over a dataset are a good number.

    The size hints of dataset and model decide where they and the band disagree; either hint is enough. Fewer passes
    are fine, too, if the model gets its compute-optimal 20 tokens per parameter, of all sources together.
    """
    low, high, reason = advised_passes(total_tokens, parameters)
    band = find_band(viewed, total_tokens, tokens_per_step)
    but = "the band is good, but" if band is GOOD else "too few passes:"
    if is_within(viewed, low, high, total_tokens, tokens_per_step):
        level, sentence = "good", f"{reason}, and this run is within"
        if band is not GOOD:
            sentence = f"fine, although the band is {band.name}: {reason}, and the hints decide"
    elif viewed >= low * total_tokens:
        level = "warning" if band is VERY_HIGH else "note"
        sentence = f"{but.replace('too few', 'too many')} {reason}; further passes are worth less and less"
    elif (tokens_per_parameter or 0) >= TOKENS_PER_PARAMETER:
        level = "good"
        sentence = (
            f"enough for this model, although the band is {band.name}: it gets {figure(tokens_per_parameter)} tokens "
            f"per parameter, and about {TOKENS_PER_PARAMETER} are compute-optimal; {reason}"
        )
    else:
        level, sentence = "note" if band is GOOD else band.level, f"{but} {reason}"
    return Verdict(level, sentence, (low, high))


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


def _worth(sources: list[SourceCoverage], parameters: dict | None) -> Worth:
    """All sources together, each with its own repetition."""
    viewed = sum(source.tokens_in_all for source in sources)
    effective = sum(source.effective_tokens for source in sources)
    worth = Worth(viewed, effective, effective / max(viewed, 1))
    if not (parameters and viewed):
        return worth
    unique = sum(min(source.tokens, source.tokens_in_all) for source in sources)
    inner = parameters.get("non_embedding")
    return replace(
        worth,
        tokens_per_parameter=viewed / parameters["total"],
        predicted_loss=predicted_loss(parameters["total"], viewed, unique),
        tokens_per_non_embedding_parameter=viewed / inner if inner else None,
    )


def _suggest(
    verdict: Verdict, main: SourceCoverage, step: Fraction, steps: int, start_step: int
) -> tuple[str | None, int | None]:
    """A number of steps that would suit better, in words and alone; None where the verdict is good or steps are not
    the point."""
    low, high = verdict.advised
    if verdict.level == "good" or is_within(main.tokens_in_all, low, high, main.tokens, step):
        return None, None
    if main.tokens_in_all < low * main.tokens:
        least = _steps_until(low, main, step, start_step)
        return f"raise training.max_steps to at least {least:,} for {low}x (now {steps:,})", least
    most = _steps_until(high, main, step, start_step)
    if main.seen_before + main.tokens_seen >= high * main.tokens:
        return "stop here, or add data" if start_step else "train on other data, or add some", None
    return f"lower training.max_steps to {most:,} for {high}x (now {steps:,}), or use more data", most
