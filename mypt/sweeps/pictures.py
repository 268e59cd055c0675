"""Draw a sweep: parallel coordinates, importance, loss curves, re-runs; False where matplotlib is not installed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mypt.plots import add_legend, new_axes
from mypt.sweeps.fidelity import Runs
from mypt.terminal import one_line

_COLOURS, _ABSENT = "viridis", "lightgray"
_SPAN = 20  # a parameter whose largest value is this many times its smallest is drawn on a logarithmic axis
_FEW = 6  # different numbers that are all written at their axis
_LONGEST = 18  # characters of a label


@dataclass(frozen=True)
class Line:
    """One trial as it is drawn. params: {recipe key: value}; objective: None if it has none; curve: (steps, losses)."""

    name: str
    params: Mapping[str, object]
    objective: float | None = None
    curve: tuple[Sequence[int], Sequence[float]] = field(default=((), ()))


def draw_parallel(lines: Sequence[Line], path: Path) -> bool:
    """Each parameter that differs, and the objective, as a vertical axis; each trial a line coloured by its objective.

    Trials without one (pruned, failed, a guard lost) are gray and end before the last axis.
    """
    figure, axes = new_axes("Trials by parameters", "", "")
    if figure is None:
        return False
    keys = varied(lines)
    scales = [_Scale([line.params.get(key) for line in lines]) for key in keys]
    scales.append(_Scale([line.objective for line in lines if line.objective is not None]))
    axes.grid(False)
    for line, colour, order in _coloured(figure, axes, lines):
        values = [line.params.get(key) for key in keys] + [line.objective] * (line.objective is not None)
        heights = [scale.height(value) for scale, value in zip(scales, values, strict=False)]
        axes.plot(range(len(heights)), heights, color=colour, linewidth=1.2, alpha=0.85, zorder=2 + order)
    for at, scale in enumerate(scales):
        axes.axvline(at, color="black", linewidth=0.8, zorder=1)
        for height, label in scale.ticks():
            axes.annotate(
                label, (at, height), (3, 0), textcoords="offset points", fontsize=7, va="center", zorder=1000,
                parse_math=False, bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5},
            )  # fmt: skip
    labels = [*(one_line(key).replace(".", ".\n", 1) for key in keys), "objective"]
    axes.set_xticks(range(len(scales)), labels, fontsize=8 if len(labels) < 6 else 6, parse_math=False)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(scales) - 1 + 0.35)
    axes.set_ylim(-0.05, 1.05)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(path)
    return True


def draw_importance(importance: Mapping[str, float], path: Path, title: str) -> bool:
    """Bars of the shares in `importance` ({recipe key: share of 1}), the largest on top."""
    figure, axes = new_axes(title, "share of what sets the best trials apart", "")
    if figure is None:
        return False
    names = sorted(importance, key=importance.get)
    axes.grid(axis="y", visible=False)
    bars = axes.barh(range(len(names)), [importance[name] for name in names], height=0.6, color="C0")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), [one_line(name) for name in names], fontsize=8, parse_math=False)
    axes.set_xlim(0, 1.12 * max(importance.values(), default=1) or 1)
    axes.set_ylim(-0.8, len(names) - 0.2)
    figure.savefig(path)
    return True


def draw_losses(lines: Sequence[Line], path: Path, ylabel: str) -> bool:
    """The objective of each trial at its evaluations; trials that have no objective in gray."""
    figure, axes = new_axes("Trials by step", "optimizer step", ylabel)
    if figure is None:
        return False
    axes.xaxis.get_major_locator().set_params(integer=True)
    drawn = [line for line in lines if line.curve[0]]
    best = min((line for line in drawn if line.objective is not None), key=lambda line: line.objective, default=None)
    for line, colour, order in _coloured(figure, axes, drawn):
        is_best = line is best
        axes.plot(
            *line.curve, color="C3" if is_best else colour, linewidth=2 if is_best else 1, marker=".", markersize=4,
            zorder=1000 if is_best else 2 + order, label=f"{one_line(line.name)} (best)" if is_best else None,
        )  # fmt: skip
    ended = [line for line in drawn if line.objective is None]
    if ended:
        axes.plot([], [], color=_ABSENT, label=f"pruned, failed or a guard lost ({len(ended)})")
    if best or ended:
        add_legend(axes)
    figure.savefig(path)
    return True


def draw_fidelity(swept: Mapping[str, float], runs: Mapping[str, Runs], path: Path, where: str) -> bool:
    """The re-runs of each candidate (a point per seed, the mean as a bar) against its objective in the sweep.

    swept: {candidate: objective in the sweep}; runs: as `mypt.sweeps.fidelity.judge` takes them.
    """
    figure, axes = new_axes("Sweep and re-runs", "objective in the sweep", f"objective on {where}")
    if figure is None:
        return False
    for number, (name, objective) in enumerate(sorted(swept.items(), key=lambda pair: pair[1])):
        values = [value for value in runs[name].values() if value is not None and math.isfinite(value)]
        if values:
            mean = sum(values) / len(values)
            axes.plot([objective] * len(values), values, ".", color=f"C{number % 10}", alpha=0.6)
            axes.plot([objective], [mean], "_", color=f"C{number % 10}", markersize=18, markeredgewidth=2, label=name)
    if axes.lines:
        add_legend(axes)
    figure.savefig(path)
    return True


def varied(lines: Sequence[Line]) -> list[str]:
    """The parameters whose values differ between trials, or that only some of them have."""
    keys = dict.fromkeys(key for line in lines for key in line.params)
    return [key for key in keys if len({repr(line.params.get(key)) for line in lines}) > 1]


def _coloured(figure, axes, lines: Sequence[Line]):
    """(line, colour, order of drawing): the best last, so that it is on top; a colour bar is added."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    found = sorted(line.objective for line in lines if line.objective is not None)
    if not found:
        return [(line, _ABSENT, 0) for line in lines]
    # A few trials that went wrong would leave all the others one colour.
    top = found[-1] if found[-1] <= 2 * _third_quartile(found) - found[0] else _third_quartile(found)
    scale = Normalize(found[0], top if top > found[0] else found[0] + 1e-9, clip=True)
    mapped = ScalarMappable(scale, colormaps[_COLOURS])
    figure.colorbar(mapped, ax=axes, label="objective", extend="max" if top < found[-1] else "neither", pad=0.02)
    worst_first = sorted(lines, key=lambda line: -math.inf if line.objective is None else -line.objective)
    return [
        (line, _ABSENT if line.objective is None else mapped.to_rgba(line.objective), order)
        for order, line in enumerate(worst_first)
    ]


