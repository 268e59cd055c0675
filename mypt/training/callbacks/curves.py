"""PNG curves beside the numbers; without matplotlib (the `plots` extra) the numbers stand alone."""

from pathlib import Path


def _axes(title: str, ylabel: str):
    """A figure with one pair of axes, drawn without a display; None when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None, None
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def plot_loss(log_history: list[dict], path: Path) -> None:
    """Training loss and every `eval_<name>_loss` of Trainer's log history, in nats per token."""
    figure, axes = _axes("Loss", "nats per token")
    if figure is None:
        return
    names = sorted({key for entry in log_history for key in entry if key.endswith("_loss") and key.startswith("eval_")})
    for key in ["loss", *(name for name in names if name != "eval_constrained_loss")]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            label = "train" if key == "loss" else key.removeprefix("eval_").removesuffix("_loss")
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1, marker="." if key != "loss" else None)
    if axes.lines:
        axes.legend()
    figure.savefig(path)


def plot_forgetting(report: dict, path: Path) -> None:
    """Each evaluation set's change since step 0 with two standard errors, and the tolerance."""
    figure, axes = _axes("Change since step 0", "nats per token (below 0: better)")
    if figure is None:
        return
    history = report["history"]
    steps = [entry["step"] for entry in history]
    for name in history[-1]["sets"]:
        deltas = [entry["sets"][name]["delta"] for entry in history]
        errors = [2 * entry["sets"][name]["delta_error"] for entry in history]
        role = "target" if name == report["target"] else "guard" if name in report["guard"] else "other"
        axes.errorbar(steps, deltas, yerr=errors, label=f"{name} ({role})", marker=".", capsize=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(report["tolerance"], color="black", linewidth=0.8, linestyle=":", label="tolerance")
    axes.legend()
    figure.savefig(path)
