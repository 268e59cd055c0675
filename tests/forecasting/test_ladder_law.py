"""A law fitted to a ladder finds the law that made its losses, says what it leaves open, and names the best size."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mypt.errors import MyPTError
from mypt.forecasting.ladder_law import DESIGN, NOISE, Law, Rung, smaller_model
from mypt.models.presets import PRESETS, preset_dimensions
from mypt.planning.parameters import count_parameters

BYTES = 4.0  # per token: E of the priors is 0.42 x 4 = 1.68 nats, as published laws have it


def loss_of(parameters, tokens, entropy=1.7, a=400.0, b=1800.0, alpha=0.34, beta=0.36):
    return entropy + a / parameters**alpha + b / tokens**beta


def ladder(law=loss_of, parameters=8e6, tokens=160e6, noise=lambda: 0.0):
    """The rungs of a run of eight times the compute of the largest."""
    scale = 8**-0.5
    sizes = [(parameters * scale * n, tokens * scale * d) for n, d in DESIGN]
    return [Rung(round(n), round(d), d, law(n, d) * math.exp(noise()), 0.0) for n, d in sizes]


def test_a_run_of_eight_times_the_compute_is_predicted_and_in_the_interval():
    law = Law(ladder(), BYTES)
    found, truth = law.predict(8e6, 160e6), loss_of(8e6, 160e6)
    assert found.middle == pytest.approx(truth, rel=0.005)
    assert found.low < truth < found.high and found.high - found.low < 0.2 * truth
    assert law.noise == pytest.approx(NOISE * (4 / 5) ** 0.5, rel=0.02)  # the losses have none: as of 4 in 5 runs


def test_intervals_hold_the_truth_as_often_as_they_say():
    """24 laws of other shapes, with the noise that is assumed: 95% of intervals hold, so 20 of 24 at the least."""
    random = np.random.default_rng(1)
    inside, errors = 0, []
    for _ in range(24):
        entropy, alpha, beta = 1.68 * math.exp(0.25 * random.normal()), *(0.35 * np.exp(0.2 * random.normal(size=2)))
        parts = (0.8 / 3e6**-alpha, 0.8 / 57e6**-beta)  # 0.8 nats each at the largest rung or so

        def law(n, d, shape=(entropy, *parts, alpha, beta)):
            return loss_of(n, d, *shape)

        found = Law(ladder(law, noise=lambda: 0.004 * random.normal()), BYTES).predict(8e6, 160e6)
        truth = law(8e6, 160e6)
        inside += found.low <= truth <= found.high
        errors.append(abs(found.middle / truth - 1))
    assert inside >= 20 and np.median(errors) < 0.02, (inside, errors)


def test_an_interval_widens_with_the_distance():
    law = Law(ladder(), BYTES)
    widths = [found.high - found.low for found in (law.predict(8e6 * k, 160e6 * k) for k in (0.3, 1, 3, 10))]
    assert widths == sorted(widths)


def test_the_rungs_near_the_planned_run_count_more():
    """The same error of 2% in the largest rung and in those of a quarter of its compute."""
    rungs, right = ladder(), Law(ladder(), BYTES).predict(8e6, 160e6).middle

    def moved(index):
        spoiled = [replace(rung, loss=rung.loss * (1.02 if at == index else 1)) for at, rung in enumerate(rungs)]
        return abs(Law(spoiled, BYTES).predict(8e6, 160e6).middle / right - 1)

    assert moved(0) > 2 * max(moved(1), moved(2), moved(3))


def test_one_rung_that_went_wrong_moves_the_prediction_by_less_than_its_error():
    rungs = ladder()
    spoiled = [replace(rungs[1], loss=1.1 * rungs[1].loss), *rungs[:1], *rungs[2:]]
    right, wrong = (Law(given, BYTES).predict(8e6, 160e6).middle for given in (rungs, spoiled))
    assert abs(wrong / right - 1) < 0.04
    assert Law(spoiled, BYTES).residuals[0] > 0.05


def test_the_best_size_is_that_of_the_closed_form():
    """N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / beta B)^(1 / (alpha + beta)): Hoffmann 2022, eq. 4."""
    law = Law(ladder(), BYTES)
    a, b, alpha, beta = (law.terms[name].middle for name in ("A", "B", "alpha", "beta"))
    best = law.optimum(6e15, lambda tokens: tokens)
    expected = (alpha * a / beta / b) ** (1 / (alpha + beta)) * 1e15 ** (beta / (alpha + beta))
    assert best.parameters.middle == pytest.approx(expected, rel=0.02)
    assert best.parameters.low < expected < best.parameters.high
    assert 6 * best.parameters.middle * best.tokens == pytest.approx(6e15)
    fewer = law.optimum(6e15, lambda tokens: min(tokens, 1e6))  # where more tokens are worth nothing
    assert fewer.parameters.middle > 2 * expected


def test_how_far_a_run_is_from_the_rungs():
    law = Law(ladder(), BYTES)
    assert law.beyond(8e6, 160e6) == pytest.approx({"parameters": 8**0.5, "tokens": 8**0.5, "compute": 8}, rel=1e-5)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_that_is_none_is_refused(loss):
    rungs = ladder()
    with pytest.raises(MyPTError, match="ended with a loss of"):
        Law([*rungs, replace(rungs[0], loss=loss)], BYTES)


def test_three_rungs_are_too_few():
    with pytest.raises(MyPTError, match="needs 4 finished rungs, and there are 3"):
        Law(ladder()[:3], BYTES)


@pytest.mark.parametrize("name", ["tiny", "small", "350M_1024", "modern-nano", "modern-small", "modern-large"])
def test_a_smaller_model_has_the_parameters_and_the_shape(name):
    dimensions = PRESETS[name]
    whole, last = count_parameters(dimensions)["total"], 0
    for share in (0.1, 0.25, 0.5, 0.9):
        fields = smaller_model(dimensions, share * whole)
        smaller = preset_dimensions(name, **fields)  # which refuses heads and widths that do not fit
        count = count_parameters(smaller)["total"]
        assert last < count and count == pytest.approx(share * whole, rel=0.3)
        assert fields["num_attention_heads"] * fields["head_dim"] == fields["hidden_size"]
        assert fields["num_attention_heads"] % fields["num_key_value_heads"] == 0 and fields["head_dim"] % 2 == 0
        ratio = dimensions["hidden_size"] / dimensions["num_hidden_layers"]
        if fields["num_hidden_layers"] > 4:
            assert fields["hidden_size"] / fields["num_hidden_layers"] == pytest.approx(ratio, rel=0.5)
        last = count
