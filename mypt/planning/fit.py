"""Whether a training step fits into a device's memory, the largest one that does, and which knob helps."""

import math
from dataclasses import replace

from mypt.planning.generation import generation_memory
from mypt.planning.memory import training_memory
from mypt.planning.step import Step


def plan_memory(dimensions: dict, step: Step, available: int | None) -> dict:
    """Both estimates, and where `available` bytes are known: whether training fits, and if not, which knob helps."""
    training = training_memory(dimensions, step)
    generation = generation_memory(dimensions, context=step.block_size, dtype=step.weight_dtype)
    result = {"training": training, "generation": generation}
    if available:
        result |= {"available": available, "fits": training["total"] <= available}
        result["largest_micro_batch"] = largest_micro_batch(dimensions, available, step)
        result["advice"] = _advise(dimensions, result, step)
    return result


def fits(dimensions: dict, step: Step, available: int) -> bool:
    """Whether the estimate of this very step is within `available` bytes."""
    return training_memory(dimensions, step)["total"] <= available


def divisors(number: int) -> list[int]:
    """All whole numbers that divide `number`, from 1 up."""
    low = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return low + [number // size for size in reversed(low) if size * size != number]


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


def knobs(dimensions: dict, step: Step, available: int) -> list[str]:
    """What would fit into `available` bytes with the same global batch, the cheapest first, ready to paste."""
    found = []
    if smaller := _smaller(dimensions, step, available):
        found.append(f"lower the per-device batch size to {smaller.micro_batch_size}: {_flags(smaller)}")
    again = None if step.checkpointing else _smaller(dimensions, replace(step, checkpointing=True), available)
    if again and not (smaller and again.micro_batch_size <= smaller.micro_batch_size):
        found.append(f"turn on activation checkpointing: --training.activation_checkpointing=true {_flags(again)}")
    if found:
        return found
    if not step.lora and fits(
        dimensions, _least(step, lora_r=8, optimizer="adamw", freeze_layers=0, freeze_embeddings=False), available
    ):
        found.append("train adapters beside the frozen model (a section `lora:`)")
    devices = next((n for n in (2, 4, 8, 16, 32, 64) if fits(dimensions, _least(step, fsdp=n), available)), None)
    if devices and devices > step.fsdp:
        found.append(f"shard it over {devices} devices (FSDP)")
    return [*found, "take a smaller model"]


def _smaller(dimensions: dict, step: Step, available: int) -> Step | None:
    """The step with the largest micro-batch that fits and divides the process's part of the global batch."""
    share = step.micro_batch_size * step.accumulation
    candidates = (
        replace(step, micro_batch_size=size, accumulation=share // size)
        for size in reversed(divisors(share))
        if size < step.micro_batch_size or step.checkpointing
    )
    return next((candidate for candidate in candidates if fits(dimensions, candidate, available)), None)


def _least(step: Step, **changes) -> Step:
    return replace(step, micro_batch_size=1, checkpointing=True, **changes)


def _flags(step: Step) -> str:
    sizes = {"per_device_train_batch_size": step.micro_batch_size, "gradient_accumulation_steps": step.accumulation}
    return " ".join(f"--training.{name}={size}" for name, size in sizes.items())


def _advise(dimensions: dict, result: dict, step: Step) -> str:
    needed, available, largest = result["training"]["total"], result["available"], result["largest_micro_batch"]
    if result["fits"]:
        return f"fits: {gibibytes(needed)} of {gibibytes(available)} GiB; up to {largest:,} sequences per pass do"
    excess = f"does not fit: {gibibytes(needed - available)} GiB more than the {gibibytes(available)} GiB there are; "
    return excess + ", or ".join(knobs(dimensions, step, available))


def gibibytes(size: int) -> str:
    """Bytes as GiB with three digits or so: 0.012, 1.53, 24.0."""
    value = size / 2**30
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"
