"""A rise of a guarded set's loss has one word, by tolerances and by what the noise allows to say."""

import math

import pytest

from mypt.errors import MyPTError
from mypt.evaluation.forgetting import ACTIONS, Decision, Policy, decide, judge, raised_shares, verdict

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


def measured(*deltas: float | tuple[float, float]) -> list[dict]:
    """A history of steps 0, 10, 20, ... of one guarded set: its change, or (change, standard error)."""
    pairs = [delta if isinstance(delta, tuple) else (delta, 0.01) for delta in deltas]
    return [
        {"step": 10 * index, "sets": {"law": {"delta": -1.0}, "news": {"delta": delta, "delta_error": error}}}
        for index, (delta, error) in enumerate(pairs)
    ]


ALL = list(ACTIONS)
SLOW = ["reduce_lr", "raise_replay", "rollback"]  # actions that need time to show


@pytest.mark.parametrize(
    ("actions", "deltas", "acted", "acts"),
    [
        (ALL, [0.0, 0.05], [], False),  # exactly the tolerance
        (ALL, [0.0, 0.06], [], True),
        (ALL, [0.0, (0.06, 0.03)], [], False),  # exactly two standard errors
        (ALL, [0.0, (0.06, 0.029)], [], True),
        (ALL, [0.0, math.nan], [], True),
        (ALL, [0.0, (0.3, math.nan)], [], True),  # a change that is not known to be noise
        (ALL, [0.0, -3.0], [], False),
        (["warn"], [0.0, 0.06, 0.09], [10], False),  # said already
        (["warn"], [0.0, 0.06, 0.01, 0.07], [10], True),  # kept in between
        (["stop"], [0.0, 0.09, 0.06], [], True),  # whether it falls or not
        (SLOW, [0.0, 0.06, 0.20], [10], False),  # cool-down of one evaluation
        (SLOW, [0.0, 0.06, 0.20, 0.21], [10], True),
        (SLOW, [0.0, 0.06, 0.20, 0.19], [10], False),  # it falls
        (SLOW, [0.0, 0.06, 0.20, 0.19, 0.20], [10], True),  # no longer
        (SLOW, [0.0, 0.06, math.nan, math.nan], [10], True),
        (["rollback"], [0.1 * n for n in range(10)], [20, 40, 60], False),  # three times at most
        (["reduce_lr", "raise_replay"], [0.1 * n for n in range(10)], [20, 40, 60], True),
        (["reduce_lr", "raise_replay"], [0.1 * n for n in range(13)], [20, 40, 60, 80, 100], False),
    ],
)
def test_when_an_action_follows(actions, deltas, acted, acts):
    history = measured(*deltas)
    change = (pytest.approx(history[-1]["sets"]["news"][key], nan_ok=True) for key in ("delta", "delta_error"))
    expected = {"news": tuple(change)}
    for action in actions:
        found = decide(history, Policy("law", ["news"], 0.05, action), acted)
        assert (found.action, found.sets) == (action, expected) if acts else found is None, action


def test_the_action_follows_at_act_at_tolerances_and_names_the_sets_that_lost_alone():
    history = measured(0.0, 0.09)
    for entry, delta in zip(history, (0.0, 0.2), strict=True):
        entry["sets"]["code"] = {"delta": delta, "delta_error": 0.0}
    both = {"news": (0.09, 0.01), "code": (0.2, 0.0)}
    assert decide(history, Policy("law", ["news", "code"], 0.05, "stop")) == Decision("stop", both)
    assert decide(history, Policy("law", ["news", "code"], 0.05, "stop", 2.0)) == Decision("stop", {"code": (0.2, 0.0)})
    assert decide(history, Policy("law", ["news"], 0.05, "stop", 2.0)) is None


@pytest.mark.parametrize("act_at", [0.0, -1.0, math.nan, math.inf])
def test_an_action_without_a_limit_is_refused(act_at):
    with pytest.raises(MyPTError, match="expected a number of tolerances above 0"):
        Policy("law", ["news"], 0.05, "stop", act_at)


@pytest.mark.parametrize(
    ("shares", "lost", "raised"),
    [
        ([1.0, 0.0], {1: 1.0}, [0.75, 0.25]),  # from nothing: a quarter
        ([0.9, 0.1], {1: math.log(2)}, [0.75, 0.25]),
        ([0.7, 0.3], {1: math.log(1.5)}, [0.55, 0.45]),  # by exp(delta / tolerance)
        ([0.9, 0.1], {1: 9.0}, [0.6, 0.4]),  # by 4 at most
        ([0.9, 0.1], {1: math.inf}, [0.6, 0.4]),
        ([0.9, 0.1], {1: math.nan}, [0.6, 0.4]),
        ([0.7, 0.3], {1: 9.0}, [0.5, 0.5]),  # to one half at most
        ([0.5, 0.5], {1: 9.0}, None),
        ([0.4, 0.6], {1: 9.0}, None),
        ([0.0, 1.0], {1: 9.0}, None),  # nothing else to take from
        ([0.6, 0.3, 0.1], {2: 9.0}, [0.4, 0.2, 0.4]),  # the others keep their ratio
        ([0.8, 0.1, 0.1], {1: 9.0, 2: 9.0}, [0.5, 0.25, 0.25]),
        ([0.949, 0.001, 0.05], {2: 9.0}, [0.749, 0.001, 0.25]),  # nobody is left out
    ],
)
def test_shares_after_replay_is_raised(shares, lost, raised):
    found = raised_shares(shares, lost)
    assert found == (raised and pytest.approx(raised, abs=1e-9))
    assert found is None or math.fsum(found) == pytest.approx(1)
