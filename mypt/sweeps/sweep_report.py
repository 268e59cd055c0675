"""Report of a sweep: the table of its trials, the best one's full run, report.json, pictures, re-runs, the verdict."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path

from mypt.checkpoints.state import METRICS_NAME
from mypt.files import replace_text
from mypt.formatting import duration
from mypt.sweeps.confirm import Confirmed, candidate, latest
from mypt.sweeps.pictures import Line, draw_fidelity, draw_importance, draw_losses, draw_parallel
from mypt.sweeps.record import SweepRecord, TrialRecord, is_loss
from mypt.sweeps.space import read_space
from mypt.sweeps.trial import as_override
from mypt.terminal import print_table, say

REPORT_NAME = "report.json"
PICTURES = ("parallel.png", "importance.png", "losses.png", "fidelity.png")
OBJECTIVE = "eval_constrained_loss"
_SHOWN = ("number", "state", "reason", "objective", "standard_error", "params", "step", "seconds", "folder")
_LEAST = 5  # completed trials for an importance


# ---- trials ----


def trials_table(record: SweepRecord) -> tuple[str, list[str], list[list[object]]]:
    """Arguments of `mypt.terminal.print_table`: completed trials by their objective, then pruned ones, then others."""
    names = list(dict.fromkeys(name for trial in record.trials for name in trial.params))
    rows = [
        [
            trial.number,
            trial.state if trial.reason in ("", "max_steps", "pruned") else f"{trial.state} ({trial.reason})",
            _last_loss(trial),
            f"{trial.step or 0}/{trial.max_steps or '?'}",
            duration(trial.seconds),
            *(_cell(trial.params.get(name, "")) for name in names),
        ]
        for trial in sorted(record.trials, key=_order)
    ]
    return "", ["trial", "state", "objective", "steps", "time", *names], rows


def best_trial(record: SweepRecord) -> TrialRecord | None:
    """The trial of the lowest objective that kept its guards."""
    return min((trial for trial in record.trials if trial.kept), key=_order, default=None)


def report_lines(record: SweepRecord) -> list[str]:
    ended = [trial for trial in record.trials if trial.state in ("completed", "pruned", "failed")]
    steps = sum(trial.step or 0 for trial in ended)
    asked = sum(trial.max_steps or 0 for trial in ended if trial.state != "failed")
    wall, cpu = (sum(getattr(trial, name) for trial in ended) for name in ("seconds", "cpu_seconds"))
    lines = [f"{len(ended)} of {len(record.trials)} trials ended; together {duration(wall)}, {duration(cpu)} of CPU"]
    if asked and any(trial.reason == "pruned" for trial in ended):
        lines.append(f"pruned: {steps:,} of {asked:,} steps were trained ({1 - steps / asked:.0%} saved)")
    if best := best_trial(record):
        error = "" if best.standard_error is None else f" +/- {best.standard_error:.4f}"
        lines.append(f"lowest objective: trial {best.number}, {best.objective:.4f}{error} nats, in {best.folder}")
        if "configuration" not in best.params:
            full = [as_override(*pair) for pair in best.params.items()]
            lines.append(f"on all data: {shlex.join(['mypt', 'train', record.recipe, *full])}")
    return lines


_ORDER = ("completed", "pruned", "failed", "running", "waiting")


def _order(trial: TrialRecord) -> tuple:
    values = [value for _, value in trial.values]
    last = trial.objective if trial.objective is not None else values[-1] if values else float("inf")
    return _ORDER.index(trial.state), last, trial.number


def _last_loss(trial: TrialRecord) -> str:
    if trial.objective is not None:
        return f"{trial.objective:.4f}"
    return f"({trial.values[-1][1]:.4f})" if trial.values else ""


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- report.json, pictures and re-runs ----


def write_report(folder: Path, record: SweepRecord, found: Confirmed | None = None) -> dict:
    """Write report.json and the pictures into the sweep's folder, and return the report. Raises OSError.

    found: What re-runs said; None: what they said last, if there were any.
    """
    found = found or latest(record, folder)
    report = build_report(record, found)
    replace_text(folder / REPORT_NAME, json.dumps(report, indent=1, allow_nan=False) + "\n")
    lines = [_as_line(trial) for trial in record.trials if trial.state != "waiting"]
    draw_parallel(lines, folder / "parallel.png")
    draw_losses(lines, folder / "losses.png", "target loss, guards kept (nats per token)")
    if importance := report["importance"]:
        draw_importance(importance, folder / "importance.png", f"Importance (PED-ANOVA, {report['completed']} trials)")
    if found:
        draw_fidelity(found.swept, found.runs, folder / "fidelity.png", _where(record, found.samples))
    return report


def build_report(record: SweepRecord, found: Confirmed | None) -> dict:
    """The content of report.json: plain values, null for what is not known.

    Keys: `recipe`, `type`, `samples`, `full_samples`, `states` {state: trials}, `completed` (with the guards kept),
    `cpu_seconds` of all trials, `best` (number of the best trial in the sweep), `trials` (the best first; sweep.json
    has all of each), `importance` {recipe key: share}, `confirmation` (what `--confirm` measured) and `verdict` (one
    line).
    """
    losses = {trial.number: math.inf if trial.objective is None else trial.objective for trial in record.trials}
    ranked = sorted(record.trials, key=lambda trial: (not trial.kept, losses[trial.number], trial.number))
    states = [trial.state for trial in record.trials]
    completed = [trial for trial in ranked if trial.kept]
    return _plain(
        {
            **{name: getattr(record, name) for name in ("recipe", "type", "objective", "samples", "full_samples")},
            "states": {state: states.count(state) for state in sorted(set(states))},
            "completed": len(completed),
            "cpu_seconds": round(sum(trial.cpu_seconds for trial in record.trials), 1),
            "best": completed[0].number if completed else None,
            "trials": [{name: getattr(trial, name) for name in _SHOWN} for trial in ranked],
            "importance": importance_of(record),
            "confirmation": _confirmation(found) if found else None,
            "verdict": found.verdict.reason if found else _unconfirmed(completed),
        }
    )


def print_report(folder: Path, record: SweepRecord, report: dict) -> None:
    """The importance, the re-runs, the verdict and where the rest is."""
    if importance := report["importance"]:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importance.items())
        say(f"importance (PED-ANOVA of {report['completed']} trials): {shares}")
    if found := report["confirmation"]:
        _print_confirmation(record, found)
    say(report["verdict"])
    if found and found["more_repeats"]:
        say(f"the same command with --confirm-seeds {len(found['seeds']) + found['more_repeats']} adds them")
    drawn = [name for name in PICTURES if (folder / name).exists()]
    say(f"report: {folder / REPORT_NAME}" + (f", {', '.join(drawn)}" if drawn else ""))


def importance_of(record: SweepRecord) -> dict[str, float] | None:
    """Share of each searched parameter in reaching the better half or so of objectives; None for too few trials.

    By PED-ANOVA (Watanabe et al. 2023, 2304.10255) on the completed trials. It compares the parameters of the best
    trials with those of all, so that a failed region of the space does not decide it. The best ones are a tenth, but
    five at least, and half at most.
    """
    completed = [trial for trial in record.trials if trial.kept]
    space = read_space(record.space, lambda overrides: None)  # the sweep has checked it
    if len(completed) < _LEAST or not space.distributions:
        return None
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for trial in completed:
        params = {key: trial.params[key] for key in space.distributions}
        params |= {key: json.dumps(params[key]) for key in space.coded}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=space.distributions, value=trial.objective)
        )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, _LEAST / len(completed))))
    return {key: float(share) for key, share in get_param_importances(study, evaluator=evaluator).items()}


def _confirmation(found: Confirmed) -> dict:
    """The figures of re-runs, by candidate in the order of the verdict."""
    return {
        "samples": found.samples,
        "seeds": found.seeds,
        "agreement": asdict(found.agreement),
        "candidates": [
            asdict(row) | {"swept": found.swept[row.name], "runs": found.runs[row.name]}
            for row in found.verdict.candidates
        ],
        **{name: value for name, value in asdict(found.verdict).items() if name not in ("candidates", "reason")},
    }


def _print_confirmation(record: SweepRecord, found: dict) -> None:
    rows = [
        [row["name"], *(_loss(row[name]) for name in ("swept", "mean", "deviation")), len(row["runs"]), row["failed"]]
        for row in found["candidates"]
    ]
    where = _where(record, found["samples"])
    print_table(f"Re-runs on {where}, the best first (nats/token)",
                ["", "sweep", "mean", "deviation", "runs", "failed"], rows)  # fmt: skip
    ranks = found["agreement"]
    parts = [
        f"{name} {_signed(ranks[key])} (95% interval {_signed(low)} to {_signed(high)})"
        for name, key in (("Spearman", "spearman"), ("Kendall", "kendall"))
        for low, high in [ranks[f"{key}_interval"]]
    ]
    say(f"agreement of the sweep's ranking with the re-runs', {ranks['candidates']} trials: {', '.join(parts)}")
    if (deviation := found["noise"]["deviation"]) is not None:
        say(f"seed noise: {deviation:.4f} nats (standard deviation of one run, {found['noise']['degrees']} degrees)")


def _unconfirmed(completed: list[TrialRecord]) -> str:
    if not completed:
        return "no winner: no trial completed with its guards kept"
    return (
        f"no winner: {candidate(completed[0].number)} has the lowest loss, of one run each; the seed noise is unknown "
        "until --confirm re-runs the best trials"
    )


def _as_line(trial: TrialRecord) -> Line:
    params = {key: _label(value) for key, value in trial.params.items()}
    objective = trial.objective if trial.kept else None
    return Line(candidate(trial.number), params, objective, curve_of(Path(trial.folder)))


def curve_of(run: Path) -> tuple[list[int], list[float]]:
    """Steps and losses of the evaluations in a run's metrics.jsonl that kept the guards; empty without the file."""
    steps, losses = [], []
    try:
        text = (run / METRICS_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return steps, losses
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            step, loss = entry["step"], entry[OBJECTIVE]
        except (ValueError, KeyError, TypeError):  # another entry, or a line that is half written
            continue
        if isinstance(loss, int | float) and is_loss(loss):
            steps.append(step)
            losses.append(loss)
    return steps, losses


def _where(record: SweepRecord, samples: int) -> str:
    return f"all {samples:,} samples" if samples == record.full_samples else f"{samples:,} samples"


def _plain(value: object) -> object:
    """For strict JSON: NaN and infinity become null, keys text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _label(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.2f}"
