"""Whether a planned run can work and is worth it: one line for each question that decides, and what to change."""

import math
from dataclasses import dataclass, field

from mypt.formatting import duration, figure, gibibytes, short, times
from mypt.planning.disk import fewer_checkpoints
from mypt.planning.evaluation_budget import FEWEST_WINDOWS
from mypt.planning.parameters import count_parameters
from mypt.planning.scaling import TOKENS_PER_PARAMETER
from mypt.planning.verdict import FEW_TOKENS_PER_PARAMETER, SourceCoverage

GOOD, NOTE, WARNING, FAILED, UNKNOWN = "good", "note", "warning", "failed", "unknown"

# A source other than the main one is named when its viewed tokens are worth less than this share of fresh ones: after
# about 9 and 25 passes (`effective_tokens`).
WORTH_NOTE, WORTH_WARNING = 0.8, 0.5
_OTHER_TEXT = "text that is not trained on; `mypt verify` counts the documents that two directories share"
FEW_PASSES = 4  # after which repeated tokens are still worth 93% of fresh ones


@dataclass(frozen=True)
class Check:
    """The answer to one question about a plan.

    Attributes:
        name: memory, disk, data, a source of a mixture, an evaluation set, model or time.
        level: good, note, warning, failed (the run cannot work) or unknown.
        sentence: The figures that decide.
        changes: What would improve it, the best first; flags are ready to paste.
    """

    name: str
    level: str
    sentence: str
    changes: list[str] = field(default_factory=list)


def check_plan(plan, run) -> list[Check]:
    """The checks of a plan, in the order in which a person asks.

    plan: a `mypt.planning.plan.Plan` without checks. run: the `PlannedRun` that it is of.
    """
    shared = [Check(f"val split of {name}", WARNING, words, [_OTHER_TEXT]) for name, words in run.shared_text.items()]
    found = [_memory(plan, run.device_name), _disk(plan), _data(plan, run.flags), *_sources(plan), *shared]
    found += [*_sets(plan, run.eval_sets, run.flags), _model(plan, run.init_from, run.smaller, run.flags), _time(plan)]
    return [check for check in found if check]


def _memory(plan, device_name: str) -> Check | None:
    memory = plan.memory
    if not memory:
        return None
    needed = gibibytes(memory.training["total"])
    if memory.fits is None:
        return Check("memory", UNKNOWN, f"a step needs {needed} GiB; give the memory there is with --memory")
    available = gibibytes(memory.available)
    evaluation = memory.evaluation["total"] if memory.evaluation else 0
    if memory.fits and evaluation > memory.available:
        sentence = f"training fits, an evaluation does not: it needs {gibibytes(evaluation)} of {available} GiB"
        return Check("memory", FAILED, sentence, memory.changes)
    if memory.fits:
        most = memory.largest_micro_batch
        where = f" {device_name}" if device_name else ""
        sentence = f"fits{where}: {needed} of {available} GiB; up to {most:,} sequences per pass"
        return Check("memory", GOOD, sentence)
    excess = gibibytes(memory.training["total"] - memory.available)
    has = f"{device_name} has" if device_name else "there are"
    sentence = f"does not fit: a step needs {needed} GiB, {excess} more than the {available} that {has}"
    return Check("memory", FAILED, sentence, memory.changes)


def _disk(plan) -> Check | None:
    disk = plan.disk
    if not disk:
        return None
    needed = gibibytes(disk.peak)
    if disk.fits is None:
        return Check("disk", UNKNOWN, f"the run folder needs up to {needed} GiB: {disk}")
    if disk.fits:
        return Check("disk", GOOD, f"fits: {needed} of {gibibytes(disk.free)} GiB: {disk}")
    sentence = f"does not fit: the run folder needs up to {needed} GiB, {gibibytes(disk.free)} are free: {disk}"
    changes = [f"--training.save_total_limit={kept}"] if (kept := fewer_checkpoints(disk)) else []
    return Check("disk", FAILED, sentence, [*changes, "another disk: --training.output_dir=FOLDER"])


def _data(plan, flags: dict[str, str]) -> Check:
    seen = plan.coverage
    if not seen:
        return Check("data", UNKNOWN, "how often it is seen is not known: give its size with --tokens")
    shortest = min(seen.sources, key=lambda source: source.tokens)
    if shortest.tokens <= (block_size := plan.training.block_size):
        about = "about " if shortest.estimated else ""
        sentence = f"{shortest.name} has {about}{shortest.tokens:,} tokens, and a window takes {block_size + 1:,}"
        shorter = [flags["block_size"].format(shortest.tokens - 1)] if shortest.tokens > 1 else []
        level = WARNING if shortest.estimated else FAILED
        return Check("data", level, sentence, [*shorter, "more text"])
    main, verdict = seen.main_source, seen.passes
    about, name = "about " if main.estimated else "", f"{main.name} " if len(seen.sources) > 1 else ""
    sentence = f"{name}seen {about}{times(main.coverage)}{_worth_of(main)}: {verdict.sentence}"
    changes = []
    if verdict.level != GOOD and seen.suggested_steps:
        low, high = verdict.advised
        passes = low if main.tokens_viewed < low * main.tokens else high
        changes.append(f"{flags['steps'].format(seen.suggested_steps)} for {passes}x")
    if verdict.level != GOOD and main.tokens_viewed > verdict.advised[1] * main.tokens:
        changes.append("more data")
    return Check("data", verdict.level, sentence, changes)


