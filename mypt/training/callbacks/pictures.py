"""Draw loss.png and forgetting.png if matplotlib (the `plots` extra) is installed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mypt.errors import MyPTError
from mypt.plots import add_legend, new_axes
from mypt.terminal import one_line

MOST_MEANS = 2_000  # points of the smoothed curve: each is a mean over a fifteenth of the log
PAUSE = 30.0  # seconds between drawings at saves; one takes as long as many steps of a tiny model


class Pace:
    """Whether `PAUSE` seconds have passed since the last drawing, or since this object was made."""

    def __init__(self):
        self._drawn = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._drawn < PAUSE:
            return False
        self._drawn = now
        return True


@contextmanager
def draw_what_ends_it(trainer) -> Iterator[None]:
    """Draw the curves when an error ends the training: Trainer has no event for it."""
    try:
        yield
    except MyPTError:
        for callback in trainer.callback_handler.callbacks:
            if trainer.state.log_history and hasattr(callback, "draw"):
                callback.draw(trainer.args, trainer.state)
        raise


def plot_loss(log_history: list[dict], path: Path) -> None:
    """Draw the training loss as logged and smoothed, each evaluation set (nats per token), and the learning rate."""
    figure, axes = new_axes("Loss", "optimizer step", "nats per token")
    if figure is None:
        return
    names = sorted({key for entry in log_history for key in entry if key.startswith("eval_") and key.endswith("loss")})
    if train := _points(log_history, "loss"):
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="C0", linewidth=0.8, alpha=0.3)
        at = range(0, len(losses), max(1, len(losses) // MOST_MEANS))
        axes.plot([steps[i] for i in at], smoothed(losses, at), color="C0", linewidth=1.4, label="train")
    for number, key in enumerate((name for name in names if name != "eval_constrained_loss"), start=1):
        label = key.removeprefix("eval_").removesuffix("loss").strip("_") or "eval"
        axes.plot(*zip(*_points(log_history, key), strict=True), f"C{number}.-", label=one_line(label), linewidth=1)
    if axes.lines:
        add_legend(axes)
    if rates := _points(log_history, "learning_rate"):
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color="gray", linewidth=0.8, linestyle=":")
        right.set_ylabel("learning rate (dotted)", color="gray")
        right.set_ylim(bottom=0)
        right.ticklabel_format(axis="y", scilimits=(0, 0))
        right.tick_params(colors="gray")
    figure.savefig(path)


def _points(log_history: list[dict], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in log_history if key in entry]


def smoothed(losses: Sequence[float], at: Sequence[int] | None = None) -> list[float]:
    """Means over a fifteenth of the curve around each point; over fewer points at both ends.

    at: numbers of the points to give them for; None: all.
    """
    reach = len(losses) // 30
    parts = (losses[max(0, i - reach) : i + reach + 1] for i in (range(len(losses)) if at is None else at))
    return [sum(part) / len(part) for part in parts]


def plot_forgetting(report: dict, path: Path) -> None:
    """Draw each evaluation set's change since step 0 with two standard errors, and the tolerance."""
    figure, axes = new_axes("Change since step 0", "optimizer step", "nats per token (below 0: better)")
    if figure is None:
        return
    history = report["history"]
    steps = [entry["step"] for entry in history]
    for name in history[-1]["sets"]:
        deltas = [entry["sets"][name]["delta"] for entry in history]
        errors = [2 * entry["sets"][name]["delta_error"] for entry in history]
        role = "target" if name == report["target"] else "guard" if name in report["guard"] else "other"
        axes.errorbar(steps, deltas, yerr=errors, label=f"{one_line(name)} ({role})", marker=".", capsize=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(report["tolerance"], color="black", linewidth=0.8, linestyle=":", label="tolerance")
    add_legend(axes)
    figure.savefig(path)
