"""The lines that come first: which questions are asked, how serious the answers are, and that the changes help."""

import re

import pytest

from mypt.models.presets import preset_dimensions
from mypt.planning.disk import Saving
from mypt.planning.fit import RECIPE_FLAGS
from mypt.planning.plan import PlannedRun, plan
from mypt.planning.plan_report import verdict_lines
from mypt.planning.verdict import DataSource

GIB = 2**30


def planned(**changes):
    given = {
        "batch_size": 8,
        "block_size": 256,
        "steps": 10_000,
        "dimensions": preset_dimensions("modern-nano"),
        "sources": [DataSource("data", 6_000_000)],
        "available": 24 * GIB,
        "tokens_per_second": 10_000,
        "flags": RECIPE_FLAGS,
    }
    return plan(PlannedRun(**given | changes))


def check(result, name):
    return next(check for check in result.checks if check.name == name)


def test_a_good_plan_has_nothing_to_change():
    result = planned(dimensions=None, parameters=1_000_000, saving=Saving(free=GIB))
    assert [(each.name, each.level) for each in result.checks] == [
        ("data", "good"), ("model", "good"), ("time", "good")
    ]  # fmt: skip
    assert not any(each.changes for each in result.checks) and result.works
    lines = verdict_lines(result)
    assert lines[0] == "Plan: can run" and len(lines) <= 6
    assert "34 min 8 s" in lines[-1]  # 20,480,000 tokens at 10,000 a second


@pytest.mark.parametrize(("steps", "advised"), [(100, 8_790), (50_000, 14_649)])
def test_the_steps_that_are_proposed_are_good(steps, advised):
    """6,000,000 tokens at 2,048 a step: 3 passes are 8,789.06 steps, 5 are 14,648.4."""
    result = planned(steps=steps)
    proposed = re.fullmatch(r"--training\.max_steps=(\d+) for \dx", check(result, "data").changes[0])
    assert int(proposed[1]) == advised
    assert check(planned(steps=advised), "data").level == "good"


def test_a_small_source_that_is_seen_often_is_named_with_a_share_that_helps():
    sources = [DataSource("law", 30_000_000, 0.9), DataSource("notes", 100_000, 0.1)]
    steps = 40 * 100_000 * 10 // 2_048
    notes = check(planned(steps=steps, sources=sources), "notes")
    assert notes.level == "warning" and "40.00x" in notes.sentence
    assert "4M tokens are worth 1.52M fresh ones (38%)" in notes.sentence  # 1 + 15.39 (1 - exp(-39 / 15.39)) = 15.2
    share = float(re.match(r"a share of ([\d.]+)%", notes.changes[0])[1]) / 100
    moved = [DataSource("law", 30_000_000, 1 - share), DataSource("notes", 100_000, share)]
    better = planned(steps=steps, sources=moved)
    assert better.coverage.sources[1].coverage == pytest.approx(4, rel=0.01)
    assert "notes" not in [each.name for each in better.checks]


def test_a_model_is_judged_by_the_data_and_not_by_a_short_run():
    """50M parameters on 6M tokens are too many at any length; 1M are enough, though 100 steps show it few tokens."""
    large = check(planned(dimensions=preset_dimensions("modern-small")), "model")
    assert large.level == "note" and large.changes == ["more data"]
    smaller = {name: preset_dimensions(name) for name in ("modern-tiny", "modern-nano")}
    proposed = check(planned(dimensions=preset_dimensions("modern-small"), smaller=smaller), "model").changes[0]
    assert proposed == "--model.preset=modern-nano (4.84M parameters)"
    assert check(planned(dimensions=None, parameters=1_000_000, steps=100), "model").level == "good"
    assert check(planned(dimensions=preset_dimensions("modern-small"), init_from="base"), "model").level == "good"


def test_data_shorter_than_a_window_fails_with_the_block_that_works():
    sources = [DataSource("law", 6_000_000, 0.9), DataSource("notes", 200, 0.1)]
    result = planned(sources=sources)
    assert check(result, "data").level == "failed" and not result.works
    assert check(result, "data").changes[0] == "--data.block_size=199"
    assert check(planned(sources=sources, block_size=199), "data").level != "failed"


@pytest.mark.parametrize(("tokens", "level"), [(257, "warning"), (258, "note"), (63 * 256 + 1, "note")])
def test_a_short_val_split_is_named_with_the_block_that_works(tokens, level):
    name = "val split of notes"
    found = check(planned(eval_sets={"notes": tokens, "law": 10**6, "web": None}), name)
    assert found.level == level
    assert [each.name for each in planned(eval_sets={"notes": 64 * 256 + 1}).checks if "val" in each.name] == []
    if flag := re.match(r"--data\.block_size=(\d+)", found.changes[0]):
        again = planned(block_size=int(flag[1]), eval_sets={"notes": tokens})
        assert name not in [each.name for each in again.checks]


def test_a_disk_without_room_fails_and_fewer_checkpoints_help():
    saving = {"limit": 10, "save_steps": 100}
    needed = planned(saving=Saving(**saving)).disk
    tight = check(planned(saving=Saving(**saving, free=needed.peak // 2)), "disk")
    assert tight.level == "failed"
    kept = int(tight.changes[0].removeprefix("--training.save_total_limit="))
    again = planned(saving=Saving(limit=kept, save_steps=100, free=needed.peak // 2))
    assert check(again, "disk").level == "good" and again.works


def test_what_is_not_known_is_no_fault():
    result = planned(available=None, tokens_per_second=None, sources=None, saving=Saving())
    assert {each.name: each.level for each in result.checks} == dict.fromkeys(
        ("memory", "disk", "data", "model", "time"), "unknown"
    )
    assert verdict_lines(result)[0] == "Plan: can run"


def test_lines_are_short_and_changes_whole():
    small = preset_dimensions("modern-tiny")
    result = planned(dimensions=preset_dimensions("750M_1024"), available=4 * GIB, smaller={"modern-tiny": small})
    lines = verdict_lines(result)
    assert lines[0] == "Plan: cannot run: memory"
    for line in lines:
        assert len(line) <= 100 or line.lstrip().startswith("->")
    assert any("--model.preset=modern-tiny --training.per_device_train_batch_size=8" in line for line in lines)
