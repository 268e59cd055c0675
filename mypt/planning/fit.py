"""Whether a training step fits into a device's memory, the largest one that does, and which knob helps."""

from dataclasses import replace

from mypt.planning.memory import Step, generation_memory, training_memory


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


def largest_micro_batch(dimensions: dict, available: int, step: Step) -> int:
    """The most sequences per pass whose `training_memory` fits into `available` bytes; 0 if not even one fits.

    step: all but its micro_batch_size counts.
    """

    def fits(sequences: int) -> bool:
        return training_memory(dimensions, replace(step, micro_batch_size=sequences))["total"] <= available

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _advise(dimensions: dict, result: dict, step: Step) -> str:
    needed, available, largest = result["training"]["total"], result["available"], result["largest_micro_batch"]
    if result["fits"]:
        return f"fits: {gibibytes(needed)} of {gibibytes(available)} GiB; up to {largest:,} sequences per pass do"
    excess = f"does not fit: {gibibytes(needed - available)} GiB more than the {gibibytes(available)} GiB there are; "
    if largest:
        return excess + f"lower the per-device batch size to {largest} and raise gradient_accumulation_steps"
    with_checkpointing = largest_micro_batch(dimensions, available, replace(step, checkpointing=True))
    if with_checkpointing:
        return (
            excess + f"turn on activation checkpointing and use a per-device batch size of {with_checkpointing} at most"
        )
    return excess + "take a smaller model, or shard it over devices (FSDP)"


def gibibytes(size: int) -> str:
    """Bytes as GiB with three digits or so: 0.012, 1.53, 24.0."""
    value = size / 2**30
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"
