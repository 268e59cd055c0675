"""Draw the charts of a run: loss, forgetting, learning rate, throughput, gradient norm, interpolation."""

from collections.abc import Iterable

from mypt.evaluation.forgetting import TOLERANCE
from mypt.report.charts import Chart, Curve, Mark, draw, is_finite
from mypt.report.content import RunContent
from mypt.report.html import list_of


def points_of(log: list[dict], key: str) -> list[tuple[float, float | None]]:
    """(step, value) of each entry that has the key; None for a value that was NaN or infinite."""
    found = [(entry["step"], entry[key]) for entry in log if key in entry]
    return [(step, value if isinstance(value, int | float) else None) for step, value in found]


def evaluation_curves(content: RunContent) -> dict[str, list[tuple[float, float | None]]]:
    """The loss of each evaluation set, by name, the target first; from the log, or from forgetting.json without one."""
    keys = dict.fromkeys(
        key for entry in content.log for key in entry if key.startswith("eval_") and key.endswith("loss")
    )
    keys.pop("eval_constrained_loss", None)
    curves = {
        key.removeprefix("eval_").removesuffix("loss").strip("_") or "eval": points_of(content.log, key) for key in keys
    }
    for entry in [] if curves else content.history:
        for name, reading in entry["sets"].items():
            curves.setdefault(name, []).append((entry["step"], reading["loss"]))
    return curves


def draw_curves(content: RunContent) -> list[str]:
    """All charts, and lines about what is not on them."""
    marks = list(content.events())
    charts = "".join(map(draw, _charts(content, marks)))
    notes = []
    if lost := sum(not is_finite(value) for _, value in points_of(content.log, "loss")):
        notes.append(f"{lost} logged training loss{'es' if lost > 1 else ''} NaN or infinite: a cross at the top.")
    if content.unreadable:
        notes.append(f"{content.unreadable} lines of metrics.jsonl could not be read and are left out.")
    if not charts:
        return [list_of(["Nothing was logged yet.", *notes])]
    return [f'<div class="charts">{charts}</div>', list_of(notes)]


def _charts(content: RunContent, marks: list[Mark]) -> Iterable[Chart]:
    sets = evaluation_curves(content)
    colors = {name: number for number, name in enumerate(sets, start=1)}
    curves, train = [], points_of(content.log, "loss")
    if train:
        curves.append(Curve("training", train, 0, smooth=True))
    curves += [Curve(name, points, colors[name], dots=True) for name, points in sets.items()]
    yield Chart("loss", "Loss", "nats per token", curves, marks)
    history, report = content.history, content.info.forgetting
    if len(history) > 1:
        yield Chart(
            "change", "Forgetting: change since step 0", "nats per token, with two standard errors; below 0 is better",
            list(_changes(history, report, colors)),
            [mark for mark in marks if mark.x in {action["step"] for action in report.get("actions", [])}],
            [(0.0, ""), (report.get("tolerance", TOLERANCE), "tolerance")],
            form="signed",
        )  # fmt: skip
    yield Chart(
        "rate",
        "Learning rate",
        "by the schedule",
        [Curve("", points_of(content.log, "learning_rate"))],
        form="rate",
        floor=0.0,
    )
    speeds = [Curve("", points_of(content.log, "throughput/tokens_per_second"), smooth=True)]
    yield Chart("speed", "Throughput", "tokens per second, all processes", speeds, form="count", floor=0.0)
    norms = [Curve("", points_of(content.log, "grad_norm"), smooth=True)]
    yield Chart("gradient", "Gradient norm", "before clipping", norms, floor=0.0)
    if (between := content.interpolation) and between["curve"]:
        names = [*between["curve"][0]["sets"]]
        yield Chart(
            "interpolation", "Interpolation towards the start", "change in nats per token; alpha 0 is the start",
            [
                Curve(name, [(point["alpha"], point["sets"][name]["delta"]) for point in between["curve"]],
                      colors.get(name, number), dots=True)
                for number, name in enumerate(names, start=1)
            ],
            [Mark(between["alpha"], f"alpha {between['alpha']:g}: published")],
            [(0.0, ""), (between["tolerance"], "tolerance")],
            form="signed", x_unit="alpha",
        )  # fmt: skip


def _changes(history: list[dict], report: dict, colors: dict[str, int]) -> Iterable[Curve]:
    names = dict.fromkeys(name for entry in history for name in entry["sets"])
    for number, name in enumerate(names, start=1):
        readings = [(entry["step"], entry["sets"][name]) for entry in history if name in entry["sets"]]
        role = "target" if name == report.get("target") else "guarded" if name in report.get("guard", []) else "other"
        yield Curve(
            f"{name} ({role})",
            [(step, reading["delta"]) for step, reading in readings],
            colors.get(name, number),
            errors=[2 * reading.get("delta_error", 0.0) for _, reading in readings],
            dots=True,
        )
