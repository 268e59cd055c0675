"""How often a run sees its data, in words and as a picture: for `mypt plan` and the start of a training run."""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

from mypt.formatting import figure, short, times
from mypt.planning.coverage import BANDS, GOOD, HIGH, MAXIMUM, MINIMUM
from mypt.planning.plan import Forecast
from mypt.planning.scaling import GUESSING_LOSS, TOKENS_PER_PARAMETER, Interval, Optimum, effective_tokens
from mypt.planning.verdict import Coverage, SourceCoverage
from mypt.plots import add_legend, new_axes
from mypt.terminal import one_line

BAR = 50  # characters of the progress bar
FAR = 12  # times the compute of a ladder's largest rung
POINTS = 200
_BANDS = (  # passes from and to, and the colour of a band and of its level
    (0, 1, "tab:red", "low"),
    (1, MINIMUM, "tab:orange", "below optimal"),
    (MINIMUM, MAXIMUM, "tab:green", GOOD.name),
    (MAXIMUM, 10, "tab:orange", HIGH.name),
    (10, math.inf, "tab:red", "very high"),
)


def coverage_lines(seen: Coverage, layout: dict[str, int], ladder: Forecast | None = None) -> list[str]:
    """Lines for people: how often the data is seen, what that is worth, and what to change.

    layout: the factors of a step's tokens: batch, block, accumulation, processes. ladder: in place of the generic law.
    """
    factors = [f"{size:,} {name}" for name, size in layout.items() if size > 1 or name in ("batch", "block")]
    main = seen.main_source
    size = _line("Dataset size", f"{_about(main)}{main.tokens:,} tokens{' (estimate)' if main.estimated else ''}")
    lines = [
        "Dataset coverage",
        *([size] if len(seen.sources) == 1 else []),
        _line("Tokens per step", f"{seen.tokens_per_step:,} ({' x '.join(factors)})"),
        _line("Steps", _steps(seen)),
        _line("Tokens to view", _tokens_to_view(seen)),
        *(_source_lines(seen) if len(seen.sources) > 1 else []),
        *_coverage_lines(seen),
        *_worth_lines(seen, ladder),
        _line("Verdict", f"{seen.verdict.level}: {seen.verdict.sentence}"),
        *_recommendation_lines(seen),
        _replacement(seen.coverage),
    ]
    return "\n".join(lines).splitlines()


def _line(label: str, value: str) -> str:
    """`label: value`, wrapped under the value's first column."""
    return textwrap.fill(value, 100, initial_indent=f"  {label + ':':<23}", subsequent_indent=" " * 25)


def _about(source: SourceCoverage) -> str:
    return "about " if source.estimated else ""


def _steps(seen: Coverage) -> str:
    start, steps = seen.start_step, seen.steps
    return f"{steps:,} (from step {start:,}: {steps - start:,} left)" if start else f"{steps:,}"


def _tokens_to_view(seen: Coverage) -> str:
    before = sum(source.tokens_seen for source in seen.sources)
    left = seen.tokens_viewed - before
    return f"{left:,} more, {seen.tokens_viewed:,} in all" if before else f"{left:,}"


def _source_lines(seen: Coverage) -> list[str]:
    """A small table of the mixture: each source's share of the samples, tokens, passes and what they are worth."""
    rows = [("source", "samples", "tokens", "seen", "worth", "band")]
    for source in seen.sources:
        fresh = f"{short(source.effective_tokens)} fresh ({source.worth:.0%})"
        size = f"{_about(source)}{source.tokens:,}"
        share, name = f"{source.weight:.1%}", one_line(source.name)
        seen_before = f" + {times(source.seen_before / source.tokens)} before" if source.seen_before else ""
        rows.append((name, share, size, times(source.coverage) + seen_before, fresh, source.band))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells, band in rows:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False)]
        lines.append("  ".join([f"    {name:<{widths[0]}}", *aligned, band]))
    return lines


def _seen_before(source: SourceCoverage) -> str:
    if not source.seen_before:
        return ""
    before, in_all = (times(tokens / source.tokens) for tokens in (source.seen_before, source.tokens_in_all))
    return f", and {before} before by the start model: {in_all} in all"


def _coverage_lines(seen: Coverage) -> list[str]:
    main = seen.main_source
    when = " in all, after this run" if seen.start_step else ""
    of = f" of {main.name}" if len(seen.sources) > 1 else ""
    band = next(band for band in BANDS if band.name == seen.band)
    level = "" if band.level == "good" else f" ({band.level})"
    return [
        _line("Coverage", f"{_about(main)}{times(seen.coverage)}{of}{when}{_seen_before(main)}"),
        _passes(main.tokens_viewed, main.tokens),
        _line("Band", f"{band.name}{level}: {band.sentence}"),
    ]


def _passes(viewed: int, total: int) -> str:
    full, rest = divmod(viewed, total)
    if full:
        return _line("Full passes", f"{full:,}x + {1000 * rest // total / 10}% of dataset")
    filled = BAR * viewed // total
    return _line("Progress", f"[{'#' * filled}{'-' * (BAR - filled)}] {1000 * viewed // total / 10}%")


