"""The plan as figures, sentences and table rows: the same for `mypt plan` and at the start of a training run."""

import itertools
import math
import textwrap

from mypt.planning import scaling
from mypt.planning.coverage import BANDS
from mypt.planning.fit import RECIPE_FLAGS, gibibytes, plan_memory
from mypt.planning.memory import PHASES
from mypt.planning.optimizer import muon_flops
from mypt.planning.parameters import count_parameters, frozen_parameters, parameter_report
from mypt.planning.step import Step
from mypt.planning.verdict import assess, figure, short
from mypt.terminal import one_line

BAR = 50  # characters of the progress bar


def coverage_report(
    *,
    sources: list[dict],
    batch_size: int,
    block_size: int,
    steps: int,
    accumulation: int = 1,
    processes: int = 1,
    start_step: int = 0,
    parameters: dict | None = None,
) -> list[str]:
    """Lines for people: how often the data is seen, what that is worth, and what to change.

    batch_size: sequences per process and pass. steps: of the whole run; start_step: where this session starts.
    sources, parameters: as `mypt.planning.verdict.assess` takes them, with `tokens_seen` from the ledger on a resume.

    Raises MyPTError as `assess` does.
    """
    tokens_per_step = batch_size * block_size * accumulation * processes
    seen = assess(sources, tokens_per_step, steps, start_step, parameters)
    factors = [(batch_size, "batch"), (block_size, "block"), (accumulation, "accumulation"), (processes, "processes")]
    product = " x ".join(f"{size:,} {name}" for size, name in factors if size > 1 or name in ("batch", "block"))
    main = _main(seen)
    size = _line("Dataset size", f"{_about(main, main['tokens'])} tokens{_estimate(main)}")
    lines = [
        "Dataset coverage",
        *([size] if len(sources) == 1 else []),
        _line("Tokens per step", f"{tokens_per_step:,} ({product})"),
        _line("Steps", _steps(seen)),
        _line("Tokens to view", _tokens_to_view(seen)),
        *(_source_lines(seen) if len(sources) > 1 else []),
        *_coverage_lines(seen),
        *_worth_lines(seen),
        _line("Verdict", f"{seen['verdict']['level']}: {seen['verdict']['sentence']}"),
        *_recommendation_lines(seen),
        _replacement(seen["coverage"]),
    ]
    return "\n".join(lines).splitlines()


def _line(label: str, value: str) -> str:
    """`label: value`, wrapped under the value's first column."""
    return textwrap.fill(value, 100, initial_indent=f"  {label + ':':<23}", subsequent_indent=" " * 25)


def _main(seen: dict) -> dict:
    return next(row for row in seen["sources"] if row["name"] == seen["main"])


def _about(row: dict, number: int) -> str:
    return f"{'about ' if row['estimated'] else ''}{number:,}"


def _estimate(row: dict) -> str:
    return " (estimate)" if row["estimated"] else ""


def _steps(seen: dict) -> str:
    start, steps = seen["start_step"], seen["steps"]
    return f"{steps:,} (from step {start:,}: {steps - start:,} left)" if start else f"{steps:,}"


def _tokens_to_view(seen: dict) -> str:
    before = sum(row["tokens_seen"] for row in seen["sources"])
    left = seen["tokens_viewed"] - before
    return f"{left:,} more, {seen['tokens_viewed']:,} in all" if before else f"{left:,}"


def _source_lines(seen: dict) -> list[str]:
    """A small table of the mixture."""
    names = [one_line(row["name"]) for row in seen["sources"]]
    width = max(map(len, names))
    return [
        f"    {name:<{width}}  {row['weight']:>6.1%} of the samples, {_about(row, row['tokens'])} tokens, "
        f"seen {times(row['coverage'])} ({row['band']})"
        for name, row in zip(names, seen["sources"], strict=True)
    ]


def times(coverage: float) -> str:
    """Coverage in two decimals, never rounded up to a full pass: 4.10x, 0.99x, 0.004x."""
    if 0.99 <= coverage < 1:
        return "0.99x"
    return f"{coverage:.2f}x" if coverage >= 0.01 else f"{coverage:.1g}x"


