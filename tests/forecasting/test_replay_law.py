"""What short runs tell about a long one, on curves made by hand and on noise: bounds hold, and what is open is said."""

import math

import numpy as np
import pytest

from mypt.errors import MyPTError
from mypt.forecasting.replay_law import (
    Interpolated,
    Probe,
    advise,
    fit_forgetting,
    fit_target,
    replay_lines,
    replay_table,
)

RATIOS, LENGTHS = (0.0, 0.05, 0.25), (10, 20, 40)


def probes(lost, gained=lambda ratio, steps: 0.2 * math.log1p((1 - ratio) * steps / 20), noise=None):
    """Probes whose ends are functions of (ratio, steps): nats lost on `general`, gained on `domain` (5 at step 0)."""

    def at(ratio, steps):
        scatter = noise or (lambda: 0.0)
        gain, loss = gained(ratio, steps) + scatter(), lost(ratio, steps) + scatter()
        domain = {"loss": 5 - gain, "delta": -gain, "delta_error": 0.01, "state": "target"}
        return {"domain": domain, "general": {"loss": 4 + loss, "delta": loss, "delta_error": 0.01, "state": "watch"}}

    return [Probe(ratio, steps, at(ratio, steps)) for ratio in RATIOS for steps in LENGTHS]


def advice_of(lost, tolerance=0.05, steps=80, **options):
    return advise(probes(lost), "domain", ["general"], tolerance, steps=steps, ratio=0.0, **options)


def lasting(ratio, steps):
    """Forgetting that replay reduces as 1 + 20 r, at every length."""
    return 0.02 * math.log1p(steps / 20) / (1 + 20 * ratio)


def test_the_smallest_share_whose_upper_bound_is_within_the_tolerance():
    """At 80 steps lasting is 0.032 / (1 + 20 r): 0.02 needs 3% by itself, and more with what is not known."""
    found = advice_of(lasting, tolerance=0.02)
    at = {prediction.ratio: prediction.guard["general"] for prediction in found.predictions}
    assert found.determined and 0.03 <= found.ratio < 0.25
    assert at[found.ratio].high <= 0.02 < at[0.0].high
    for ratio, change in at.items():
        assert change.low <= lasting(ratio, 80) <= change.high
    curve = fit_forgetting(found.probes, "general")
    assert curve.predict(round(found.ratio - 0.01, 2), 80).high > 0.02


def test_no_replay_where_nothing_is_lost():
    for kept in (lambda ratio, steps: 0.0, lambda ratio, steps: -0.01 * math.log1p(steps)):
        found = advice_of(kept)
        assert found.ratio == 0 and found.determined and "no replay is needed" in found.reason


def test_no_share_is_enough():
    found = advice_of(lambda ratio, steps: 0.4 * math.sqrt(steps / 40))
    assert found.ratio is None and found.determined and "no share up to 25.0%" in found.reason


def test_probes_that_are_too_short_leave_it_open():
    """The same curves decide at twice the probes' length and not at a hundred times."""
    found = advice_of(lasting, tolerance=0.03, steps=4_000)
    assert found.ratio is None and not found.determined and "not determined" in found.reason
    assert any("--probe-steps" in line for line in replay_lines(found, "domain"))


def test_intervals_widen_with_the_distance_to_the_run():
    curve = fit_forgetting(probes(lasting), "general")
    widths = [found.high - found.low for found in (curve.predict(0.0, steps) for steps in (40, 120, 400, 4_000))]
    assert widths == sorted(widths) and widths[-1] > 10 * widths[0]


def test_a_fit_passes_through_probes_without_noise():
    made = probes(lasting)
    lost, gained = fit_forgetting(made, "general"), fit_target(made, "domain")
    for probe in made:
        assert lost.predict(probe.ratio, probe.steps).middle == pytest.approx(probe.sets["general"]["delta"], abs=2e-3)
        assert gained.predict(probe.ratio, probe.steps).middle == pytest.approx(
            -probe.sets["domain"]["delta"], abs=5e-3
        )


def test_intervals_cover_what_noisy_runs_measure():
    """Forgetting of three kinds (limit, logarithm, root) under replay that helps at once or later, 0.005 nats of noise:
    intervals of 95% hold at least 90% of what runs of 3 times the length measure."""
    random = np.random.default_rng(1)

    def noise():
        return 0.005 * random.standard_normal()

    growths = (
        lambda steps: 0.3 * (1 - math.exp(-steps / 60)),
        lambda steps: 0.1 * math.log1p(steps / 10),
        lambda steps: 0.2 * math.sqrt(steps / 40),
    )
    inside = []
    for number in range(9):
        growth, strength, power = growths[number % 3], random.uniform(2, 30), random.uniform(0, 1.5)

        def lost(ratio, steps, growth=growth, strength=strength, power=power):
            return growth(steps) / (1 + strength * ratio * (steps / 40) ** power)

        curve = fit_forgetting(probes(lost, noise=noise), "general")
        for ratio in (0.0, 0.1, 0.25):
            found, measured = curve.predict(ratio, 120), lost(ratio, 120) + noise()
            inside.append(found.low <= measured <= found.high)
    assert sum(inside) >= 0.9 * len(inside)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_probe_that_is_no_number_is_refused(broken):
    with pytest.raises(MyPTError, match="NaN or infinite"):
        advice_of(lambda ratio, steps: broken if (ratio, steps) == (0.05, 20) else 0.01)


def interpolated(power):
    """The curve of the probe without replay: general loses 0.16 alpha^power, domain gains 0.3 (2 alpha - alpha^2)."""
    points = []
    for alpha in (0.0, 0.5, 0.75, 1.0):
        gain, loss = 0.3 * (2 * alpha - alpha**2), 0.16 * alpha**power
        sets = {"domain": {"loss": 5 - gain, "delta": -gain}, "general": {"loss": 4 + loss, "delta": loss}}
        points.append({"alpha": alpha, "sets": sets})
    return Interpolated(40, 0.5, 4.775, points)


def test_what_interpolation_of_the_whole_run_would_keep():
    """A run that loses F at alpha 1 keeps 0.05 at (0.05 / F)^(1 / 2), by a curve that is a square."""
    found = advice_of(lambda ratio, steps: 0.16 * math.sqrt(steps / 40), interpolated=interpolated(2))
    end, lost = found.interpolated, found.predictions[0].guard["general"]
    assert end.alpha_at_end.middle == pytest.approx(math.sqrt(0.05 / lost.middle), abs=1e-6)
    assert end.alpha_at_end.low < end.alpha_at_end.middle < end.alpha_at_end.high
    assert found.predictions[0].target.middle < end.target_at_end.middle < 5
    assert any("alpha 0.5" in line for line in replay_lines(found, "domain"))


def test_a_curve_without_a_loss_predicts_no_alpha():
    flat = Interpolated(40, 1.0, 4.7, [*interpolated(2).curve[:1], *interpolated(2).curve[-1:]])
    assert advice_of(lambda ratio, steps: 0.16, interpolated=flat).interpolated == flat


def test_the_table_has_a_row_for_each_ratio():
    found = advice_of(lasting, tolerance=0.02)
    _, columns, rows = replay_table(found, "domain")
    assert columns == ["replay", "domain, 40 steps", "general, 40 steps", "domain, 80 steps", "general, 80 steps"]
    assert [row[0] for row in rows] == [f"{prediction.ratio:.1%}" for prediction in found.predictions]
    assert {len(row) for row in rows} == {5}
