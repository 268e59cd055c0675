"""Report a ladder: its law, the planned run and the best size, as a dict, a table, lines and a picture."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mypt.forecasting.ladder_law import Law
from mypt.forecasting.ladder_record import LadderRecord
from mypt.formatting import duration, figure, short
from mypt.planning.coverage_report import beyond_words, loss_words, optimum_words
from mypt.planning.plan import Forecast
from mypt.planning.scaling import GUESSING_LOSS, Interval, predicted_loss
from mypt.plots import add_legend, new_axes

PICTURE_NAME = "ladder.png"
_SHOWN = ("E", "alpha", "beta")  # of the law; A and B are of one parameter and one token
Table = tuple[str, list[str], list[list[str]]]


def summary(record: LadderRecord, law: Law) -> dict:
    """JSON-ready: the record, with what is fitted to it and predicted."""
    fitted = [law.predict(one.parameters, one.effective_tokens).middle for one in record.rungs]
    rungs = [asdict(one) | {"fitted": value} for one, value in zip(record.rungs, fitted, strict=True)]
    found = asdict(forecast(record, law, record.parameters, record.tokens, ""))
    del found["folder"]
    return asdict(record) | {
        "rungs": rungs,
        "law": {name: asdict(value) for name, value in law.terms.items()} | {"noise": law.noise},
        "planned": {"parameters": record.parameters, "tokens": record.tokens} | found,
    }


def ladder_table(found: dict) -> Table:
    """Rungs and the planned run; found: a `summary`."""
    columns = ["run", "parameters", "tokens", "seen", "FLOPs", "loss", "fitted", "error", "time"]
    rows = []
    for number, one in enumerate(sorted(found["rungs"], key=lambda one: one["parameters"] * one["tokens"]), 1):
        rows.append(
            [
                f"rung {number}",
                short(one["parameters"]),
                short(one["tokens"]),
                f"{one['tokens'] / one['unique']:.2f}x",
                f"{6 * one['parameters'] * one['tokens']:.2g}",
                f"{one['loss']:.4f} +/- {one['error']:.4f}",
                f"{one['fitted']:.4f}",
                f"{one['fitted'] / one['loss'] - 1:+.2%}",
                duration(one["seconds"]),
            ]
        )
    run = found["planned"]
    seen = f"{run['tokens'] / sum(size for _, size in found['sources']):.2f}x"
    flops = f"{6 * run['parameters'] * run['tokens']:.2g}"
    loss = f"{run['loss']['middle']:.4f}"
    rows.append(["planned", short(run["parameters"]), short(run["tokens"]), seen, flops, "", loss, "", ""])
    return f"Ladder: nats per token of {found['target']}", columns, rows


def ladder_lines(record: LadderRecord, law: Law) -> list[str]:
    """The law, the prediction, how far it reaches and the best size."""
    terms = ", ".join(f"{name} {law.terms[name].middle:.3g} ({_range(law.terms[name])})" for name in _SHOWN)
    found = forecast(record, law, record.parameters, record.tokens, "")
    generic = f"predicts {found.generic_loss:.3f}" if found.generic_loss < GUESSING_LOSS else "is worse than guessing"
    return [
        f"law: L = E + A / N^alpha + B / D^beta with {terms}",
        f"planned run: {loss_words(found.loss)} nats per token; the generic law {generic}",
        f"extrapolated {beyond_words(found.beyond)}",
        optimum_words(found.optimum),
    ]


def _range(interval: Interval) -> str:
    return f"{interval.low:.3g} to {interval.high:.3g}"


def forecast(record: LadderRecord, law: Law, parameters: int, tokens: int, folder: str) -> Forecast:
    """The law's forecast of a run from scratch on the ladder's data."""
    unique = round(sum(min(tokens * share, size) for share, size in record.sources))
    return Forecast(
        folder=folder,
        loss=law.predict(parameters, record.effective(tokens)),
        beyond=law.beyond(parameters, tokens),
        optimum=law.optimum(6 * parameters * tokens, record.effective),
        generic_loss=predicted_loss(parameters, tokens, unique),
    )


def draw_ladder(found: dict, record: LadderRecord, law: Law, path: Path) -> bool:
    """Loss against compute: the rungs, the law along the planned run's tokens per parameter, and the planned run with
    its interval; False if matplotlib is not installed."""
    figure_, axes = new_axes("Ladder", "FLOPs (6 N D)", f"loss on {found['target']}, nats per token")
    if figure_ is None:
        return False
    flops = [6 * one.parameters * one.tokens for one in record.rungs]
    top, ratio = 6 * record.parameters * record.tokens, record.tokens / record.parameters
    line = np.geomspace(min(flops) / 1.5, top * 1.5, 60)
    expected: list[Interval] = []
    for value in line:
        size = math.sqrt(value / 6 / ratio)
        share = size / record.parameters  # repeated as often as the planned run
        expected.append(law.predict(size, record.effective(record.tokens) * share))
    axes.plot(line, [each.middle for each in expected], label=f"law at {figure(ratio)} tokens per parameter")
    axes.fill_between(line, [each.low for each in expected], [each.high for each in expected], alpha=0.2)
    axes.plot(flops, [one.loss for one in record.rungs], "o", color="black", label="rungs")
    loss = found["planned"]["loss"]
    axes.errorbar(
        [top],
        [loss["middle"]],
        yerr=[[loss["middle"] - loss["low"]], [loss["high"] - loss["middle"]]],
        fmt="s",
        capsize=4,
        label="planned run",
    )
    axes.set_xscale("log")
    add_legend(axes)
    figure_.savefig(path)
    return True
