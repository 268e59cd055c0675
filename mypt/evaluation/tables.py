"""Print what was measured as tables."""

from mypt.checkpoints.evaluations import DEFINITIONS
from mypt.evaluation.compare import Score
from mypt.evaluation.metrics import Metric
from mypt.terminal import print_table, say

_UNITS = {"document": "documents", "window": "windows", "stretch": "stretches of text"}


def print_figures(found: list[Score | Metric]) -> None:
    """One table of all figures, what their definition and their intervals are, and a table of each division."""
    scores = [figure for figure in found if isinstance(figure, Score)]
    metrics = [figure for figure in found if isinstance(figure, Metric)]
    columns = ["model", "data"]
    columns += ["tokens", "nats/token", "perplexity", "bits/byte"] if scores else []
    columns += ["metric", "value"] if metrics else []
    columns += ["change", "interval"] if scores else ["change"]
    columns += ["forgetting"] if scores else []
    rows = [_score_row(figure) if isinstance(figure, Score) else _metric_row(figure) for figure in found]
    print_table("", columns, [[row.get(column, "") for column in columns] for row in rows])
    for definition in dict.fromkeys(score.definition for score in scores):
        say(f"{definition}: {DEFINITIONS[definition]}")
    pieces = {score.data: (score.units, score.unit) for score in scores if score.bits_interval}
    if pieces:
        words = ", ".join(f"{units} {_UNITS[unit]} ({name})" for name, (units, unit) in pieces.items())
        say(f"interval: 95%, of the change, from {words}")
    for details in dict.fromkeys(metric.details for metric in metrics):
        say(details)
    for kind in dict.fromkeys(kind for score in scores for kind in score.parts):
        for name in dict.fromkeys(score.data for score in scores):
            _print_parts(kind, name, [score for score in scores if score.data == name])


def _score_row(score: Score) -> dict[str, str]:
    change, interval, low_high = "", "", score.interval
    if score.delta is not None:
        change = f"{score.delta:+.4f} +/- {score.delta_error:.4f}"
    elif score.bits_delta is not None:
        change, low_high = f"{score.bits_delta:+.4f} bits/byte", score.bits_interval
    if low_high:
        interval = f"{low_high[0]:+.4f} to {low_high[1]:+.4f}"
    return {
        "model": score.model if score.alpha is None else f"{score.model} (alpha {score.alpha:g})",
        "data": score.data,
        "tokens": f"{score.tokens:,}",
        "nats/token": f"{score.loss:.4f} +/- {score.standard_error:.4f}",
        "perplexity": f"{score.perplexity:.2f}",
        "bits/byte": f"{score.bits_per_byte:.4f}",
        "change": change,
        "interval": interval,
        "forgetting": score.state or "",
    }


def _metric_row(metric: Metric) -> dict[str, str]:
    error = "" if metric.error is None else f" +/- {metric.error:.4f}"
    return {
        "model": metric.model,
        "data": metric.data,
        "metric": metric.metric,
        "value": f"{metric.value:.4f}{error}",
        "change": "" if metric.delta is None else f"{metric.delta:+.4f}",
    }


def _print_parts(kind: str, name: str, scores: list[Score]) -> None:
    """One row for each part, one column of losses for each model."""
    first = "tokens of context" if kind == "position" else "source"
    counts = {part["part"]: part["tokens"] for part in scores[0].parts[kind]}
    cells = [{part["part"]: _part_cell(part) for part in score.parts[kind]} for score in scores]
    rows = [[part, f"{tokens:,}", *(cell.get(part, "") for cell in cells)] for part, tokens in counts.items()]
    say()
    print_table(
        f"{name} by {kind}, nats/token (bits/byte; change)", [first, "tokens", *(score.model for score in scores)], rows
    )


def _part_cell(part: dict) -> str:
    more = [] if part["bits_per_byte"] is None else [f"{part['bits_per_byte']:.4f}"]
    more += [] if part["delta"] is None else [f"{part['delta']:+.4f} +/- {part['delta_error']:.4f}"]
    return f"{part['loss']:.4f} +/- {part['standard_error']:.4f}" + (f" ({'; '.join(more)})" if more else "")
