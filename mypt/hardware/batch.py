"""The global batch in tokens, divided into processes, passes and the largest micro-batch that fits: arithmetic."""

from collections.abc import Callable
from typing import NamedTuple

from mypt.errors import RecipeError
from mypt.planning.fit import divisors
from mypt.planning.step import FRAMEWORK, MICRO_BATCH

# Tokens of one pass beyond which it only needs more memory (docs/hardware.md has the figures of a CPU).
ENOUGH = {"cpu": 8_192, "gpu": 65_536}
SAFETY = 0.8  # of the free memory: measured steps needed up to 1.2 times the estimate (docs/estimate.md)


def room(free: int) -> int:
    """Bytes that an estimate may come to: SAFETY of what is free, beside the framework, which is loaded already."""
    return FRAMEWORK + int(SAFETY * free)


class Batch(NamedTuple):
    """Sequences per process and pass, passes per step; the global batch in words, and why the micro-batch is this."""

    micro_batch_size: int
    accumulation: int
    words: str
    reason: str


def divide_batch(
    tokens_per_step: int,
    block_size: int,
    processes: int = 1,
    *,
    micro_batch_size: int | None = None,
    accumulation: int | None = None,
    device: str = "cpu",
    fits: Callable[[int, int], bool] | None = None,
) -> Batch:
    """The micro-batch and accumulation whose global batch is `tokens_per_step`, rounded to whole sequences.

    micro_batch_size, accumulation: as given. fits(micro_batch_size, accumulation): by the memory model, None if it
    does not know the model. Raises RecipeError if processes or the given values do not divide the global batch.
    """
    sequences = max(1, (2 * tokens_per_step + block_size) // (2 * block_size))  # the nearest
    tokens = sequences * block_size
    share = _share(tokens_per_step, sequences, block_size, processes)
    given = {"per_device_train_batch_size": micro_batch_size, "gradient_accumulation_steps": accumulation}
    product = (micro_batch_size or 1) * (accumulation or 1)
    if share % product or (micro_batch_size and accumulation and product != share):
        words = " and ".join(f"training.{name} {value}" for name, value in given.items() if value)
        raise RecipeError(
            f"data.tokens_per_step {tokens_per_step:,} is {share:,} sequences of {block_size} per process and step, "
            f"and {words} {'make' if ' and ' in words else 'makes'} others; leave out either side, or take one of "
            f"{_some(divisors(share, ENOUGH['gpu']))} sequences per pass"
        )
    chosen, why = micro_batch_size, "given"
    if not chosen:
        accumulated = (share // accumulation, "what the given accumulation leaves") if accumulation else None
        chosen, why = accumulated or _largest(share, block_size, device, fits)
    passes = share // chosen
    parts = [f"{chosen:,} sequences of {block_size}", f"{passes:,} {'pass' if passes == 1 else 'passes'}"]
    if processes > 1:
        parts.append(f"{processes} processes")
    exact = "" if tokens == tokens_per_step else f", the nearest to {tokens_per_step:,},"
    return Batch(chosen, passes, f"{tokens:,} tokens per step{exact} = {' x '.join(parts)}", f"micro-batch: {why}")


def _share(asked: int, sequences: int, block_size: int, processes: int) -> int:
    """Sequences of one process; a rounded number would be another global batch on another number of processes."""
    if sequences % processes == 0:
        return sequences // processes
    below = sequences // processes * processes * block_size
    near = [f"--data.tokens_per_step={size}" for size in (below, below + processes * block_size) if size]
    raise RecipeError(
        f"data.tokens_per_step {asked:,} is {sequences:,} sequences of {block_size}, which {processes} processes "
        f"cannot share evenly; give {' or '.join(near)}, or start another number of processes"
    )


def _largest(share: int, block_size: int, device: str, fits) -> tuple[int, str]:
    """The largest divisor of `share` that fits and is of use."""
    useful = divisors(share, max(1, ENOUGH[device] // block_size))
    if fits is None:
        return max(
            size for size in useful if size <= MICRO_BATCH
        ), f"at most {MICRO_BATCH}, since the memory that it needs or has is not known"
    fitting = [size for size in useful if fits(size, share // size)]
    if not fitting:
        return 1, "not even one sequence fits by the estimate (`mypt estimate` has the parts); trying it"
    if fitting[-1] < useful[-1]:
        return fitting[-1], f"the largest divisor that fits into {SAFETY:.0%} of the free memory"
    if useful[-1] == share:
        return share, "all at once fits"
    return useful[-1], f"the largest divisor of at most {ENOUGH[device]:,} tokens; more buys no speed"


def _some(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes if len(sizes) <= 8 else [*sizes[:4], "...", *sizes[-3:]]))