def _worth_of(source: SourceCoverage) -> str:
    """`, worth 3.65x fresh data`, of a source that is repeated so often that it matters."""
    if source.worth >= 0.95:
        return ""
    return f", worth {times(source.effective_tokens / source.tokens)} fresh data"


def _sources(plan) -> list[Check]:
    """The sources of a mixture, other than the main one, that are repeated too often."""
    if not plan.coverage:
        return []
    checks = []
    for source in plan.coverage.sources:
        if source.name == plan.coverage.main or source.worth >= WORTH_NOTE:
            continue
        viewed, effective = short(source.tokens_viewed), short(source.effective_tokens)
        sentence = f"seen {times(source.coverage)} ({source.weight:.1%} of the samples): {viewed} tokens are worth "
        sentence += f"{effective} fresh ones ({source.worth:.0%})"
        share = FEW_PASSES * source.tokens / plan.coverage.tokens_viewed
        changes = [f"a share of {share:.2%} in data.train instead of {source.weight:.1%}: {FEW_PASSES}x", "more data"]
        level = NOTE if source.worth >= WORTH_WARNING else WARNING
        checks.append(Check(source.name, level, sentence, changes))
    return checks


def _sets(plan, eval_sets: dict[str, int | None], flags: dict[str, str]) -> list[Check]:
    """Evaluation sets of too few windows: the standard error of a change is that of its windows."""
    checks, block_size = [], plan.training.block_size
    for name, tokens in eval_sets.items():
        windows = FEWEST_WINDOWS if tokens is None else math.ceil((tokens - 1) / block_size)
        one = windows <= 1
        if windows >= FEWEST_WINDOWS or (len(eval_sets) == 1 and not one):
            continue  # a single set is the target, which no tolerance decides on
        sentence = f"{tokens:,} tokens, {windows} window{'' if one else 's'} of {block_size:,}: "
        sentence += "its standard error is not known" if one else f"fewer than the {FEWEST_WINDOWS} a verdict needs"
        shorter = (tokens - 1) // FEWEST_WINDOWS
        changes = ["a longer val split"]
        if shorter >= 32:
            changes.insert(0, flags["block_size"].format(shorter))
        checks.append(Check(f"val split of {name}", WARNING if one else NOTE, sentence, changes))
    return checks


def _model(plan, init_from: str | None, smaller: dict[str, dict], flags: dict[str, str]) -> Check | None:
    if not plan.parameters:
        return None
    total, seen = plan.parameters["total"], plan.coverage
    size = f"{short(total)} parameters"
    if seen and seen.adapters:
        size = f"{short(seen.adapters)} parameters of adapters beside {short(seen.frozen)} frozen ones"
    if init_from or "adapters" in plan.parameters:
        return Check("model", GOOD, f"{size}; it exists already: the rules about its size are of training from scratch")
    if not seen or seen.scaling.tokens_per_parameter is None:
        optimal = plan.training.compute_optimal_tokens
        return Check("model", UNKNOWN, f"{size}; about {short(optimal)} tokens would be compute-optimal")
    ratio, main = seen.scaling.tokens_per_parameter, seen.main_source
    sentence = f"{size} see {figure(ratio)} tokens each; about {TOKENS_PER_PARAMETER} are compute-optimal"
    longer = max(1.0, seen.passes.advised[0] / main.coverage)  # a size suits the data or not, however short the run is
    if longer > 1 and ratio < TOKENS_PER_PARAMETER:
        sentence += f", {figure(longer * ratio)} are in {seen.passes.advised[0]} passes"
    if longer * ratio >= FEW_TOKENS_PER_PARAMETER:
        return Check("model", GOOD, sentence)
    wanted = longer * seen.tokens_viewed / TOKENS_PER_PARAMETER
    sizes = {name: count_parameters(dimensions)["total"] for name, dimensions in smaller.items()}
    changes = []
    if sizes:
        nearest = min(sizes, key=lambda name: abs(math.log(sizes[name] / wanted)))
        changes.append(f"{flags['preset'].format(nearest)} ({short(sizes[nearest])} parameters)")
    return Check("model", NOTE, f"large for this data: {sentence}", [*changes, "more data"])


def _time(plan) -> Check | None:
    time, compute = plan.time, plan.compute
    if time is None:
        missing = compute and f"{compute.flops:.3g} FLOPs; --tokens-per-second N gives the time"
        return Check("time", UNKNOWN, missing) if missing else None
    sentence = f"{duration(time.seconds)}{_between(time.fastest, time.slowest, duration)}; {time.words}"
    if time.cost is not None:
        cost = f"{_money(time.cost)}{_between(time.least, time.most, _money)}"
        sentence += f"; cost {cost}: {figure(time.device_hours)} device hours at {time.price:g}"
    return Check("time", GOOD, sentence)


def _between(low: float, high: float, write) -> str:
    """The range in brackets, where it is one that can be seen."""
    low, high = write(low), write(high)
    return f" ({low} to {high})" if low != high else ""


def _money(amount: float) -> str:
    return f"{amount:,.2f}"
