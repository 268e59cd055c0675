"""Whether a training step fits into a device's memory, the largest one that does, and which knob helps."""

import math
from dataclasses import asdict, dataclass, field, replace

from mypt.formatting import gibibytes
from mypt.planning.memory import evaluation_memory, generation_memory, training_memory
from mypt.planning.parameters import is_measured
from mypt.planning.step import Step

_SIZES = ("micro_batch_size", "accumulation")
# How a change of `Step` is written for a recipe, and for `mypt plan` and `mypt estimate` of anything else.
RECIPE_FLAGS = {
    "block_size": "--data.block_size={}",
    "checkpointing": "--training.activation_checkpointing={}",
    "micro_batch_size": "--training.per_device_train_batch_size={}",
    "accumulation": "--training.gradient_accumulation_steps={}",
    "lora_r": "--lora.r={}",
    "optimizer": "--optimizer.name={}",
    "freeze_layers": "--model.freeze_layers={}",
    "freeze_embeddings": "--model.freeze_embeddings={}",
    "fsdp": "",  # of a launch, not of the recipe: docs/distributed.md
    "steps": "--training.max_steps={}",
    "preset": "--model.preset={}",
}
OPTIONS = {
    "checkpointing": "--checkpointing",
    "micro_batch_size": "--batch-size {}",
    "accumulation": "--accumulation {}",
    "lora_r": "--lora-r {}",
    "optimizer": "--optimizer {}",
    "fsdp": "--fsdp {}",
    "block_size": "--block-size {}",
    "steps": "--steps {}",
    "preset": "the preset {}",
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; available, fits, largest_micro_batch and advice are None where its memory is not known.

    training, generation, evaluation: as `training_memory`, `generation_memory` and `evaluation_memory` of
    `mypt.planning.memory` return them; the last is None without evaluation sets, or formulas. fits: training does.
    largest_micro_batch: sequences. advice: whether training fits, and if not, which knob helps.
    changes: the knobs alone, as `knobs` returns them.
    """

    training: dict
    generation: dict[str, int]
    evaluation: dict[str, int] | None = None
    available: int | None = None
    fits: bool | None = None
    largest_micro_batch: int | None = None
    advice: str | None = None
    changes: list[str] = field(default_factory=list)


def plan_memory(
    dimensions: dict,
    step: Step,
    available: int | None,
    flags: dict[str, str] = RECIPE_FLAGS,
    smaller: dict[str, dict] | None = None,
    evaluated: int | None = None,
) -> Memory:
    """The estimates, and what follows from `available` bytes where they are known.

    flags, smaller: as `knobs` takes them. evaluated: windows in a forward pass of an evaluation, None without one.
    """
    generation = generation_memory(dimensions, context=step.block_size, dtype=step.weight_dtype)
    training = training_memory(dimensions, step)
    evaluation = None
    if evaluated and not is_measured(dimensions):
        evaluation = evaluation_memory(dimensions, step, evaluated)
    if not available:
        return Memory(training, generation, evaluation)
    largest, excess = largest_micro_batch(dimensions, available, step), training["total"] - available
    if excess <= 0:
        needed = f"{gibibytes(training['total'])} of {gibibytes(available)} GiB"
        advice, changes = f"fits: {needed}; up to {largest:,} sequences per pass fit", []
    else:
        changes = knobs(dimensions, step, available, flags, smaller)
        advice = f"does not fit: {gibibytes(excess)} GiB more than the {gibibytes(available)} GiB there are; "
        advice += ", or ".join(changes)
    if evaluation and evaluation["total"] > available:
        sizes = range(evaluated - 1, 0, -1)
        fitting = (n for n in sizes if evaluation_memory(dimensions, step, n)["total"] <= available)
        change = f"--training.per_device_eval_batch_size={next(fitting, 1)}"
        needed = gibibytes(evaluation["total"])
        advice += f"; an evaluation of {evaluated} windows at a time needs {needed} GiB: {change}"
        changes.append(change)
    return Memory(training, generation, evaluation, available, excess <= 0, largest, advice, changes)


def fits(dimensions: dict, step: Step, available: int) -> bool:
    """Whether the estimate of this very step is within `available` bytes."""
    return training_memory(dimensions, step)["total"] <= available


def divisors(number: int, most: int | None = None) -> list[int]:
    """The whole numbers up to `most` (None: all) that divide `number`, from 1 up; no more than `most` are tried."""
    most = most or number
    low = [size for size in range(1, min(math.isqrt(number), most) + 1) if number % size == 0]
    return low + [number // size for size in reversed(low) if size < number // size <= most]


def largest_micro_batch(dimensions: dict, available: int, step: Step) -> int:
    """The most sequences per pass whose `training_memory` fits into `available` bytes; 0 if not even one fits.

    step: all but its micro_batch_size counts. The result fits; on a CPU a few smaller ones may not, because blocks of
    32 MiB and more are given back (see `mypt.planning.memory`).
    """

    def fit(sequences: int) -> bool:
        return fits(dimensions, replace(step, micro_batch_size=sequences), available)

    if not fit(1):
        return 0
    low, high = 1, 2
    while fit(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low


def knobs(
    dimensions: dict,
    step: Step,
    available: int,
    flags: dict[str, str] = RECIPE_FLAGS,
    smaller: dict[str, dict] | None = None,
) -> list[str]:
    """Changes that fit into `available` bytes with the same global batch, the cheapest first, ready to paste.

    flags: how the fields of `Step` are written, RECIPE_FLAGS or OPTIONS; what cannot be written is not advised.
    smaller: dimensions of smaller presets by name, the largest first.
    """
    found = []
    if lower := _smaller(dimensions, step, available):
        found.append(f"lower the per-device batch size to {lower.micro_batch_size}: {_written(step, lower, flags)}")
    again = None if step.checkpointing else _smaller(dimensions, replace(step, checkpointing=True), available)
    if again and not (lower and again.micro_batch_size <= lower.micro_batch_size):
        found.append(f"turn on activation checkpointing: {_written(step, again, flags)}")
    if found:
        return found
    if not step.lora and "lora_r" in flags:
        adapters = _least(step, lora_r=8, optimizer="adamw", freeze_layers=0, freeze_embeddings=False)
        if fits(dimensions, adapters, available):
            words = _written(step, adapters, flags)
            found.append(f"train adapters of the frozen model (a section `lora:`): {words}")
    sharded = (_least(step, fsdp=devices) for devices in (2, 4, 8, 16, 32, 64) if devices > step.fsdp)
    if most := next((candidate for candidate in sharded if fits(dimensions, candidate, available)), None):
        found.append(f"shard it over {most.fsdp} devices (FSDP): {_written(step, most, flags)}")
    for name, fewer in (smaller or {}).items():
        if fitting := step if fits(fewer, step, available) else _smaller(fewer, step, available):
            return [*found, f"take a smaller model: {flags['preset'].format(name)} {_written(step, fitting, flags)}"]
    return [*found, "take a smaller model"]


def _smaller(dimensions: dict, step: Step, available: int) -> Step | None:
    """The step with the largest micro-batch that fits and divides the process's part of the global batch."""
    share = step.micro_batch_size * step.accumulation
    most = min(share, largest_micro_batch(dimensions, available, step))
    candidates = (
        replace(step, micro_batch_size=size, accumulation=share // size)
        for size in reversed(divisors(share, most))
        if size < step.micro_batch_size or step.checkpointing
    )
    return next((candidate for candidate in candidates if fits(dimensions, candidate, available)), None)


def _least(step: Step, **changes) -> Step:
    """The step with one sequence per pass and checkpointing, of the same global batch."""
    share = step.micro_batch_size * step.accumulation
    return replace(step, micro_batch_size=1, accumulation=share, checkpointing=True, **changes)


def _written(step: Step, changed: Step, flags: dict[str, str]) -> str:
    """The flags that make one step of the other: the sizes always, of the rest what differs."""
    before, after = asdict(step), asdict(changed)
    names = [name for name in flags if name in _SIZES or (name in before and before[name] != after[name])]
    return " ".join(flags[name].format(str(after[name]).lower()) for name in names if flags[name])
