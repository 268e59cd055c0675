"""What a sweep prints at its end: the trials by their objective, what pruning saved, the best one's full run."""

import shlex

from mypt.planning.verdict import duration
from mypt.sweeps.record import SweepRecord, TrialRecord
from mypt.sweeps.trial import as_override


def trials_table(record: SweepRecord) -> tuple[str, list[str], list[list[object]]]:
    """Arguments of `mypt.terminal.print_table`: completed trials by their objective, then pruned ones, then others."""
    names = list(dict.fromkeys(name for trial in record.trials for name in trial.params))
    rows = [
        [
            trial.number,
            trial.state if trial.reason in ("", "max_steps", "pruned") else f"{trial.state} ({trial.reason})",
            _loss(trial),
            f"{trial.step or 0}/{trial.max_steps or '?'}",
            duration(trial.seconds),
            *(_cell(trial.params.get(name, "")) for name in names),
        ]
        for trial in sorted(record.trials, key=_order)
    ]
    return "", ["trial", "state", "objective", "steps", "time", *names], rows


def best_trial(record: SweepRecord) -> TrialRecord | None:
    """The completed trial of the lowest objective."""
    completed = [trial for trial in record.trials if trial.state == "completed"]
    return min(completed, key=_order) if completed else None


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


def _loss(trial: TrialRecord) -> str:
    if trial.objective is not None:
        return f"{trial.objective:.4f}"
    return f"({trial.values[-1][1]:.4f})" if trial.values else ""


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
