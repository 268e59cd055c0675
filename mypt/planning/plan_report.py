"""A plan in words and tables."""

import textwrap

from mypt.formatting import duration, figure, gibibytes, short, times
from mypt.planning.checks import FAILED, GOOD, NOTE, UNKNOWN, WARNING
from mypt.planning.disk import Disk
from mypt.planning.fit import Memory
from mypt.planning.memory import PHASES
from mypt.planning.plan import Alternative, Plan
from mypt.planning.scaling import GUESSING_LOSS
from mypt.planning.time import Measured, Time
from mypt.terminal import one_line

_MARKS = {GOOD: "ok", NOTE: "note", WARNING: "WARNING", FAILED: "FAILS", UNKNOWN: "?"}
_WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}  # paths among them


def verdict_lines(plan: Plan) -> list[str]:
    """The lines that a person acts on: whether the run can work and is worth it, check by check, and what to change."""
    names = {level: [check.name for check in plan.checks if check.level == level] for level in _MARKS}
    if failed := names[FAILED]:
        words = f"cannot run: {', '.join(failed)}"
    elif noted := [*names[WARNING], *names[NOTE]]:
        words = f"can run; look at: {', '.join(noted)}"
    else:
        words = "can run"
    lines = [f"Plan{f' of {one_line(plan.target)}' if plan.target else ''}: {one_line(words)}"]
    width = max((len(one_line(check.name)) for check in plan.checks), default=0)
    for check in plan.checks:
        first = f"  {one_line(check.name):<{width}}  {_MARKS[check.level]:<7}  "
        rest = " " * len(first)
        sentence = one_line(check.sentence)
        lines += textwrap.wrap(sentence, 100, initial_indent=first, subsequent_indent=rest, **_WHOLE_WORDS)
        for change in check.changes:  # whole, to be pasted
            lines.append(f"{rest}-> {one_line(change)}")
    return lines


Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def plan_tables(plan: Plan) -> list[Table]:
    tables = []
    if len(plan.parameters or ()) > 1:
        tables.append(parameter_table(plan.parameters))
    if plan.memory:
        tables += memory_tables(plan.memory)
    if disk := plan.disk:
        tables.append(("Disk (estimate)", ["part", "GiB"], _disk_rows(disk)))
    if compute := plan.compute:
        rows = [["FLOPs per token", f"{compute.flops_per_token:.3g}"]]
        if compute.muon_share is not None:
            muon = f"{compute.muon_flops_per_step:.3g} ({compute.muon_share:.1%} of a step)"
            rows.append(["Muon's FLOPs per step", muon])
        rows.append(["FLOPs in all", f"{compute.flops:.3g}"])
        tables.append(("Compute", ["figure", "value"], rows))
    if plan.time:
        tables.append(time_table(plan.time))
    return tables


def time_table(time: Time) -> Table:
    rows = [[name, _span(seconds), f"{seconds / time.seconds:.1%}"] for name, seconds in time.parts.items()]
    return "Time", ["part", "time", "share"], [*rows, ["total", duration(time.seconds), "100.0%"]]


def measured_lines(found: Measured) -> list[str]:
    """The measured figures, and the measured memory with the predicted one."""
    lines = [
        f"Measured: {_span(found.step)} a step ({_span(found.fast)} to {_span(found.slow)}, {found.steps} steps after "
        f"{found.warmup} of warm-up), {found.tokens_per_second:,.0f} tokens/s in one process"
    ]
    parts = [f"starting {_span(found.starting)}", f"a checkpoint {_span(found.save)}"]
    if found.window is not None:
        parts.append(f"a window of evaluation {_span(found.window)}")
    if found.preparing is not None:
        part = f" (scaled from {found.prepared:.1%} of the text)" if found.prepared < 1 else ""
        parts.append(f"preparing {_span(found.preparing)}{part}")
    lines.append(f"  {', '.join(parts)}")
    if found.memory:
        peak = f"  peak memory {gibibytes(found.memory)} GiB"
        if found.predicted:
            ratio = found.predicted / found.memory
            peak += f", predicted {gibibytes(found.predicted)} GiB ({ratio:.2f} of it)"
        if found.evaluation_memory:
            peak += f"; evaluation {gibibytes(found.evaluation_memory)} GiB"
            if found.predicted_evaluation:
                peak += f", predicted {gibibytes(found.predicted_evaluation)} GiB"
        lines.append(peak)
    return [*lines, *(f"  note: {note}" for note in found.notes)]


