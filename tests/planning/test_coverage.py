"""Coverage in exact arithmetic, and bands that agree with the recommended steps."""

import itertools
import math
from fractions import Fraction

import pytest

from mypt.errors import MyPTError
from mypt.planning.coverage import BANDS, calculate_dataset_coverage, planned_steps, steps_for_coverage

OF_A_RUN = {"samples": 1_000, "total_tokens": 256_001, "global_batch": 32, "block_size": 256}


@pytest.mark.parametrize(
    ("tokens", "steps", "coverage", "band", "recommended"),
    [
        (1_000_000, 100, "0.82", "low", (245, 428, 611)),
        (1_000_000, 500, "4.10", "good", (245, 428, 611)),
        (1_000_000, 5_000, "40.96", "very high", (245, 428, 611)),
        (1_234_567, 1_000, "6.64", "high", (302, 528, 754)),
        (500_000_000, 10_000, "0.16", "very low", (122_071, 213_624, 305_176)),
    ],
)
def test_worked_examples(tokens, steps, coverage, band, recommended):
    result = calculate_dataset_coverage(max_iters=steps, batch_size=32, block_size=256, total_tokens=tokens)
    assert f"{result['coverage_ratio']:.2f}" == coverage
    assert result["band"] == band
    assert tuple(result[f"recommended_{name}_iters"] for name in ("min", "optimal", "max")) == recommended
    assert (result["tokens_per_iter"], result["total_tokens_viewed"]) == (8_192, 8_192 * steps)


def band_in_steps(steps, tokens, per_step):
    """The rule as it is written: edges are whole numbers of steps, rounded up."""
    edge = {passes: math.ceil(Fraction(passes) * tokens / per_step) for passes in ("1/2", 1, 2, 5, 10)}
    if steps < edge[2]:
        return "very low" if steps < edge["1/2"] else "low" if steps < edge[1] else "below optimal"
    return "good" if steps <= edge[5] else "high" if steps <= edge[10] else "very high"


def test_bands_are_judged_in_whole_steps():
    for tokens, batch, block in itertools.product((1, 7, 100, 999, 1_000, 4_096), (1, 3, 8), (1, 16, 130)):
        edges = {steps_for_coverage(passes, tokens, batch * block) for passes in (0.5, 1, 2, 3.5, 5, 10)}
        for steps in {max(1, edge + shift) for edge in edges for shift in (-1, 0, 1)}:
            found = calculate_dataset_coverage(steps, batch, block, tokens)["band"]
            assert found == band_in_steps(steps, tokens, batch * block), (steps, tokens, batch, block)


def test_recommended_steps_are_good_and_their_outer_neighbours_are_not():
    for tokens in (10_000, 123_457, 10**6, 10**12 + 7):
        cov = calculate_dataset_coverage(1, 4, 33, tokens)
        low, middle, high = (cov[f"recommended_{name}_iters"] for name in ("min", "optimal", "max"))
        bands = [calculate_dataset_coverage(n, 4, 33, tokens)["band"] for n in (low - 1, low, middle, high, high + 1)]
        assert bands == ["below optimal", "good", "good", "good", "high"]


def test_steps_are_exact_where_floats_are_not():
    assert steps_for_coverage(0.1, 1_000, 1) == 100
    assert steps_for_coverage(1.1, 10, 11) == 1
    tokens = 2**60 + 1
    assert steps_for_coverage(3.5, tokens, 3) == -(-7 * tokens // 6)


def test_bands_have_known_levels():
    assert [band.level for band in BANDS] == ["warning", "warning", "note", "good", "note", "warning"]


@pytest.mark.parametrize("name", ["max_iters", "batch_size", "block_size", "total_tokens"])
@pytest.mark.parametrize("value", [0, -1, 2.5, None, True])
def test_bad_sizes_are_named(name, value):
    arguments = {"max_iters": 10, "batch_size": 2, "block_size": 8, "total_tokens": 100} | {name: value}
    with pytest.raises(MyPTError, match=name):
        calculate_dataset_coverage(**arguments)


@pytest.mark.parametrize("target", [0, -1.0, math.nan, math.inf])
def test_bad_targets_are_refused(target):
    with pytest.raises(MyPTError, match="coverage target"):
        steps_for_coverage(target, 100, 10)


def test_the_first_given_length_decides():
    everything = {"max_steps": 7, "num_train_epochs": 2, "coverage_target": 1.0}
    assert planned_steps(**everything, **OF_A_RUN) == (7, "training.max_steps")
    steps, reason = planned_steps(**everything | {"max_steps": -1}, **OF_A_RUN)
    assert (steps, "num_train_epochs" in reason) == (63, True)  # 2 x 1,000 windows at 32 a step
    steps, reason = planned_steps(None, None, 1.0, **OF_A_RUN)
    assert (steps, "coverage.target" in reason) == (32, True)  # 256,001 tokens at 8,192 a step
    steps, reason = planned_steps(None, None, None, **OF_A_RUN)
    assert (steps, "3.5" in reason) == (110, True)


def test_epochs_are_exact_too():
    assert planned_steps(None, 0.1, None, samples=1_000, total_tokens=9, global_batch=1, block_size=1)[0] == 100
