"""How often a run sees its data: steps and tokens -> coverage, its band, and the steps that are recommended."""

import math
import operator
from dataclasses import dataclass
from fractions import Fraction

from mypt.errors import MyPTError, shown

MINIMUM, OPTIMAL, MAXIMUM = 2, 3.5, 5  # recommended passes over the data


@dataclass(frozen=True)
class Band:
    """A range of coverage, how serious it is, and one sentence about it."""

    name: str
    level: str  # good, note or warning
    sentence: str


VERY_LOW = Band("very low", "warning", "The model will see only a small part of the data; it will underfit.")
LOW = Band("low", "warning", "The model will not see all of the data even once; it may underfit.")
BELOW_OPTIMAL = Band("below optimal", "note", "The model will see the data about once; longer training may help.")
GOOD = Band("good", "good", "The model will see the data several times, as recommended (2-5x).")
HIGH = Band("high", "note", "The model will see the data many times; it may overfit on a small dataset.")
VERY_HIGH = Band("very high", "warning", "The model will see the data very many times; it is likely to overfit.")
BANDS = (VERY_LOW, LOW, BELOW_OPTIMAL, GOOD, HIGH, VERY_HIGH)


def calculate_dataset_coverage(max_iters: int, batch_size: int, block_size: int, total_tokens: int) -> dict:
    """Coverage of a dataset of `total_tokens` by `max_iters` steps of `batch_size` sequences of `block_size` tokens.

    batch_size: the global batch in sequences: per-device batch x accumulation x processes.

    Returns:
        coverage_ratio: tokens viewed / tokens in the dataset.
        tokens_per_iter, total_tokens_viewed: tokens.
        band: the name of one of `BANDS`.
        recommended_min_iters, recommended_optimal_iters, recommended_max_iters: steps for 2x, 3.5x and 5x, rounded up.

    Raises:
        MyPTError: an argument is not a whole number of at least 1.
    """
    max_iters = whole("max_iters", max_iters)
    tokens_per_iter = whole("batch_size", batch_size) * whole("block_size", block_size)
    total_tokens = whole("total_tokens", total_tokens)
    viewed = max_iters * tokens_per_iter
    return {
        "coverage_ratio": viewed / total_tokens,
        "tokens_per_iter": tokens_per_iter,
        "total_tokens_viewed": viewed,
        "band": find_band(viewed, total_tokens, tokens_per_iter).name,
        "recommended_min_iters": steps_for_coverage(MINIMUM, total_tokens, tokens_per_iter),
        "recommended_optimal_iters": steps_for_coverage(OPTIMAL, total_tokens, tokens_per_iter),
        "recommended_max_iters": steps_for_coverage(MAXIMUM, total_tokens, tokens_per_iter),
    }


def steps_for_coverage(target: float, total_tokens: int, tokens_per_step: int) -> int:
    """The fewest steps that view at least `target` x `total_tokens` tokens; exact, whatever the sizes.

    Raises MyPTError if the target is not a positive number, or a size not a whole number of at least 1.
    """
    tokens = exact("coverage target", target) * whole("total_tokens", total_tokens)
    return whole("steps", math.ceil(tokens / whole("tokens_per_step", tokens_per_step)))


def is_within(viewed: int, low: float, high: float, total_tokens: int, tokens_per_step: int) -> bool:
    """Whether `viewed` tokens lie between `low` x and `high` x of the data, both in whole steps.

    `high` x is rarely a whole number of steps: the step that reaches it still counts as within.
    """
    viewed_ratio = Fraction(viewed, total_tokens)
    return Fraction(str(low)) <= viewed_ratio < Fraction(str(high)) + Fraction(tokens_per_step, total_tokens)


def find_band(viewed: int, total_tokens: int, tokens_per_step: int) -> Band:
    """The band of a run that views `viewed` tokens; the steps recommended for 2x, 3.5x and 5x are always good."""
    for low, band in ((Fraction(1, 2), VERY_LOW), (1, LOW), (MINIMUM, BELOW_OPTIMAL)):
        if viewed < low * total_tokens:
            return band
    for high, band in ((MAXIMUM, GOOD), (10, HIGH)):
        if is_within(viewed, 0, high, total_tokens, tokens_per_step):
            return band
    return VERY_HIGH


def planned_steps(
    max_steps: int | None,
    num_train_epochs: float | None,
    coverage_target: float | None,
    samples: int,
    total_tokens: int,
    global_batch: int,
    block_size: int,
) -> tuple[int, str]:
    """How many steps a run takes, and in a few words why.

    The first that is given decides: max_steps (if positive), num_train_epochs, coverage_target; else 3.5x coverage.

    samples: windows in one epoch. total_tokens: tokens of the dataset; of a mixture those of its main source divided
    by its share. global_batch: sequences per step over all processes.

    Raises MyPTError with the name of a value that is NaN, infinite or too small.
    """
    # HF's default is -1: not given.
    if max_steps is not None and not (isinstance(max_steps, int) and max_steps <= 0):
        return whole("training.max_steps", max_steps), "training.max_steps"
    if num_train_epochs is not None:
        epochs = exact("training.num_train_epochs", num_train_epochs)
        steps = math.ceil(epochs * whole("samples", samples) / whole("global_batch", global_batch))
        return whole("steps", steps), f"training.num_train_epochs, {float(epochs):g} x {samples:,} samples"
    tokens_per_step = whole("global_batch", global_batch) * whole("block_size", block_size)
    if coverage_target is not None:
        return steps_for_coverage(coverage_target, total_tokens, tokens_per_step), (
            f"coverage.target, {coverage_target:g} passes over the data"
        )
    return steps_for_coverage(OPTIMAL, total_tokens, tokens_per_step), (
        f"the recommended {OPTIMAL:g} passes over the data, since no length is given"
    )


def whole(name: str, value: int) -> int:
    """`value` as an int of at least 1 and at most 64 bits, or a MyPTError that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise MyPTError(f"{name} is {shown(value)}, expected a whole number of at least 1")
    if number >= 2**63:
        raise MyPTError(f"{name} is {shown(number)}, expected a number of at most 64 bits")
    return number


def exact(name: str, value: float) -> Fraction:
    """A positive number as it is written: 0.1 means one tenth, not the float nearest to it."""
    try:
        number = Fraction(str(value))
    except ValueError:
        number = Fraction(0)
    if number <= 0:
        raise MyPTError(f"{name} is {value!r}, expected a positive number")
    return number