def _span(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def _disk_rows(disk: Disk) -> list[list[str]]:
    sizes = {
        "model in a checkpoint": disk.weights,
        "optimizer states": disk.optimizer,
        "one checkpoint": disk.checkpoint,
        f"checkpoints kept: {disk.kept:,}": disk.kept * disk.checkpoint,
        "final and best model": disk.models,
        "prepared data": disk.data,
        "at the end": disk.end,
        "at most, while one is saved": disk.peak,
        "free": disk.free,
    }
    return [[name, gibibytes(size)] for name, size in sizes.items() if size]


def alternatives_table(alternatives: list[Alternative]) -> Table:
    """Plans side by side; columns of which nothing is known are left out."""
    columns = {
        "steps": lambda row: row.steps and f"{row.steps:,}",
        "parameters": lambda row: row.parameters and short(row.parameters),
        "seen": lambda row: row.coverage and times(row.coverage),
        "effective tokens": lambda row: row.effective_tokens and short(row.effective_tokens),
        "tokens/param": lambda row: row.tokens_per_parameter and figure(row.tokens_per_parameter),
        "predicted loss": lambda row: _loss(row.predicted_loss),
        "memory, GiB": lambda row: row.memory and gibibytes(row.memory),
        "fits": lambda row: None if row.fits is None else ("no", "yes")[row.fits],
        "FLOPs": lambda row: row.flops and f"{row.flops:.3g}",
        "time": lambda row: row.seconds and duration(row.seconds),
    }
    cells = {name: [shown(row) for row in alternatives] for name, shown in columns.items()}
    known = {name: column for name, column in cells.items() if any(column)}
    names = [row.name for row in alternatives]
    rows = [[name, *(cell or "" for cell in row)] for name, *row in zip(names, *known.values(), strict=True)]
    return "Side by side", ["plan", *known], rows


def _loss(predicted: float | None) -> str:
    """Nats per token; nothing where the law is worse than guessing."""
    return f"{predicted:.2f}" if predicted and predicted < GUESSING_LOSS else ""


def parameter_table(counts: dict) -> Table:
    """Table of `count_parameters` or `parameter_report`: parts, in one layer if known, shares of the total."""
    layer, total = counts.get("per_layer"), counts["total"]
    rows = []
    for name, count in counts.items():
        if name != "per_layer":
            one = [f"{layer[name]:,}" if name in layer and name != "total" else ""] if layer else []
            rows.append([name, *one, f"{count:,}", f"{count / total:.1%}"])
    return "Parameters", ["part", *(["per layer"] if layer else []), "parameters", "share"], rows


def memory_tables(memory: Memory) -> list[Table]:
    """GiB in each phase of a training step, and what generation takes."""
    phases = memory.training["phases"]
    names = [name for name in phases["loss"] if any(phase[name] for phase in phases.values())]
    rows = [[name, *(gibibytes(phases[phase][name]) for phase in PHASES)] for name in names]
    evaluation = [[name, gibibytes(size)] for name, size in (memory.evaluation or {}).items()]
    return [
        ("Memory to train (estimate)", ["GiB", *PHASES], rows),
        *([("Memory to evaluate (estimate)", ["component", "GiB"], evaluation)] if evaluation else []),
        (
            "Memory to generate (estimate)",
            ["component", "GiB"],
            [[n, gibibytes(v)] for n, v in memory.generation.items()],
        ),
    ]
