"""A speed is used again for the same step on the same machine alone."""

import json
import math
from dataclasses import replace

import pytest

from mypt.hardware.machine import Machine
from mypt.hardware.speeds import SPEED_NAME, identify, recorded_speed, write_speed
from mypt.models.presets import preset_dimensions
from mypt.planning.step import Step

MACHINE, STEP = Machine("gpu", 2**34, "bfloat16", model="a GPU"), Step(block_size=64)
SIZES = preset_dimensions("modern-nano")


def test_the_run_with_the_most_steps_counts_and_is_named(tmp_path):
    identity = identify(MACHINE, SIZES, STEP, 1)
    for name, steps, seconds in (("short", 5, 1.0), ("long", 50, 2.0)):
        (tmp_path / name).mkdir()
        write_speed(tmp_path / name, identity, {"steps": steps, "seconds": seconds, "tokens_per_second": 512.0})
    found = recorded_speed(tmp_path / "new", identity)
    assert (found.source, found.step) == ("recorded", 2.0)
    assert str(tmp_path / "long") in found.words and "50 steps" in found.words


@pytest.mark.parametrize(
    "other",
    [
        identify(replace(MACHINE, model="another"), SIZES, STEP, 1),
        identify(MACHINE, SIZES | {"hidden_size": 64}, STEP, 1),
        identify(MACHINE, SIZES, replace(STEP, micro_batch_size=4), 1),
        identify(MACHINE, SIZES, replace(STEP, compute_dtype="bfloat16"), 1),
        identify(MACHINE, SIZES, STEP, 2),
    ],
    ids=["device", "shape", "batch", "dtype", "processes"],
)
def test_nothing_else_is_taken_for_the_same(other, tmp_path):
    (tmp_path / "run").mkdir()
    figures = {"steps": 5, "seconds": 1.0, "tokens_per_second": 1.0}
    write_speed(tmp_path / "run", identify(MACHINE, SIZES, STEP, 1), figures)
    assert recorded_speed(tmp_path / "run", identify(MACHINE, SIZES, STEP, 1))
    assert recorded_speed(tmp_path / "run", other) is None


@pytest.mark.parametrize("damage", ["{", "[]", '{"of": 1}', "nan", "zero"])
def test_a_damaged_record_counts_as_none(damage, tmp_path):
    identity = identify(MACHINE, SIZES, STEP, 1)
    (tmp_path / "run").mkdir()
    seconds = {"nan": math.nan, "zero": 0}.get(damage, 1.0)
    write_speed(tmp_path / "run", identity, {"steps": 5, "seconds": seconds, "tokens_per_second": 1.0})
    if damage not in ("nan", "zero"):
        (tmp_path / "run" / SPEED_NAME).write_text(damage)
    else:
        json.loads((tmp_path / "run" / SPEED_NAME).read_text())
    assert recorded_speed(tmp_path / "run", identity) is None
