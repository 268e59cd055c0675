"""How much a run evaluates: within the budget where a verdict allows it, and never other than what was given."""

import math
from itertools import product

import pytest

from mypt.errors import MyPTError
from mypt.planning.evaluation_budget import FEWEST_WINDOWS, MOST_WINDOWS, plan_evaluation, training_passes

BLOCK = 32
KEYS = ["forgetting.eval_windows", "training.eval_steps"]


def planned(steps=100, sequences=16, sets=(4_000, 900), **options):
    """sets: windows of each."""
    tokens = [count and count * BLOCK + 1 for count in sets]
    return plan_evaluation(steps=steps, sequences=sequences, block_size=BLOCK, sets=tokens, **options)


def forwards(plan, sets=(4_000, 900)) -> float:
    """Windows that are evaluated in the whole run, one by one."""
    most = math.inf if plan.windows == "all" else plan.windows
    return plan.points * sum(min(most, size or MOST_WINDOWS) for size in sets)


@pytest.mark.parametrize("steps", [1, 7, 25, 96, 500, 3_001, 10**6])
def test_the_budget_is_kept_or_the_least_is_left(steps):
    shapes = [(4_000, 900), (40,), (None, 3, 70)]
    for sequences, budget, sets, passes in product((1, 16, 512), (1e-3, 0.1, 0.5, 0.999), shapes, (1, 2, 3)):
        plan = planned(steps, sequences, sets, budget=budget, passes=passes)
        training, spent = steps * sequences * passes, forwards(plan, sets)
        assert plan.share == pytest.approx(spent / (spent + training)) and plan.within == (
            spent <= training * budget / (1 - budget)
        )
        assert FEWEST_WINDOWS <= plan.windows <= MOST_WINDOWS and 1 <= plan.eval_steps <= steps
        assert plan.points == 1 + math.ceil(steps / plan.eval_steps)
        assert plan.eval_steps == steps or plan.eval_steps % math.ceil(steps / 10) == 0
        if not plan.within:  # nothing is left to save
            assert plan.points == 2 and plan.windows == FEWEST_WINDOWS
        if not plan.capped:
            assert plan.eval_steps == math.ceil(steps / 10)
            assert forwards(plan, sets) == plan.points * sum(min(MOST_WINDOWS, size or MOST_WINDOWS) for size in sets)


def test_windows_go_first_and_points_only_at_the_fewest():
    plans = [planned(steps=steps) for steps in range(10, 6_000, 35)]
    assert all(plan.points == 11 or plan.windows < 2 * FEWEST_WINDOWS for plan in plans)
    assert {2, 3, 4, 6, 11} <= {plan.points for plan in plans} and max(plan.windows for plan in plans) == MOST_WINDOWS


def test_what_is_given_is_never_changed():
    for steps, windows, interval in product((1, 25, 10_000), (1, 200, "all"), (1, 9, 500)):
        plan = planned(steps, windows=windows, eval_steps=interval)
        assert (plan.windows, plan.eval_steps, plan.capped) == (windows, interval, [])
    chosen = planned(25, windows=200)
    assert (chosen.windows, chosen.points, chosen.capped) == (200, 2, ["training.eval_steps"])
    chosen = planned(25, eval_steps=5)
    assert (chosen.windows, chosen.points, chosen.capped) == (FEWEST_WINDOWS, 6, ["forgetting.eval_windows"])
    assert planned(100, eval_steps=0.25).points == 5  # a share of the steps, as in HF's arguments


@pytest.mark.parametrize("budget", [0, 1])
def test_without_a_limit_nothing_is_capped(budget):
    plan = planned(25, budget=budget)
    assert (plan.windows, plan.eval_steps, plan.capped, plan.within) == (MOST_WINDOWS, 3, [], True)


def test_a_run_that_is_not_evaluated_has_its_baseline():
    plan = planned(25, during_training=False)
    assert plan.points == 1 and str(plan).startswith("evaluation: step 0, ")


@pytest.mark.parametrize("interval", [-1, 0, math.nan, math.inf])
def test_an_interval_is_a_positive_number(interval):
    with pytest.raises(MyPTError, match=r"training\.eval_steps"):
        planned(eval_steps=interval)


def test_the_words_name_the_keys_that_choose():
    assert str(planned(25)) == (
        "evaluation: step 0 and the last step, up to 64 windows of each set, 17.6% of the compute; the fewest that a "
        "verdict needs, though above forgetting.time_budget 0.1 (to choose: forgetting.eval_windows, "
        "training.eval_steps)"
    )
    assert "time_budget 0.1 has no room for more (to choose: forgetting.eval_windows)" in str(planned(300))
    assert str(planned(25, windows=200, eval_steps=5)).endswith("; above forgetting.time_budget 0.1, as set")
    assert str(planned(10**6)).endswith(" of the compute")


def test_what_acts_on_evaluations_keeps_all_of_them():
    for steps in (1, 25, 300, 3_001):
        free, kept = planned(steps), planned(steps, acting=["forgetting.action stop"])
        assert kept.points == 1 + math.ceil(steps / math.ceil(steps / 10)) >= free.points
        assert kept.windows <= free.windows and kept.windows >= FEWEST_WINDOWS
    assert str(planned(25, acting=["forgetting.action stop", "safety.early_stopping_patience"])).endswith(
        "; the fewest windows that a verdict needs and every evaluation that forgetting.action stop or "
        "safety.early_stopping_patience may act on, though above forgetting.time_budget 0.1 (to choose: "
        "forgetting.eval_windows)"
    )
    assert str(planned(300, acting=["forgetting.action stop"])).endswith(
        "; forgetting.time_budget 0.1 has no room for more (to choose: forgetting.eval_windows)"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"during_training": False, "windows": 200}, "; forgetting.eval_windows as set, though above "),
        ({"windows": 500}, "; forgetting.eval_windows as set and the fewest evaluations, though above "),
        ({"eval_steps": 5}, "; the fewest windows that a verdict needs and training.eval_steps as set, though above "),
        ({"windows": 500, "eval_steps": 5, "recalled": KEYS}, "; above forgetting.time_budget 0.1, as when the run "),
        ({"windows": 500, "recalled": KEYS}, "; forgetting.eval_windows as when the run began and the fewest eval"),
        ({"windows": 9, "eval_steps": 1, "recalled": KEYS[:1]}, "; forgetting.eval_windows as when the run began and "
         "training.eval_steps as set, though above "),
        ({"sets": [3], "steps": 1, "sequences": 1}, "; above forgetting.time_budget 0.1"),
    ],
)  # fmt: skip
def test_the_line_names_what_is_above_the_budget_and_why(options, words):
    line = str(planned(**({"steps": 25} | options)))
    assert words in line and line.count("though above") + line.count("; above") == 1
    if not options.get("during_training", True):
        assert "eval_steps" not in line and "verdict" not in line


def test_passes_of_what_is_frozen():
    assert training_passes(4) == 3 and training_passes(4, lora=True) == 2
    assert training_passes(4, freeze_layers=2) == 2.5  # gradients of their outputs, none of their weights
    assert training_passes(4, freeze_layers=2, freeze_embeddings=True) == 2  # not even those
    assert training_passes(4, freeze_embeddings=True) == 3
