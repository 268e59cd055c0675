"""Draw saved figures: bits per byte of each set, and the loss by position and by source."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from mypt.checkpoints.evaluations import Entry
from mypt.plots import add_legend, new_axes
from mypt.terminal import one_line

_BAR = 1.96  # standard errors
_TELLING = {"model": "{}", "definition": "{}", "split": "{}", "block_size": "block {}", "data_hash": "data {:.6}"}


def draw(entries: list[Entry], path: Path) -> list[Path]:
    """Draw losses beside `path`: evaluation.png, evaluation_position.png, evaluation_source.png.

    Returns the pictures that were drawn: none without matplotlib.
    """
    losses = [entry for entry in entries if "loss" in entry]
    positions, sources = (
        [entry for entry in losses if kind in entry.get("parts", {})] for kind in ("position", "source")
    )
    pictures = []
    if losses:
        points = [(label, entry) for label, entry in zip(_labels(losses), losses, strict=True)]
        pictures.append(_draw_points(points, "Bits per byte", path.with_suffix(".png")))
    if positions:
        curves = {label: e["parts"]["position"] for label, e in zip(_labels(positions), positions, strict=True)}
        pictures.append(_draw_curves(curves, path.with_name(f"{path.stem}_position.png")))
    if sources:
        points = [
            (f"{label}: {one_line(part['part'].rpartition('/')[2])}", part)
            for label, entry in zip(_labels(sources), sources, strict=True)
            for part in entry["parts"]["source"]
        ]
        pictures.append(_draw_points(points, "Loss by source", path.with_name(f"{path.stem}_source.png")))
    return [picture for picture in pictures if picture]


def _labels(losses: list[Entry]) -> list[str]:
    """The set of each entry, and as much of what else tells entries apart as makes the labels differ."""
    labels = [entry["data"] for entry in losses]
    for name, words in _TELLING.items():
        if len(set(labels)) == len(labels):
            break
        if len({entry[name] for entry in losses}) > 1:
            labels = [f"{label}, {words.format(entry[name])}" for label, entry in zip(labels, losses, strict=True)]
    return [one_line(label) for label in labels]


def _scaled(rows: list[dict]) -> tuple[str, list[float], list[float]]:
    """Unit, means and 1.96 standard errors over windows, of each row.

    In bits per byte, which compare between tokenizers, if all rows have them.
    """
    if all(row["bits_per_byte"] for row in rows):
        unit, scales = "bits per UTF-8 byte", [row["bits_per_byte"] / row["loss"] for row in rows]
    else:
        unit, scales = "nats per token", [1.0] * len(rows)
    pairs = list(zip(rows, scales, strict=True))
    means, halves = [row["loss"] * s for row, s in pairs], [_BAR * row["standard_error"] * s for row, s in pairs]
    return f"{unit}, +/- 1.96 standard errors", means, halves


def _draw_points(points: list[tuple[str, dict]], title: str, path: Path) -> Path | None:
    """One row for each label and its figures, the first on top."""
    labels, rows = zip(*points, strict=True)
    unit, means, halves = _scaled(list(rows))
    figure, axes = new_axes(title, unit, "")
    if figure is None:
        return None
    figure.set_size_inches(7, max(1.8, 1.2 + 0.3 * len(points)))
    axes.errorbar(means, range(len(points)), xerr=halves, fmt="o", capsize=3)
    axes.set_yticks(range(len(points)), labels, fontsize=8)
    axes.set_ylim(len(points) - 0.5, -0.5)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a name may hold a $
    figure.savefig(path)
    return path


def _draw_curves(curves: dict[str, list[dict]], path: Path) -> Path | None:
    """One line for each label, over the middles of the buckets of context."""
    unit, means, halves = _scaled(list(itertools.chain.from_iterable(curves.values())))
    figure, axes = new_axes("Loss by position in the window", "tokens of context", unit)
    if figure is None:
        return None
    means, halves = iter(means), iter(halves)
    for (label, parts), style in zip(curves.items(), itertools.cycle(("-", "--", ":", "-.")), strict=False):
        bounds = [[int(bound) for bound in part["part"].split("-")] for part in parts]
        middles, size = [math.sqrt(bound[0] * bound[-1]) for bound in bounds], len(parts)
        rows = {"yerr": list(itertools.islice(halves, size)), "linestyle": style, "label": label}
        axes.errorbar(middles, list(itertools.islice(means, size)), marker="o", markersize=3, capsize=2, **rows)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    figure.set_size_inches(9, 4.5)  # with the legend beside the axes: many curves leave no room inside
    add_legend(axes, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7)
    figure.savefig(path)
    return path
