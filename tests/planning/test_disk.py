"""The size of a run folder: against folders that runs have written, and by hand."""

import json
from dataclasses import replace

import pytest

from mypt.cli.main import main
from mypt.models.presets import preset_dimensions
from mypt.planning.disk import Saving, fewer_checkpoints, plan_disk
from mypt.planning.step import Step
from mypt.recipe import parse_recipe, save_recipe

LARGER = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64,
          "intermediate_size": 512}  # fmt: skip


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def predicted(capsys, recipe, path) -> dict:
    save_recipe(recipe, path)
    assert main(["plan", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["disk"]


STEPS = {"max_steps": 3, "save_steps": 1, "eval_steps": 3, "save_total_limit": 2, "logging_steps": 3}
SHORT = {"data": {"block_size": 16}, "forgetting": {"eval_windows": 1, "guard": []}}


@pytest.fixture
def run_as_planned(tmp_path, capsys):
    """Train a recipe whose plan is given back with the run folder, both compared."""
    from mypt.training.run import train

    def compare(content, weights):
        recipe = parse_recipe(content)
        planned = predicted(capsys, recipe, tmp_path / "planned.yaml")
        run = train(recipe, assume_yes=True)
        kept = sorted(run.glob("checkpoint-*"))
        assert [path.name for path in kept] == ["checkpoint-2", "checkpoint-3"] and planned["kept"] == 2
        for path in kept:
            assert planned["checkpoint"] == pytest.approx(size(path), rel=0.03)
        assert planned["weights"] == pytest.approx((run / weights).stat().st_size, rel=0.01)
        assert planned["optimizer"] == pytest.approx((kept[0] / "optimizer.pt").stat().st_size, rel=0.03)
        assert planned["end"] == pytest.approx(size(run), rel=0.03)
        return run

    return compare


def test_a_run_folder_has_the_size_that_was_planned(recipe_for, run_as_planned):
    """With Muon's states and AdamW's in one run."""
    run_as_planned(recipe_for(model=LARGER, training=STEPS, optimizer={"name": "muon"}, **SHORT), "model.safetensors")


@pytest.mark.slow
def test_so_has_that_of_adapters(recipe_for, adapted_models, run_as_planned):
    content = recipe_for(training=STEPS, **SHORT) | {"lora": {"r": 256}}
    content["model"] = {"init_from": str(adapted_models / "base")}
    run_as_planned(content, "adapter_model.safetensors")


def plan(steps=100, evaluated=True, **saving):
    dimensions = preset_dimensions("modern-tiny")
    return plan_disk(dimensions, Step(block_size=256), steps=steps, evaluated=evaluated, saving=Saving(**saving))


def test_adamw_by_hand():
    """15,881,856 parameters: 4 bytes each, and 8 of states."""
    disk = plan()
    assert (disk.weights, disk.optimizer) == (63_527_424, 127_054_848)
    assert disk.kept == 3 and disk.fits is None


@pytest.mark.parametrize(
    ("steps", "saving", "kept", "written"),
    [
        (100, {}, 3, 4),  # ten saves, a fourth written before the oldest goes
        (100, {"limit": None}, 10, 10),
        (101, {"save_steps": 50, "limit": None}, 3, 3),  # 50, 100 and the last one
        (100, {"save_steps": 0.25, "limit": 3}, 3, 4),
        (2, {}, 2, 2),
        (100, {"save_steps": 100}, 1, 1),
    ],
)
def test_checkpoints_that_are_there_at_once(steps, saving, kept, written):
    disk = plan(steps, evaluated=False, **saving)
    assert disk.kept == kept
    rest = disk.end - kept * disk.checkpoint - disk.models
    assert disk.peak == max(disk.end, written * disk.checkpoint + rest)


def test_prepared_text_counts_by_the_width_of_its_ids():
    dimensions, step = preset_dimensions("modern-nano"), Step(block_size=256)
    saving = Saving(prepared_tokens=10**9)
    narrow, wide = (
        plan_disk(dimensions | {"vocab_size": rows}, step, steps=10, evaluated=True, saving=saving).data
        for rows in (65_536, 65_600)
    )
    assert (narrow, wide) == (2 * 10**9, 4 * 10**9)


def test_fewer_checkpoints_fit():
    disk = plan(limit=None)
    for free in (0.3, 0.5, 0.9, 0.99):
        tight = replace(disk, free=int(free * disk.peak))
        kept = fewer_checkpoints(tight)
        if kept is None:
            assert not plan(limit=2, free=tight.free).fits
        else:
            assert plan(limit=kept, free=tight.free).fits and not plan(limit=kept + 1, free=tight.free).fits
