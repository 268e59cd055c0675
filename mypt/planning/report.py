"""A plan in words and tables: the same lines for `mypt plan` and at the start of a training run."""

import math
import textwrap

from mypt.planning.checks import FAILED, GOOD, NOTE, UNKNOWN, WARNING
from mypt.planning.coverage import BANDS
from mypt.planning.disk import Disk
from mypt.planning.fit import Memory, gibibytes
from mypt.planning.memory import PHASES
from mypt.planning.plan import Alternative, Forecast, Plan
from mypt.planning.scaling import GUESSING_LOSS, TOKENS_PER_PARAMETER, Interval, Optimum
from mypt.planning.time import Measured, Time
from mypt.planning.verdict import Coverage, SourceCoverage, duration, figure, short, times
from mypt.terminal import one_line

_MARKS = {GOOD: "ok", NOTE: "note", WARNING: "WARNING", FAILED: "FAILS", UNKNOWN: "?"}
_WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}  # paths among them
BAR = 50  # characters of the progress bar
FAR = 12  # times the compute of a ladder's largest rung


def verdict_lines(plan: Plan) -> list[str]:
    """What a person acts on: whether the run can work and is worth it, check by check, and what to change."""
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


def coverage_lines(seen: Coverage, layout: dict[str, int], ladder: Forecast | None = None) -> list[str]:
    """Lines for people: how often the data is seen, what that is worth, and what to change.

    layout: the factors of a step's tokens: batch, block, accumulation, processes. ladder: in place of the generic law.
    """
    factors = [f"{size:,} {name}" for name, size in layout.items() if size > 1 or name in ("batch", "block")]
    main = seen.main_source
    size = _line("Dataset size", f"{_about(main)}{main.tokens:,} tokens{' (estimate)' if main.estimated else ''}")
    lines = [
        "Dataset coverage",
        *([size] if len(seen.sources) == 1 else []),
        _line("Tokens per step", f"{seen.tokens_per_step:,} ({' x '.join(factors)})"),
        _line("Steps", _steps(seen)),
        _line("Tokens to view", _tokens_to_view(seen)),
        *(_source_lines(seen) if len(seen.sources) > 1 else []),
        *_coverage_lines(seen),
        *_worth_lines(seen, ladder),
        _line("Verdict", f"{seen.verdict.level}: {seen.verdict.sentence}"),
        *_recommendation_lines(seen),
        _replacement(seen.coverage),
    ]
    return "\n".join(lines).splitlines()


def _line(label: str, value: str) -> str:
    """`label: value`, wrapped under the value's first column."""
    return textwrap.fill(value, 100, initial_indent=f"  {label + ':':<23}", subsequent_indent=" " * 25)


def _about(source: SourceCoverage) -> str:
    return "about " if source.estimated else ""


def _steps(seen: Coverage) -> str:
    start, steps = seen.start_step, seen.steps
    return f"{steps:,} (from step {start:,}: {steps - start:,} left)" if start else f"{steps:,}"


def _tokens_to_view(seen: Coverage) -> str:
    before = sum(source.tokens_seen for source in seen.sources)
    left = seen.tokens_viewed - before
    return f"{left:,} more, {seen.tokens_viewed:,} in all" if before else f"{left:,}"


def _source_lines(seen: Coverage) -> list[str]:
    """A small table of the mixture: each source's share of the samples, tokens, passes and what they are worth."""
    rows = [("source", "samples", "tokens", "seen", "worth", "band")]
    for source in seen.sources:
        fresh = f"{short(source.effective_tokens)} fresh ({source.worth:.0%})"
        size = f"{_about(source)}{source.tokens:,}"
        share, name = f"{source.weight:.1%}", one_line(source.name)
        seen_before = f" + {times(source.seen_before / source.tokens)} before" if source.seen_before else ""
        rows.append((name, share, size, times(source.coverage) + seen_before, fresh, source.band))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells, band in rows:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False)]
        lines.append("  ".join([f"    {name:<{widths[0]}}", *aligned, band]))
    return lines


def _seen_before(source: SourceCoverage) -> str:
    if not source.seen_before:
        return ""
    before, in_all = (times(tokens / source.tokens) for tokens in (source.seen_before, source.tokens_in_all))
    return f", and {before} before by the start model: {in_all} in all"


