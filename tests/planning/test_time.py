"""The time of a run, part by part, worked by hand."""

import json
import math

import pytest

from mypt.errors import MyPTError
from mypt.models.presets import preset_dimensions
from mypt.planning.parameters import count_parameters
from mypt.planning.plan import PlannedRun, plan
from mypt.planning.time import (
    DISK,
    PREPARING,
    Assumption,
    Measured,
    Speed,
    assumed_speed,
    given_speed,
    measured_speed,
    plan_time,
)

SPEED = Speed(source="measured", words="", step=0.5, fast=0.4, slow=1.0, window=0.1, save=2.0, preparing=30, starting=9)


def test_every_part_counts():
    found = plan_time(SPEED, steps=1_000, save_steps=300, windows=200, devices=4, price=3)
    assert found.parts == {"starting": 9, "preparing": 30, "steps": 500, "evaluation": 20, "saving": 4 * 2}
    assert found.seconds == 567
    assert math.isclose(found.fastest, 9 + 30 + 400 + 16 + 8)
    assert math.isclose(found.slowest, 9 + 30 + 1_000 + 40 + 8)
    assert math.isclose(found.device_hours, 4 * 567 / 3_600)
    assert math.isclose(found.cost, 3 * 4 * 567 / 3_600)
    assert found.least < found.cost < found.most


def test_what_was_not_measured_follows_from_sizes():
    bare = given_speed(tokens_per_second=1_024, tokens_per_step=2_048)
    found = plan_time(bare, steps=100, checkpoint=int(DISK), evaluation_share=0.1, text=int(5 * PREPARING))
    assert found.parts == {"preparing": 5, "steps": 200, "evaluation": 20, "saving": 10}
    assert found.fastest == found.seconds == found.slowest
    assert found.cost is None


@pytest.mark.parametrize(
    ("interval", "saves"), [(None, 10), (100, 10), (99, 11), (0.25, 4), (5_000, 1), (0, 0), (1_000, 1)]
)
def test_checkpoints_are_counted_as_they_are_saved(interval, saves):
    assert plan_time(SPEED, steps=1_000, save_steps=interval).parts.get("saving", 0) == 2 * saves


@pytest.mark.parametrize("interval", ["often", math.nan, -5])
def test_an_interval_that_is_none_is_named(interval):
    with pytest.raises(MyPTError, match=r"training\.save_steps"):
        plan_time(SPEED, steps=1_000, save_steps=interval)


def test_an_assumed_speed_is_a_stated_share_of_the_peak():
    half = Assumption(flops=1e12, utilisation=(0.25, 0.5, 1.0), words="1 TFLOP/s", reason="a guess", devices=2)
    speed = assumed_speed(half, flops_per_step=4e12)
    assert (speed.fast, speed.step, speed.slow) == (2, 4, 8)
    assert "50% of 1 TFLOP/s" in speed.words and "25% to 100%: a guess" in speed.words


def test_a_plan_takes_the_given_speed_before_the_measured_before_the_assumed():
    half = Assumption(flops=1e12, utilisation=(0.25, 0.5, 1.0), words="", reason="")
    sizes = {"batch_size": 8, "block_size": 1_024, "steps": 100, "dimensions": preset_dimensions("modern-nano")}
    assumed = plan(PlannedRun(**sizes, assumption=half))
    assert assumed.time.source == "assumed"
    assert math.isclose(assumed.time.parts["steps"], assumed.compute.flops / 0.5e12)
    assert plan(PlannedRun(**sizes, assumption=half, speed=SPEED)).time.parts["steps"] == 50
    given = plan(PlannedRun(**sizes, assumption=half, speed=SPEED, tokens_per_second=8_192))
    assert (given.time.source, given.time.parts["steps"]) == ("given", 100)
    assert plan(PlannedRun(**sizes)).time is None


@pytest.mark.parametrize(("settings", "copies"), [({"optimizer": "adamw"}, 3), ({"optimizer": "sgd"}, 1)])
def test_a_checkpoint_holds_weights_and_states(settings, copies):
    dimensions = preset_dimensions("modern-nano")
    found = plan(
        PlannedRun(batch_size=1, block_size=64, steps=1, dimensions=dimensions, tokens_per_second=1, settings=settings)
    )
    assert found.time.parts["saving"] == copies * 4 * count_parameters(dimensions)["total"] / DISK


def test_several_processes_share_evaluations_and_are_as_fast_as_one():
    figures = {"step": 1.0, "fast": 1.0, "slow": 1.0, "tokens_per_second": 10.0, "windows": 8, "window": 0.5}
    rest = {"steps": 3, "warmup": 2, "save": 1.0, "preparing": None, "prepared": None, "starting": 1.0}
    memory = {"memory": 1, "evaluation_memory": 1, "predicted": 1, "predicted_evaluation": 1, "free": 1, "notes": []}
    one = Measured(**figures, **rest, **memory)
    speed = measured_speed(one, 4)
    assert (speed.step, speed.window) == (1.0, 0.125) and speed.words.startswith("40 tokens/s")
    assert "exchange not counted" in speed.words and "exchange" not in measured_speed(one).words


def test_lines_name_range_reason_and_price():
    layout = {"batch_size": 8, "block_size": 64, "processes": 8, "parameters": 1_000}
    (line,) = (
        check.sentence
        for check in plan(PlannedRun(**layout, steps=1_000, speed=SPEED, price=2.5)).checks
        if check.name == "time"
    )
    assert line.startswith("9 min") or line.startswith("8 min"), line
    assert " to " in line and "device hours at 2.5" in line
    found = plan(PlannedRun(batch_size=8, block_size=64, steps=10, parameters=1_000, speed=SPEED, price=1))
    assert json.loads(json.dumps(found.as_dict()))["time"]["parts"]["steps"] == 5
