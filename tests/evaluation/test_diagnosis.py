"""Curves whose answer is known: made from a formula, with seeded noise."""

import json
import math

import numpy as np
import pytest

from mypt.evaluation.diagnosis import WORTH, diagnose, fit, overfitting, steady_stretch, training_curve

STEPS = np.arange(10, 2_001, 10)
DATA = {"passes": 2.0, "advised": [3, 5], "tokens_per_parameter": 8.0}


def constant(steps):
    return np.full(len(steps), 1e-3)


def wsd(steps, end=2_000, cooldown=0.2):
    start = end * (1 - cooldown)
    return 1e-3 * np.clip(np.minimum(steps / 100, 1 - np.sqrt(np.maximum(steps - start, 0) / (end - start))), 0, 1)


def cosine(steps, end=2_000):
    return 1e-3 * np.minimum(steps / 100, 0.5 * (1 + np.cos(np.pi * np.clip((steps - 100) / (end - 100), 0, 1))))


def history(loss, rate=constant, noise=0.01, evaluate=None, steps=STEPS, seed=0):
    """Log entries of loss(step) with white noise, and evaluations of evaluate(step) at every tenth entry."""
    draws = np.random.default_rng(seed).normal(0, noise, len(steps))
    entries = [
        {"step": int(step), "loss": float(loss(step) + draw), "learning_rate": float(lr)}
        for step, lr, draw in zip(steps, rate(steps), draws, strict=True)
    ]
    if evaluate:
        entries += [{"step": int(step), "eval_loss": float(evaluate(step))} for step in [0, *steps[9::10]]]
    return sorted(entries, key=lambda entry: entry["step"])


def falling(step):
    return 5 - 0.3 * math.log(step)


def test_a_line_is_found_with_its_error():
    line = fit(STEPS, 5 - 0.3 * np.log(STEPS))
    assert line.per_doubling == pytest.approx(0.3 * math.log(2)) and line.scatter == pytest.approx(0, abs=1e-12)
    # over many draws, the slope's spread is the error that each draw tells
    draws = np.random.default_rng(1).normal(0, 0.05, (400, len(STEPS)))
    lines = [fit(STEPS, 5 - 0.3 * np.log(STEPS) + draw) for draw in draws]
    spread = np.std([line.per_doubling for line in lines])
    assert np.mean([line.error for line in lines]) == pytest.approx(spread, rel=0.1)
    assert np.mean([line.scatter for line in lines]) == pytest.approx(0.05, rel=0.02)


def test_the_stretch_behind_the_warm_up_and_before_the_cooldown():
    begin, end = steady_stretch(wsd(STEPS))
    assert (STEPS[begin], STEPS[end - 1]) == (100, 1_600)
    assert steady_stretch(constant(STEPS)) == (0, len(STEPS))
    begin, end = steady_stretch(cosine(STEPS))
    assert STEPS[begin] == 100 and end - begin < len(STEPS) / 10
    went_on = np.concatenate([wsd(STEPS), np.full(100, 2e-4)])  # a resume at a fifth of the rate
    assert steady_stretch(went_on) == (len(STEPS), len(went_on))
    assert steady_stretch(np.array([])) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_power_law_is_still_falling(seed):
    found = diagnose(history(falling, seed=seed), data=DATA)
    assert found["state"] == "still_falling"
    assert found["rules"]["line"]["per_doubling"] == pytest.approx(0.3 * math.log(2), abs=0.03)
    assert found["lines"][1] == (
        "next: longer: raise training.max_steps (the data has been seen 2.00x, 3-5x is advised)"
    )


def test_data_that_was_seen_enough_is_not_to_be_seen_longer():
    found = diagnose(history(falling), data=DATA | {"passes": 6.0})
    assert found["lines"][1].startswith("next: more data before more steps (the data has been seen 6.00x")


@pytest.mark.parametrize("seed", range(5))
def test_a_cooldowns_fall_is_the_lower_rates(seed):
    """Flat at the constant rate, then 0.3 nats less in the cooldown."""
    found = diagnose(history(lambda step: 3 - 0.3 * max(step - 1_600, 0) / 400, wsd, seed=seed), data=DATA)
    assert (
        found["state"] == "plateau"
        and "of the cooldown are the lower rate's, no sign for more steps" in found["lines"][0]
    )
    assert found["rules"]["line"]["last"] == 1_600 and found["rules"]["after"] == pytest.approx(0.3, abs=0.05)
    assert "more data (8.0 tokens per parameter" in found["lines"][1]
    both = diagnose(history(lambda step: falling(step) - 0.3 * max(step - 1_600, 0) / 400, wsd, seed=seed))
    assert both["state"] == "still_falling" and both["lines"][1] == "next: longer: raise training.max_steps"


def test_under_a_rate_that_falls_all_the_way_the_two_cannot_be_told_apart():
    found = diagnose(history(falling, cosine), data=DATA)
    assert found["state"] == "falling_with_rate" and not found["rules"]["constant_rate"]
    assert "optimizer.schedule: wsd" in found["lines"][1]
    assert diagnose(history(lambda step: 3.0, cosine))["state"] == "plateau"