def _coverage_lines(seen: dict) -> list[str]:
    main = _main(seen)
    about = "about " if main["estimated"] else ""
    when = " in all, after this run" if seen["start_step"] else ""
    of = f" of {main['name']}" if len(seen["sources"]) > 1 else ""
    band = next(band for band in BANDS if band.name == seen["band"])
    return [
        _line("Coverage", f"{about}{times(seen['coverage'])}{of}{when}"),
        _passes(main["tokens_viewed"], main["tokens"]),
        _line(
            "Band", f"{band.name} ({band.level}): {band.sentence}" if band.level != "good" else f"good: {band.sentence}"
        ),
    ]


def _passes(viewed: int, total: int) -> str:
    full, rest = divmod(viewed, total)
    if full:
        return _line("Full passes", f"{full:,}x + {1000 * rest // total / 10}% of dataset")
    filled = BAR * viewed // total
    return _line("Progress", f"[{'#' * filled}{'-' * (BAR - filled)}] {1000 * viewed // total / 10}%")


def _worth_lines(seen: dict) -> list[str]:
    figures = seen["scaling"]
    lines = []
    if seen["coverage"] > 1:
        worth = (
            f"{short(figures['tokens_viewed'])} tokens with repetition are worth {short(figures['effective_tokens'])}"
        )
        lines.append(_line("Repetition", f"{worth} fresh ones ({figures['worth']:.0%})"))
    if adapters := seen.get("adapters"):
        sizes = f"{short(adapters)} parameters of adapters are trained, {short(seen['frozen'])} are frozen"
        lines.append(_line("LoRA", f"{sizes}; rules about tokens per parameter are of training from scratch"))
    if "tokens_per_parameter" in figures:
        inner = figures.get("tokens_per_non_embedding_parameter")
        without = f"{figure(inner)} without embeddings; " if inner else ""
        optimal = f"about {scaling.TOKENS_PER_PARAMETER} is compute-optimal"
        lines.append(_line("Tokens per parameter", f"{figure(figures['tokens_per_parameter'])} ({without}{optimal})"))
        if figures["predicted_loss"] < scaling.GUESSING_LOSS:
            loss = f"{figures['predicted_loss']:.2f} nats/token (an estimate to compare plans, no promise)"
            lines.append(_line("Predicted loss", loss))
    return lines


def _recommendation_lines(seen: dict) -> list[str]:
    names = ("Minimum", "Optimal", "Maximum")
    lines = ["  Recommended training.max_steps:"]
    for name, (passes, steps) in zip(names, seen["recommended_steps"].items(), strict=True):
        passed = " (already passed)" if seen["start_step"] and steps <= seen["start_step"] else ""
        lines.append(f"    {f'{name} ({passes}):':<21}{steps:,}{passed}")
    main = _main(seen)
    step = seen["tokens_per_step"] * main["weight"]
    if step > main["tokens"]:
        lines.append(
            _line("Note", f"one step views the data {figure(step / main['tokens'])} times: lower the batch size")
        )
    if seen["suggestion"]:
        lines.append(_line("Suggestion", seen["suggestion"]))
    return lines


def _replacement(coverage: float) -> str:
    """What sampling with replacement, which this project does not do, would have left unseen."""
    at = min(coverage, 1)
    return (
        "  Each pass takes every window once, without replacement (with replacement,\n"
        f"  {times(at)} would reach only {-math.expm1(-at):.0%} of the data)."
    )