def _coverage_lines(seen: Coverage) -> list[str]:
    main = seen.main_source
    when = " in all, after this run" if seen.start_step else ""
    of = f" of {main.name}" if len(seen.sources) > 1 else ""
    band = next(band for band in BANDS if band.name == seen.band)
    level = "" if band.level == "good" else f" ({band.level})"
    return [
        _line("Coverage", f"{_about(main)}{times(seen.coverage)}{of}{when}{_seen_before(main)}"),
        _passes(main.tokens_viewed, main.tokens),
        _line("Band", f"{band.name}{level}: {band.sentence}"),
    ]


def _passes(viewed: int, total: int) -> str:
    full, rest = divmod(viewed, total)
    if full:
        return _line("Full passes", f"{full:,}x + {1000 * rest // total / 10}% of dataset")
    filled = BAR * viewed // total
    return _line("Progress", f"[{'#' * filled}{'-' * (BAR - filled)}] {1000 * viewed // total / 10}%")


def _worth_lines(seen: Coverage, ladder: Forecast | None) -> list[str]:
    worth, lines = seen.scaling, []
    if seen.main_source.tokens_in_all > seen.main_source.tokens:
        before = sum(source.seen_before for source in seen.sources)
        of_them = f" ({short(before)} of them before this run)" if before else ""
        tokens = f"{short(worth.tokens_viewed)} tokens{of_them} with repetition"
        fresh = f"worth {short(worth.effective_tokens)} fresh ones ({worth.worth:.0%})"
        lines.append(_line("Repetition", f"{tokens} are {fresh}"))
    if seen.adapters:
        sizes = f"{short(seen.adapters)} parameters of adapters are trained, {short(seen.frozen)} are frozen"
        lines.append(_line("LoRA", f"{sizes}; rules about tokens per parameter are of training from scratch"))
    if worth.tokens_per_parameter is not None:
        inner = worth.tokens_per_non_embedding_parameter
        without = f"{figure(inner)} without embeddings; " if inner else ""
        optimal = f"about {TOKENS_PER_PARAMETER} is compute-optimal"
        lines.append(_line("Tokens per parameter", f"{figure(worth.tokens_per_parameter)} ({without}{optimal})"))
        if ladder:
            lines += [
                _line("Predicted loss", f"{loss_words(ladder.loss)} nats/token, by the ladder in {ladder.folder}")
            ]
            lines += [_line("Extrapolation", beyond_words(ladder.beyond))]
            lines += [_line("Best size", optimum_words(ladder.optimum))]
        elif worth.predicted_loss < GUESSING_LOSS:
            loss = f"{worth.predicted_loss:.2f} nats/token (an estimate to compare plans, no promise)"
            lines.append(_line("Predicted loss", loss))
    return lines


def _recommendation_lines(seen: Coverage) -> list[str]:
    lines, main = ["  Recommended training.max_steps:"], seen.main_source
    for name, (passes, steps) in zip(("Minimum", "Optimal", "Maximum"), seen.recommended_steps.items(), strict=True):
        is_passed = main.seen_before + main.tokens_seen >= float(passes.removesuffix("x")) * main.tokens
        lines.append(f"    {f'{name} ({passes}):':<21}{steps:,}{' (already passed)' if is_passed else ''}")
    step = seen.tokens_per_step * main.weight
    if step > main.tokens:
        lines.append(_line("Note", f"one step views the data {figure(step / main.tokens)} times: lower the batch size"))
    if seen.suggestion:
        lines.append(_line("Suggestion", seen.suggestion))
    return lines


def _replacement(coverage: float) -> str:
    """The share that sampling with replacement, which this project does not do, would have reached."""
    at = min(coverage, 1)
    return (
        "  Each pass takes every window once, without replacement (with replacement,\n"
        f"  {times(at)} would reach only {-math.expm1(-at):.0%} of the data)."
    )


def loss_words(loss: Interval) -> str:
    return f"{loss.middle:.3f} ({loss.low:.3f} to {loss.high:.3f})"


def beyond_words(beyond: dict[str, float]) -> str:
    """How far a run is from the rungs of a ladder, and that it is further than was checked."""
    factors = ", ".join(f"{figure(value)}x the {name}" for name, value in beyond.items())
    if max(beyond.values()) <= 1:
        return f"within the rungs: {factors} of the largest"
    far = "; that is further than was checked (docs/ladder.md)" if beyond["compute"] > FAR else ""
    return f"to {factors} of the largest rung{far}"


def optimum_words(best: Optimum) -> str:
    size = best.parameters
    return (
        f"{short(size.middle)} parameters ({short(size.low)} to {short(size.high)}) on {short(best.tokens)} tokens are "
        f"compute-optimal for {best.flops:.3g} FLOPs: {loss_words(best.loss)}"
    )


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
    """What was measured, and the memory beside what the memory model predicts."""
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