def _worth_lines(seen: Coverage, ladder: Forecast | None) -> list[str]:
    worth, lines = seen.scaling, []
    if seen.main_source.tokens_in_all > seen.main_source.tokens:
        before = sum(source.seen_before for source in seen.sources)
        of_them = f" ({short(before)} of them before this run)" if before else ""
        tokens = f"{short(worth.tokens_viewed)} tokens{of_them} with repetition"
        fresh = f"worth {short(worth.effective_tokens)} fresh ones ({worth.worth:.0%})"
        lines.append(_line("Repetition", f"{tokens} are {fresh}"))
    if seen.adapters:
        sizes = f"{short(seen.adapters)} parameters of adapters are trained, {short(seen.frozen)} are frozen"
        lines.append(_line("LoRA", f"{sizes}; rules about tokens per parameter are of training from scratch"))
    if worth.tokens_per_parameter is not None:
        inner = worth.tokens_per_non_embedding_parameter
        without = f"{figure(inner)} without embeddings; " if inner else ""
        optimal = f"about {TOKENS_PER_PARAMETER} is compute-optimal"
        lines.append(_line("Tokens per parameter", f"{figure(worth.tokens_per_parameter)} ({without}{optimal})"))
        if ladder:
            lines += [
                _line("Predicted loss", f"{loss_words(ladder.loss)} nats/token, by the ladder in {ladder.folder}")
            ]
            lines += [_line("Extrapolation", beyond_words(ladder.beyond))]
            lines += [_line("Best size", optimum_words(ladder.optimum))]
        elif worth.predicted_loss < GUESSING_LOSS:
            loss = f"{worth.predicted_loss:.2f} nats/token (an estimate to compare plans, no promise)"
            lines.append(_line("Predicted loss", loss))
    return lines


def _recommendation_lines(seen: Coverage) -> list[str]:
    lines, main = ["  Recommended training.max_steps:"], seen.main_source
    for name, (passes, steps) in zip(("Minimum", "Optimal", "Maximum"), seen.recommended_steps.items(), strict=True):
        is_passed = main.seen_before + main.tokens_seen >= float(passes.removesuffix("x")) * main.tokens
        lines.append(f"    {f'{name} ({passes}):':<21}{steps:,}{' (already passed)' if is_passed else ''}")
    step = seen.tokens_per_step * main.weight
    if step > main.tokens:
        lines.append(_line("Note", f"one step views the data {figure(step / main.tokens)} times: lower the batch size"))
    if seen.suggestion:
        lines.append(_line("Suggestion", seen.suggestion))
    return lines


def _replacement(coverage: float) -> str:
    """The share that sampling with replacement, which this project does not do, would have reached."""
    at = min(coverage, 1)
    return (
        "  Each pass takes every window once, without replacement (with replacement,\n"
        f"  {times(at)} would reach only {-math.expm1(-at):.0%} of the data)."
    )


def loss_words(loss: Interval) -> str:
    return f"{loss.middle:.3f} ({loss.low:.3f} to {loss.high:.3f})"


def beyond_words(beyond: dict[str, float]) -> str:
    """How far a run is from the rungs of a ladder, and that it is further than was checked."""
    factors = ", ".join(f"{figure(value)}x the {name}" for name, value in beyond.items())
    if max(beyond.values()) <= 1:
        return f"within the rungs: {factors} of the largest"
    far = "; that is further than was checked (docs/ladder.md)" if beyond["compute"] > FAR else ""
    return f"to {factors} of the largest rung{far}"


def optimum_words(best: Optimum) -> str:
    size = best.parameters
    return (
        f"{short(size.middle)} parameters ({short(size.low)} to {short(size.high)}) on {short(best.tokens)} tokens are "
        f"compute-optimal for {best.flops:.3g} FLOPs: {loss_words(best.loss)}"
    )


@dataclass(frozen=True)
class Curve:
    """Passes over the main source against steps: viewed, and what they are worth in passes over fresh data."""

    steps: list[float]
    coverage: list[float]
    effective: list[float]


def coverage_curve(seen: Coverage) -> Curve:
    """The curve of a plan from 0 to half as many steps again as the run or its recommended maximum has."""
    main = seen.main_source
    most = 1.5 * max(seen.steps, *seen.recommended_steps.values())
    step = seen.tokens_per_step * main.weight
    steps = [most * index / POINTS for index in range(POINTS + 1)]
    before = main.tokens_viewed - (seen.steps - seen.start_step) * step  # of another layout, from the ledger
    viewed = [max(0.0, before + (at - seen.start_step) * step) for at in steps]
    effective = [effective_tokens(tokens, main.tokens) / main.tokens if tokens else 0.0 for tokens in viewed]
    return Curve(steps, [tokens / main.tokens for tokens in viewed], effective)


def draw_coverage(seen: Coverage, path: Path) -> bool:
    """Draw the curve with the bands shaded and the run marked; False if matplotlib is not installed."""
    main, curve = seen.main_source, coverage_curve(seen)
    figure, axes = new_axes(f"How often {one_line(main.name)} is seen", "optimizer steps", "passes over the data")
    if figure is None:
        return False
    axes.title.set_parse_math(False)  # a name may hold a $
    top = curve.coverage[-1]
    for low, high, colour, name in _BANDS:
        if low < top:
            axes.axhspan(low, min(high, top), color=colour, alpha=0.12, linewidth=0)
            axes.annotate(name, (0.995, low), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                          fontsize=7, color="dimgray")  # fmt: skip
    axes.plot(curve.steps, curve.coverage, label="coverage")
    axes.plot(curve.steps, curve.effective, label="worth in fresh passes", linestyle="--")
    axes.axvline(seen.steps, color="black", linewidth=0.8, linestyle=":")
    axes.plot([seen.steps], [seen.coverage], "o", color="black", label=f"this run: {times(seen.coverage)}")
    axes.set_xlim(0, curve.steps[-1])
    axes.set_ylim(0, top)
    add_legend(axes)
    figure.savefig(path)
    return True
