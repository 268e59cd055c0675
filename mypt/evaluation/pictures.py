"""Draw saved figures: bits per byte of each set, and the loss by position and by source."""

from pathlib import Path

from mypt.checkpoints.evaluations import Entry
from mypt.plots import add_legend, new_axes
from mypt.terminal import one_line

_95 = 1.96  # standard errors of a normal distribution


def draw(entries: list[Entry], path: Path) -> list[Path]:
    """Draw losses beside `path`: evaluation.png, evaluation_position.png, evaluation_source.png.

    Returns the pictures that were drawn: none without matplotlib.
    """
    losses = [entry for entry in entries if "loss" in entry]
    labels = _labels(losses)
    points = [
        (label, entry["bits_per_byte"], entry["standard_error"] * entry["bits_per_byte"] / entry["loss"])
        for label, entry in zip(labels, losses, strict=True)
    ]
    sources = [
        (f"{label}: {one_line(part['part'])}", part["loss"], part["standard_error"])
        for label, entry in zip(labels, losses, strict=True)
        for part in entry.get("parts", {}).get("source", ())
    ]
    curves = {
        label: entry["parts"]["position"]
        for label, entry in zip(labels, losses, strict=True)
        if "position" in entry.get("parts", {})
    }
    by_position, by_source = (path.with_name(f"{path.stem}_{kind}.png") for kind in ("position", "source"))
    drawn = [
        points and _draw_points(points, "Bits per byte", "per UTF-8 byte, with 95% interval", path.with_suffix(".png")),
        curves and _draw_curves(curves, by_position),
        sources and _draw_points(sources, "Loss by source", "nats per token, with 95% interval", by_source),
    ]
    return [picture for picture in drawn if picture]


def _labels(losses: list[Entry]) -> list[str]:
    """What tells the entries apart: the set, and of model, definition, split and block size what differs."""
    names = ("model", "definition", "split", "block_size", "data_hash")
    differing = [name for name in names if len({(entry["data"], entry[name]) for entry in losses}) > len(
        {entry["data"] for entry in losses})]  # fmt: skip
    words = {"block_size": "block {}", "data_hash": "data {:.6}"}
    return [
        one_line(", ".join([entry["data"], *(words.get(name, "{}").format(entry[name]) for name in differing)]))
        for entry in losses
    ]


def _draw_points(points: list[tuple[str, float, float]], title: str, unit: str, path: Path) -> Path | None:
    """One row for each (label, value, standard error), the first on top."""
    figure, axes = new_axes(title, unit, "")
    if figure is None:
        return None
    figure.set_size_inches(7, max(1.8, 1.2 + 0.3 * len(points)))
    labels, values, errors = zip(*points, strict=True)
    rows = range(len(points))
    axes.errorbar(values, rows, xerr=[_95 * error for error in errors], fmt="o", capsize=3)
    axes.set_yticks(rows, labels, fontsize=8)
    axes.set_ylim(len(points) - 0.5, -0.5)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a name may hold a $
    figure.savefig(path)
    return path


def _draw_curves(curves: dict[str, list[dict]], path: Path) -> Path | None:
    figure, axes = new_axes("Loss by position in the window", "tokens of context", "nats per token, with 95% interval")
    if figure is None:
        return None
    for label, parts in curves.items():
        ends = [int(part["part"].rpartition("-")[2]) for part in parts]
        losses = [part["loss"] for part in parts]
        errors = [_95 * part["standard_error"] for part in parts]
        axes.errorbar(ends, losses, yerr=errors, marker="o", markersize=3, capsize=2, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    add_legend(axes)
    figure.savefig(path)
    return path