def _third_quartile(values: Sequence[float]) -> float:
    return values[int(0.75 * len(values))]


class _Scale:
    """Heights from 0 to 1 of a parameter's values: linear, logarithmic, or one for each word."""

    def __init__(self, values: Sequence[object]):
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        self._values = sorted(set(numbers))
        self._names = [] if len(numbers) == len(values) else sorted({_label(value) for value in values})
        self._low, self._high = (min(numbers), max(numbers)) if numbers and not self._names else (0, 1)
        self._whole = all(isinstance(value, int) for value in numbers)
        self._log = self._low > 0 and self._high / self._low >= _SPAN

    def height(self, value: object) -> float:
        if self._names:
            return (self._names.index(_label(value)) + 0.5) / len(self._names)
        low, high, at = (math.log(one) if self._log else one for one in (self._low, self._high, value))
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        if self._names:
            return [(self.height(name), name) for name in self._names]
        values = self._values
        if len(values) > _FEW:
            shares = [at / (_FEW - 2) for at in range(_FEW - 1)]
            values = [self._low + (self._high - self._low) * share for share in shares]
            if self._log:
                values = [self._low * (self._high / self._low) ** share for share in shares]
            values = sorted({round(one) for one in values}) if self._whole else values
        return [(self.height(value), f"{value:,}" if self._whole else f"{value:.3g}") for value in values]


def _label(value: object) -> str:
    text = one_line("absent" if value is None else value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