def plan(
    *,
    batch_size: int,
    block_size: int,
    accumulation: int = 1,
    processes: int = 1,
    steps: int | None = None,
    sources: list[dict] | None = None,
    dimensions: dict | None = None,
    parameters: int | None = None,
    available: int | None = None,
    tokens_per_second: float | None = None,
    flags: dict[str, str] = RECIPE_FLAGS,
    **settings,
) -> dict:
    """Everything that can be worked out from what is given, as JSON-ready figures.

    batch_size: sequences per process and pass. dimensions: MyPTConfig fields; without them `parameters`, a total.
    available: bytes of memory on one device. tokens_per_second: a measured rate over all processes. flags: as
    `mypt.planning.fit.knobs` takes them. settings: the other fields of `mypt.planning.step.Step`.

    Returns a dict with those of the sections `parameters`, `coverage`, `compute`, `memory` for which enough is known.
    Raises MyPTError as the parts do.
    """
    tokens_per_step = batch_size * block_size * accumulation * processes
    step = counts = None
    if dimensions:
        step = Step(micro_batch_size=batch_size, block_size=block_size, accumulation=accumulation, **settings)
        counts = _counts(dimensions, step)
    elif parameters:
        counts = {"total": parameters}
    adapters = counts.get("adapters", 0) if counts else 0
    result: dict = {"training": {"steps": steps, "tokens_per_step": tokens_per_step, "block_size": block_size}}
    if counts:
        result["parameters"] = counts
        if not adapters:  # the rule is about training from scratch
            result["training"]["compute_optimal_tokens"] = scaling.TOKENS_PER_PARAMETER * counts["total"]
    if sources and steps:
        result["coverage"] = assess(sources, tokens_per_step, steps, 0, counts)
    if counts and steps:
        per_token = 6 * counts["total"]
        if dimensions:
            per_token = scaling.flops_per_token(dimensions, block_size, adapters)
        tokens = steps * tokens_per_step
        result["compute"] = {"flops_per_token": per_token, "flops": per_token * tokens}
        if step and step.optimizer == "muon":
            muon = muon_flops(dimensions, step.ns_steps, step.freeze_layers) * processes // step.fsdp
            share = muon / (muon + per_token * tokens_per_step)
            result["compute"] |= {"muon_flops_per_step": muon, "muon_share": share}
            result["compute"]["flops"] += steps * muon
        if tokens_per_second:
            result["compute"]["seconds"] = tokens / tokens_per_second
    if dimensions:
        result["memory"] = plan_memory(dimensions, step, available, flags)
    return result


def _counts(dimensions: dict, step: Step) -> dict[str, int]:
    """`count_parameters`, and where not all of them are trained, how many are, with the adapters that LoRA adds."""
    frozen = frozen_parameters(dimensions, step.freeze_layers, step.freeze_embeddings)
    if not step.lora and not frozen:
        return count_parameters(dimensions)
    report = parameter_report(dimensions, step.lora, frozen)
    return {name: number for name, number in report.items() if name != "per_layer"}


def plan_rows(result: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of a plan: (title, columns, rows)."""
    tables = []
    if len(result.get("parameters", {})) > 1:
        tables.append(parameter_rows(result["parameters"]))
    if "memory" in result:
        tables += memory_rows(result["memory"])
    if "compute" in result:
        compute = result["compute"]
        rows = [["FLOPs per token", f"{compute['flops_per_token']:.3g}"]]
        if "muon_share" in compute:
            muon = f"{compute['muon_flops_per_step']:.3g} ({compute['muon_share']:.1%} of a step)"
            rows.append(["Muon's FLOPs per step", muon])
        rows.append(["FLOPs in all", f"{compute['flops']:.3g}"])
        if "seconds" in compute:
            rows.append(["time", duration(compute["seconds"])])
        tables.append(("Compute", ["figure", "value"], rows))
    return tables


def parameter_rows(counts: dict) -> tuple[str, list[str], list[list[str]]]:
    """Table of `count_parameters` or `parameter_report`: parts, in one layer if known, shares of the total."""
    layer, total = counts.get("per_layer"), counts["total"]
    rows = []
    for name, count in counts.items():
        if name != "per_layer":
            one = [f"{layer[name]:,}" if name in layer and name != "total" else ""] if layer else []
            rows.append([name, *one, f"{count:,}", f"{count / total:.1%}"])
    return "Parameters", ["part", *(["per layer"] if layer else []), "parameters", "share"], rows


def memory_rows(result: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of `plan_memory`: GiB in each phase of a training step, and what generation takes."""
    phases, generation = result["training"]["phases"], result["generation"]
    names = [name for name in phases["loss"] if any(phase[name] for phase in phases.values())]
    rows = [[name, *(gibibytes(phases[phase][name]) for phase in PHASES)] for name in names]
    return [
        ("Memory to train (estimate)", ["GiB", *PHASES], rows),
        ("Memory to generate (estimate)", ["component", "GiB"], [[n, gibibytes(v)] for n, v in generation.items()]),
    ]


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min 20 s, 5 h 12 min, 9 d 4 h."""
    units = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    for (size, name), (smaller, smaller_name) in itertools.pairwise(units):
        if seconds >= size:
            return f"{seconds // size:,.0f} {name} {seconds % size // smaller:.0f} {smaller_name}"
    return f"{seconds:.0f} s"
