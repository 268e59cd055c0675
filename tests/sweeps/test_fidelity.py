"""Rank agreement, seed noise and the verdict, against numbers worked by hand and studies whose truth is known."""

import math

import numpy as np
import pytest

from mypt.sweeps.fidelity import (
    MOST_REPEATS,
    agreement,
    judge,
    kendall,
    ranks,
    seed_noise,
    spearman,
)


def study(rng, means, seeds: int, deviation=1.0, seed_effect=0.0) -> dict:
    """Runs of candidates with known means; `seed_effect`: deviation of what a seed adds to all of them."""
    noise = rng.standard_normal((len(means), seeds)) * np.broadcast_to(deviation, len(means))[:, None]
    table = np.array(means, float)[:, None] + noise + seed_effect * rng.standard_normal(seeds)
    return {f"trial {i}": dict(enumerate(map(float, row))) for i, row in enumerate(table)}


def test_coefficients_with_ties_agree_with_hand_computed_ones():
    # Pairs of (12, 2, 1, 12, 2) and (1, 4, 7, 1, 0): 2 concordant, 6 discordant, 2 ties of the first, 1 of the second:
    # tau-b = (2 - 6) / sqrt((10 - 2)(10 - 1)).
    assert kendall([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-4 / math.sqrt(72))
    # Ranks 1 to 5 and 1, 2, 3.5, 5, 3.5: centred products 8, squares 10 and 9.5.
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(8 / math.sqrt(10 * 9.5))
    assert list(ranks([0.5, math.nan, 0.1, None, 0.5])) == [2.5, 4.5, 1, 4.5, 2.5]
    assert math.isnan(kendall([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert spearman([1, 2, 3], [30, 20, math.inf]) == 0.5 and spearman([1, 2, 3], [30, 20, -math.inf]) == 0.5


def test_an_interval_of_a_perfect_order_is_wide_for_few_candidates():
    four, eight = agreement(range(4), range(4)), agreement(range(8), range(8))
    assert four.kendall == four.spearman == 1 and four.kendall_interval[0] < 0 < eight.kendall_interval[0]
    assert agreement([1, 1], [1, 2]).spearman_interval == (-1, 1)


def test_intervals_hold_the_true_agreement():
    rng, held, count = np.random.default_rng(1), np.zeros(2), 300
    for _ in range(count):
        one, other = rng.standard_normal((2, 5))
        found = agreement(list(one), list(0.8 * one + 0.6 * other))
        for at, (interval, truth) in enumerate(
            (
                (found.spearman_interval, 6 / math.pi * math.asin(0.4)),
                (found.kendall_interval, math.asin(0.8) * 2 / math.pi),
            )
        ):
            held[at] += interval[0] <= truth <= interval[1]
    assert (held >= 0.95 * count).all()


def test_noise_is_pooled_over_candidates_that_finished():
    # Squares about the means: 2 of (1, 2, 3), 8 of (5, 9): 10 / (2 + 1).
    found = seed_noise({"a": {1: 1, 2: 2, 3: 3}, "b": {1: 5, 2: 9}, "c": {1: 0, 2: math.nan}, "d": {1: 7}})
    assert found.degrees == 3 and found.deviation == pytest.approx(math.sqrt(10 / 3))
    assert math.isnan(seed_noise({"a": {1: 1}}).deviation)


def test_a_paired_verdict_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3): t = 3.464 with 2 degrees, p = 0.0742.
    found = judge({"a": {1: 10, 2: 20, 3: 30}, "b": {1: 11, 2: 22, 3: 33}}, level=0.1)
    assert found.paired and (found.best, found.next) == ("a", "b") and found.winner is None
    assert found.p_value == pytest.approx(0.0742, abs=1e-4) and found.difference == 2
    assert found.margin == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)  # t(0.975, 2), the first look's level
    assert judge({"a": {1: 10, 2: 20, 3: 30}, "b": {1: 11, 2: 22, 3: 33}}, level=0.16).winner == "a"


def test_repeats_follow_the_power_formula():
    # Differences of mean 2 and deviation 2 over 4 seeds, next look at 2.5%. t(.9875, 11) + t(.8, 11) = 2.593 + 0.876
    # = 3.469 > 2 sqrt(12) / 2 = 3.464; with 13 runs 2.560 + 0.873 = 3.433 < 3.606: 13 runs, 9 more.
    other = [2 - math.sqrt(6), 2, 2, 2 + math.sqrt(6)]
    found = judge({"a": dict.fromkeys(range(4), 0.0), "b": dict(enumerate(other))}, level=0.1)
    assert found.winner is None and found.more_repeats == 9 and "9 more repeats of each" in found.reason
    far = judge({"a": {1: 1.0, 2: 2.0}, "b": {1: 2.0001, 2: 1.0}})
    assert far.more_repeats is None and f"more than {MOST_REPEATS} runs" in far.reason


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_a_run_that_failed_or_is_no_number_never_wins(bad):
    runs = {"a": {1: 1.0, 2: bad}, "b": {1: 5.0, 2: 5.1}, "c": {1: 9.0, 2: 9.1}, "d": {1: bad, 2: bad}, "e": {}}
    found = judge(runs)
    assert found.best == "b" and [row.name for row in found.candidates][:2] == ["b", "c"]
    assert judge({"a": {1: bad}, "b": {1: bad}}).best is None
    assert judge({"a": {1: 0.1, 2: bad}, "b": {1: 5.0, 2: 5.1}}).winner is None
    assert judge({}).winner is None


def test_nothing_is_named_without_noise_that_was_measured():
    once = judge({"a": {1: 1.0}, "b": {1: 9.0}})
    assert once.winner is None and once.more_repeats == 1 and "second seed" in once.reason
    same = judge({"a": {1: 1.0, 2: 1.0}, "b": {1: 9.0, 2: 9.0}})
    assert same.winner is None and "other seeds change nothing" in same.reason


@pytest.mark.parametrize(
    "settings",
    [
        {"means": [0, 0], "seeds": 3},
        {"means": [0] * 5, "seeds": 3},
        {"means": [0, 0, 30, 30], "seeds": 3},
        {"means": [0, 0, 30, 30], "seeds": 4, "seed_effect": 5},
        {"means": [0, 0.2, 0.2], "seeds": 2},
        {"means": [0, 0, 20, 20, 20], "seeds": 3, "deviation": [2, 2, 0.5, 0.5, 0.5]},
    ],
    ids=["two equal", "five equal", "two equal, two far", "effect of the seed", "hardly different", "unequal noise"],
)
def test_the_wrong_candidate_is_named_no_more_often_than_stated(settings):
    """Wrong: one that is not the only best. The first look's level is half of the whole; three standard errors."""
    rng, count, level = np.random.default_rng(0), 250, 0.2
    truth = settings["means"]
    best = "trial 0" if truth.count(0) == 1 else None
    named = [judge(study(rng, **settings), level=level).winner for _ in range(count)]
    wrong = sum(name not in (None, best) for name in named) / count
    assert wrong <= level / 2 + 3 * math.sqrt(level / 2 * (1 - level / 2) / count)


def test_following_the_advice_again_and_again_keeps_the_level():
    rng, wrong, count = np.random.default_rng(0), 0, 200
    for _ in range(count):
        table, runs = rng.standard_normal((2, MOST_REPEATS)), 3
        for look in range(1, 6):
            found = judge({i: dict(enumerate(map(float, row[:runs]))) for i, row in enumerate(table)}, look=look)
            if not found.more_repeats or runs + found.more_repeats > MOST_REPEATS:
                break
            runs += found.more_repeats
        wrong += found.winner is not None
    assert wrong <= 0.05 * count + 3 * math.sqrt(0.05 * 0.95 * count)


def test_the_advised_repeats_settle_a_true_difference_as_often_as_stated():
    """A difference of 1.5 deviations, measured exactly: the advice is followed by fresh runs of that truth."""
    rng, count = np.random.default_rng(0), 250
    wave = [math.sqrt(3 / 4), -math.sqrt(3 / 4)] * 2  # deviation 1
    other = [1.5 + value for value in [wave[0], wave[0], wave[1], wave[1]]]
    first = judge({"a": dict(enumerate(wave)), "b": dict(enumerate(other))}, level=1e-3)
    runs = 4 + first.more_repeats
    named = [judge(study(rng, [0, 1.5], runs), look=2, level=1e-3).winner for _ in range(count)]
    assert 0.8 - 3 * math.sqrt(0.16 / count) <= named.count("trial 0") / count <= 0.9


def test_a_bad_candidate_that_scatters_does_not_hide_the_difference_of_the_best():
    """The means over 4 seeds: 10, 11 and 30. b - a is 0.9, 1.1, 0.9, 1.1: 1 +/- 0.0577, t = 17.3 with 3 degrees."""
    runs = {"a": {1: 9.0, 2: 10.0, 3: 11.0, 4: 10.0}, "b": {1: 9.9, 2: 11.1, 3: 11.9, 4: 11.1}}
    found = judge(runs | {"c": {1: 25.0, 2: 35.0, 3: 27.0, 4: 33.0}})
    assert found.winner == "a" and found.next == "c" and found.difference == 20  # c scatters: 20 +/- 2.35, t = 8.5
    assert judge(runs).p_value == pytest.approx(4.2e-4, abs=2e-5)


def test_pairing_by_seed_finds_what_the_effect_of_the_seed_hides():
    rng = np.random.default_rng(0)
    runs = study(rng, [0, 1], 5, deviation=0.1, seed_effect=3)
    assert judge(runs).winner == "trial 0"
    apart = {"trial 0": runs["trial 0"], "trial 1": {seed + 5: value for seed, value in runs["trial 1"].items()}}
    found = judge(apart)
    assert found.winner is None and not found.paired
