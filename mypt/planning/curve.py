"""Coverage and effective data of a run against its length, and their picture."""

import math
from dataclasses import dataclass
from pathlib import Path

from mypt.planning.coverage import GOOD, HIGH, MAXIMUM, MINIMUM
from mypt.planning.scaling import effective_tokens
from mypt.planning.verdict import Coverage, times
from mypt.plots import add_legend, new_axes
from mypt.terminal import one_line

POINTS = 200
_BANDS = (  # passes from and to, and the colour of a band and of its level
    (0, 1, "tab:red", "low"),
    (1, MINIMUM, "tab:orange", "below optimal"),
    (MINIMUM, MAXIMUM, "tab:green", GOOD.name),
    (MAXIMUM, 10, "tab:orange", HIGH.name),
    (10, math.inf, "tab:red", "very high"),
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