@pytest.mark.parametrize("seed", range(5))
def test_a_plateau_is_a_gain_that_is_known_to_be_small(seed):
    def settled(step):
        return 3 + 5 * math.exp(-step / 50)

    found = diagnose(history(settled, seed=seed))
    assert found["state"] == "plateau" and "optimizer.schedule: wsd" in found["lines"][1]
    small = diagnose(history(lambda step: 3 - WORTH / 2 * math.log2(step), noise=0.001, seed=seed))
    assert small["state"] == "plateau"
    rich = diagnose(history(settled, wsd, seed=seed), data=DATA | {"tokens_per_parameter": 40.0})
    assert rich["lines"][1] == "next: a larger model or other data, not more steps"
    idle = diagnose(history(lambda step: 3.0, wsd, noise=0.001, seed=seed), data=DATA)
    assert idle["state"] == "plateau" and "next: a higher learning rate" in idle["lines"][1]
    assert "cooldown" not in diagnose(history(lambda step: 3 + step / 1e7, wsd, noise=0))["lines"][0], (
        "it gained nothing"
    )


def test_a_slope_within_the_noise_is_not_guessed():
    found = [diagnose(history(lambda step: 3.0, noise=0.15, steps=STEPS[::5], seed=seed)) for seed in range(20)]
    assert sum(one["state"] == "unclear" for one in found) >= 15
    assert not any(one["state"] == "still_falling" for one in found)


@pytest.mark.parametrize("seed", range(5))
def test_slow_swings_are_no_noise(seed):
    found = diagnose(history(lambda step: 3 + 0.2 * math.sin(step / 30), seed=seed))
    assert found["state"] == "oscillating" and "half the learning rate" in found["lines"][1]
    saw = diagnose(history(lambda step: 3 + 0.2 * (-1) ** (step // 10), seed=seed))
    assert saw["state"] == "oscillating"
    assert diagnose(history(lambda step: 3.0, noise=0.12, seed=seed))["state"] != "oscillating", "white noise of 4%"


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_rises_to_the_end_diverges(seed):
    found = diagnose(history(lambda step: falling(step) + max(step - 1_500, 0) / 400, seed=seed), data=DATA)
    assert found["state"] == "diverging" and "is rising" in found["lines"][0]
    blown = diagnose(history(lambda step: 3 + math.exp((step - 2_000) / 100), seed=seed))
    assert blown["state"] == "diverging"
    wild = np.random.default_rng(seed).uniform(40, 200, len(STEPS) + 1)
    lost = diagnose(history(lambda step: 6 if step == STEPS[0] else wild[step // 10], seed=seed))
    assert lost["state"] == "diverging" and "in the first log entry" in lost["lines"][0], "it only swings, far above"
    easy = history(lambda step: 2.2 if step == STEPS[0] else 2.7, evaluate=lambda step: 2.9 - step / 10_000, seed=seed)
    assert diagnose(easy)["state"] != "diverging", "one easy first batch of a model that was trained before"
    worse = history(lambda step: 2.2 if step == STEPS[0] else 2.7, evaluate=lambda step: 2.3 + step / 10_000, seed=seed)
    assert diagnose(worse)["state"] == "diverging"
    spike = diagnose(history(lambda step: falling(step) + (2 if step == 1_000 else 0), seed=seed))
    assert spike["state"] == "still_falling", "a spike that is over is no divergence"


@pytest.mark.parametrize("seed", range(5))
def test_an_evaluation_loss_that_turns_up_while_training_gets_better_is_overfitting(seed):
    draws = np.random.default_rng(seed).normal(0, 0.005, len(STEPS) + 1)

    def evaluate(step):
        return 3.5 + 0.3 * ((step - 1_000) / 1_000) ** 2 + draws[step // 10]

    found = diagnose(history(falling, evaluate=evaluate, seed=seed), data=DATA)
    assert found["state"] == "overfitting"
    assert abs(found["rules"]["overfitting"]["step"] - 1_000) <= 200
    assert found["rules"]["overfitting"]["gap"] == pytest.approx(3.77 - falling(1_950), abs=0.03)
    still = diagnose(history(falling, evaluate=lambda step: 4 - 0.2 * math.log(step + 9), seed=seed))
    assert still["state"] == "still_falling"


def test_a_rise_within_the_evaluations_noise_is_seldom_taken_for_one():
    draws, entries = np.random.default_rng(0), history(falling)
    held = 0
    for _ in range(200):
        noise = [{"step": 200 * i, "eval_loss": loss} for i, loss in enumerate(draws.normal(3.5, 0.05, 11))]
        held += overfitting([*entries, *noise], "eval_loss")["holds"]
    assert held <= 20
    few = overfitting(history(falling, evaluate=lambda step: step, steps=STEPS[:30]), "eval_loss")
    assert few == {"evaluations": 4, "holds": False}


@pytest.mark.parametrize("points", [0, 1, 7])
def test_too_few_points_are_said_and_nothing_is_guessed(points):
    found = diagnose(history(falling, steps=STEPS[:points]))
    assert found["state"] == "unknown" and found["rules"] == {}
    assert found["lines"][0] == (
        f"diagnosis: too few points: {points} of the 8 log entries after the warm-up that a slope with its error needs"
    )


def test_the_warm_up_does_not_count():
    assert diagnose(history(falling, wsd, steps=STEPS[:16]))["state"] == "unknown"  # 7 entries at the full rate
    assert diagnose(history(falling, wsd, steps=STEPS[:17]))["state"] != "unknown"


def test_entries_without_a_number_are_left_out_and_the_answer_is_json():
    entries = [*history(falling), {"step": 2_000, "train_loss": 3.0}, {"step": 2_000, "loss": math.nan}]
    entries.append({"step": 2_000, "loss": None})
    assert len(training_curve(entries)[0]) == len(STEPS)
    assert json.loads(json.dumps(diagnose(entries, data=DATA)))["state"] == "still_falling"
