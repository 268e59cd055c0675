"""A rise of a guarded set's loss has one word, by tolerances and by what the noise allows to say."""

import pytest

from mypt.evaluation.forgetting import ACTED_ON, Decision, Policy, decide, judge, verdict

NEAR = 1e-9


@pytest.mark.parametrize(
    ("delta", "state"),
    [
        (-3.0, "healthy"),
        (0.0, "healthy"),
        (0.25, "healthy"),
        (0.25 + NEAR, "watch"),
        (0.5, "watch"),
        (0.5 + NEAR, "warning"),
        (1.0, "warning"),
        (1.0 + NEAR, "critical"),
        (50.0, "critical"),
    ],
)
def test_thresholds_are_one_two_and_four_tolerances(delta, state):
    assert judge(delta, 0.0, tolerance=0.25) == state  # 0.25: all thresholds are exact in binary


def test_the_default_tolerance_is_a_twentieth_of_a_nat():
    assert [judge(delta, 0.0) for delta in (0.049, 0.051, 0.101, 0.201)] == ["healthy", "watch", "warning", "critical"]


def test_noise_beats_every_threshold():
    assert judge(8.0, 4.0, tolerance=0.25) == "healthy"  # exactly two standard errors
    assert judge(8.0 + NEAR, 4.0, tolerance=0.25) == "critical"
    assert judge(0.0, 0.0, tolerance=0.0) == "healthy"
    assert judge(NEAR, 0.0, tolerance=0.0) == "critical"


def entry(**sets: tuple[float, str]) -> dict:
    return {"step": 5, "sets": {name: {"delta": delta, "state": state} for name, (delta, state) in sets.items()}}


def test_the_verdict_is_on_the_last_measurement():
    kept = entry(law=(-1.25, "target"), news=(0.02, "healthy"), code=(-0.1, "healthy"))
    lost = entry(law=(-1.5, "target"), news=(0.3, "critical"), code=(0.06, "watch"))
    policy = Policy("law", ["news", "code"], 0.05)
    assert verdict([lost, kept], policy) == (
        "kept: law -1.25 nats, news +0.02 (healthy), code -0.10 (healthy); every guarded set is within 0.05 nats "
        "or the noise."
    )
    sentence = verdict([kept, lost], policy)
    assert sentence.startswith("forgetting: law -1.50 nats, news +0.30 (critical), code +0.06 (watch).")
    assert "Give news, code a larger share of data.train" in sentence


def test_only_what_lost_is_advised_on():
    last = entry(law=(0.0, "target"), news=(0.3, "warning"), code=(0.0, "healthy"))
    sentence = verdict([last], Policy("law", ["news", "code"], 0.05))
    assert "Give news a larger share" in sentence


def test_without_a_guard_there_is_nothing_to_lose():
    last = entry(law=(-1.0, "target"), other=(9.0, "other"))
    assert verdict([last], Policy("law", [], 0.05)) == "law -1.00 nats; no guarded set."


def test_acted_on_are_the_two_worst_states():
    assert ACTED_ON == ("warning", "critical")


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_the_decision_follows_from_the_last_measurement_and_the_policy_alone(action):
    policy = Policy("law", ["news", "code"], action=action)
    watched = entry(law=(-1.5, "target"), news=(0.06, "watch"), code=(0.0, "healthy"))
    lost = entry(law=(-1.5, "target"), news=(0.15, "warning"), code=(0.3, "critical"))
    assert decide([lost, watched], policy) is None
    assert decide([watched, lost], policy) == Decision(action, ["news", "code"])
