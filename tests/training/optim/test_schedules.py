"""Schedules are their formulas, worked by hand; every step learns; a lengthened run climbs again, to the last bit."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SchedulerType, get_scheduler

from mypt.checkpoints.checksums import CHECKSUMS_NAME
from mypt.errors import RecipeError
from mypt.recipe import OptimizerSection, load_recipe, parse_recipe
from mypt.training.optim.schedules import REWARM_FLOOR, RewarmSchedule, rewarmed, schedule_arguments, warmup_length
from mypt.training.run import train


def shares(steps: int, warmup: int, kind: str | None = None, kwargs: dict | None = None, **section) -> list[float]:
    """The share of the learning rate at each step 0 .. steps, as training's scheduler gives it for our arguments."""
    if not kind:
        kind, kwargs = schedule_arguments(OptimizerSection(**section), steps, warmup).values()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = rewarmed(get_scheduler(kind, optimizer, warmup, steps, kwargs), SchedulerType(kind), warmup)
    used = []
    for _ in range(steps + 1):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"schedule": "wsd"}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 80: 1, 85: 1 - math.sqrt(0.25), 100: 0}),
        ({"schedule": "wsd", "cooldown": 0.5}, {10: 1, 50: 1, 68: 1 - math.sqrt(0.36), 100: 0}),
        ({"schedule": "wsd", "floor": 0.2}, {0: 0.28, 4: 0.6, 9: 1, 10: 1, 80: 1, 85: 0.2 + 0.8 * 0.5, 100: 0.2}),
        ({"schedule": "linear"}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 55: 0.5, 99: 1 / 90, 100: 0}),
        ({"schedule": "linear", "floor": 0.2}, {0: 0.28, 9: 1, 10: 1, 55: 0.6, 100: 0.2}),
        ({"schedule": "cosine"}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 40: 0.75, 55: 0.5, 70: 0.25, 100: 0}),
        ({"schedule": "cosine", "floor": 0.5}, {0: 0.55, 9: 1, 10: 1, 40: 0.875, 55: 0.75, 100: 0.5}),
        ({"schedule": "constant"}, {0: 0.1, 4: 0.5, 9: 1, 55: 1, 100: 1}),
        ({"schedule": "rewarm"}, {0: 0.19, 4: 0.55, 9: 1, 10: 1, 40: 0.1 + 0.9 * 0.75, 55: 0.55, 70: 0.325, 100: 0.1}),
        ({"schedule": "rewarm", "floor": 0.0}, {0: 0.1, 9: 1, 10: 1, 55: 0.5, 100: 0}),
    ],
)
def test_a_schedule_is_its_formula(section, expected):
    curve = shares(100, 10, **section)
    assert {step: curve[step] for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine", "constant", "rewarm"])
@pytest.mark.parametrize(("steps", "warmup", "cooldown"), [(40, 8, 0.2), (40, 30, 0.9), (7, 0, 1.0), (20, 19, 0.5)])
def test_a_schedule_rises_to_the_peak_and_only_falls_from_there(schedule, steps, warmup, cooldown):
    curve = shares(steps, warmup, schedule=schedule, cooldown=cooldown)
    assert curve[max(0, warmup - 1)] == curve[warmup] == max(curve) == 1
    assert min(curve[:steps]) > 0 or schedule == "wsd", "each step learns"
    rise, fall = curve[: warmup + 1], curve[warmup:]
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True)


@pytest.mark.parametrize(
    ("kind", "kwargs", "first"),
    [
        *((kind, {}, 0.1) for kind in ("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt")),
        ("constant_with_warmup", {}, 0.1),
        ("cosine_with_min_lr", {"min_lr": 0.1}, 0.1),
        ("cosine_warmup_with_min_lr", {"min_lr": 0.1}, 0.1),
        ("cosine_warmup_with_min_lr", {"min_lr": 0.1, "warmup_lr_rate": 0.3}, 0.3),
        ("constant", {}, 1),
    ],
)
def test_the_first_step_of_any_schedule_of_hf_learns_and_the_last_of_the_warm_up_has_the_peak(kind, kwargs, first):
    curve = shares(100, 10, kind, kwargs)
    assert (curve[0], curve[9]) == pytest.approx((first, 1)) and max(curve) <= 1 and min(curve[:100]) > 0


@pytest.mark.parametrize(
    "section",
    [
        *({"schedule": name} for name in ("wsd", "linear", "cosine", "constant", "rewarm")),
        *({"schedule": name, "floor": 0.3} for name in ("wsd", "linear", "cosine", "rewarm")),
        *({"kind": kind, "kwargs": {}} for kind in ("linear", "cosine", "cosine_with_restarts", "inverse_sqrt")),
        {"kind": "warmup_stable_decay", "kwargs": {"num_decay_steps": 4}},
    ],
)
def test_a_run_that_ends_with_its_warm_up_ends_at_the_peak(section):
    floor = section.get("floor") or (REWARM_FLOOR if section.get("schedule") == "rewarm" else 0)
    expected = [floor + (1 - floor) * share for share in (0.25, 0.5, 0.75, 1)]
    assert shares(4, 4, **section)[:4] == pytest.approx(expected)
    assert shares(1, 1, **section)[0] == 1, "the one step of a run learns"
    assert shares(3, 4, **section)[:3] == pytest.approx(expected[:3]), "and before the end of a longer warm-up"


def test_a_floor_below_a_constant_rate_is_refused():
    with pytest.raises(RecipeError, match=r"optimizer.floor 0.1 has no meaning"):
        schedule_arguments(OptimizerSection(schedule="constant", floor=0.1), 100, 10)


def test_a_warm_up_is_steps_or_a_share():
    assert [warmup_length(given, 250) for given in (0, 1, 30, 30.0, 0.05, 0.1, 0.999)] == [0, 1, 30, 30, 13, 25, 250]
    for wrong in (-1, -0.1, 1.5, 2.01, math.nan, math.inf):
        with pytest.raises(RecipeError, match="expected a whole number of steps, or a share"):
            warmup_length(wrong, 250)


def test_a_climb_goes_from_the_share_it_had_to_the_curve_and_never_above():
    falling = RewarmSchedule(lambda step: 1 - step / 100)
    before = [falling(step) for step in range(100)]
    falling.resume(50, 0.5, 10)
    assert [falling(step) for step in range(100)] == before, "the curve goes on where it was"
    falling.resume(50, 0.0, 10)
    assert (falling(50), falling(52)) == pytest.approx((0.1, 0.3)), "its first step learns"
    assert (falling(55), falling(60)) == pytest.approx((0.45, 0.4)), "the curve is lower"
    high = RewarmSchedule(lambda step: 1.0)
    high.resume(50, 0.2, 10)
    assert [high(step) for step in (50, 54, 59, 99)] == pytest.approx([0.28, 0.6, 1, 1])
    high.resume(55, 0.1, 0)
    assert high(54) == pytest.approx(0.6), "without a warm-up there is no climb"


def rates(run: Path) -> list[float]:
    """That each step used."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry["learning_rate"] for entry in entries if "learning_rate" in entry]


@pytest.fixture
def short(recipe_for):
    """short(max_steps, **optimizer): a recipe that logs each step, with a warm-up of 4 and hardly an evaluation."""

    def build(max_steps: int, training: dict | None = None, **optimizer) -> dict:
        content = recipe_for(forgetting={"eval_windows": 2})
        content["optimizer"] = optimizer
        content["training"] |= {"max_steps": max_steps, "warmup_steps": 4, "logging_steps": 1, "save_steps": 6}
        content["training"] |= {"eval_steps": 1000} | (training or {})
        return content

    return build


def test_a_checkpoint_of_a_version_whose_first_step_had_rate_0_goes_on_with_the_rates_that_it_had(short, rewind):
    content = short(8, {"warmup_steps": 5, "save_steps": 2}, schedule="constant")
    run = train(parse_recipe(content))
    assert [rate / 3e-3 for rate in rates(run)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    old = rewind(run, run.parent / "old", 2)
    state = torch.load(old / "checkpoint-2" / "scheduler.pt", weights_only=True)
    state["lr_lambdas"] = [{"climb": None} for _ in state["lr_lambdas"]]
    torch.save(state, old / "checkpoint-2" / "scheduler.pt")
    (old / "checkpoint-2" / CHECKSUMS_NAME).unlink()
    content["training"] |= {"output_dir": str(old), "save_steps": 3}
    train(parse_recipe(content), resume=True)
    assert [rate / 3e-3 for rate in rates(old)][2:] == pytest.approx([0.4, 0.6, 0.8, 1, 1, 1])
    content["training"] |= {"max_steps": 9}
    shutil.rmtree(old / "checkpoint-6")
    train(parse_recipe(content), resume=True)
    assert [rate / 3e-3 for rate in rates(old)][3:6] == pytest.approx([0.6, 0.8, 1]), "and after a second resume"


LENGTHENED = {  # of 12 steps, lengthened to 18: shares at steps 12 .. 17, with a climb over 4 steps
    "wsd": [0.25, 0.5, 0.75, 1, 1 - math.sqrt(1 / 3), 1 - math.sqrt(2 / 3)],
    "polynomial": [0.25, 5 / 14, 4 / 14, 3 / 14, 2 / 14, 1 / 14],  # HF's own, linear
}


@pytest.mark.parametrize("schedule", LENGTHENED)
def test_a_lengthened_run_climbs_again_and_a_kill_in_the_climb_changes_nothing(short, schedule, tmp_path, capsys):
    own = {"schedule": schedule} if schedule != "polynomial" else {}
    hf = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.0, "power": 1.0}}
    content = short(12, {} if own else hf, **own)
    run = train(parse_recipe(content))
    capsys.readouterr()
    content["training"] |= {"max_steps": 18, "save_steps": 14}
    train(parse_recipe(content), resume=True)
    words = "changed from step 12 on: the rate re-warms over 4 steps from 0, where its decay had left it"
    assert capsys.readouterr().out.count(words) == 1
    climbed = [rate / 3e-3 for rate in rates(run)[-6:]]
    assert climbed == pytest.approx(LENGTHENED[schedule], abs=1e-9)
    event = json.loads((run / "coverage.json").read_text())["events"][0]
    assert (event["step"], event["rewarm"]) == (12, {"step": 12, "share": 0.0, "steps": 4, "first": 1})
    assert event["changes"]["max_steps"] == [12, 18]
    killed = tmp_path / "killed"
    shutil.copytree(run, killed)
    shutil.rmtree(killed / "checkpoint-18")
    content["training"] |= {"output_dir": str(killed)}
    train(parse_recipe(content), resume=True)
    assert "re-warms" not in capsys.readouterr().out, "it goes on with the climb that it had begun"
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (run, killed))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert json.loads((killed / "coverage.json").read_text()) == json.loads((run / "coverage.json").read_text())


@pytest.mark.parametrize(("schedule", "step"), [("constant", 12), ("wsd", 6)])
def test_before_a_decay_a_lengthened_run_goes_on_at_the_rate_it_had(short, schedule, step, capsys):
    content = short(12, schedule=schedule)
    run = train(parse_recipe(content))
    if step < 12:
        shutil.rmtree(run / "checkpoint-12")
    content["training"] |= {"max_steps": 16}
    train(parse_recipe(content), resume=True)
    assert "re-warms" not in capsys.readouterr().out
    assert [rate / 3e-3 for rate in rates(run)][-(16 - step) :][:4] == [1.0] * 4


def test_a_share_as_warm_up_is_counted_in_steps_of_the_run_and_kept_in_its_recipe(short, capsys):
    content = short(12, {"warmup_steps": 0.25}, schedule="constant")
    run = train(parse_recipe(content))
    assert [rate / 3e-3 for rate in rates(run)][:5] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert json.loads((run / "coverage.json").read_text())["settings"]["warmup_steps"] == 3
    assert load_recipe(run).training["warmup_steps"] == 0.25
    train(load_recipe(run, ["--training.max_steps=14"]), resume=True)
    assert "changed from step 12 on: warmup_steps 3 -> 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "schedule"), [("muon", "rewarm"), ("adafactor", "rewarm"), ("sgd", "wsd"), ("adamw_torch", "linear")]
)
def test_one_schedule_moves_all_groups_of_any_optimizer(short, name, schedule):
    content = short(5, name=name, schedule=schedule)
    content["model"] |= {"freeze_layers": 1}
    run = train(parse_recipe(content))
    state = torch.load(run / "checkpoint-5" / "optimizer.pt", weights_only=True)
    used = rates(run)
    assert len(state["param_groups"]) == 2 and len(set(used)) > 2
    final = REWARM_FLOOR * 3e-3 if schedule == "rewarm" else 0
    assert [group["lr"] for group in state["param_groups"]] == pytest.approx([final, final])


def test_a_schedule_that_reacts_goes_on_from_its_place_at_the_new_rate(short, capsys):
    content = short(4)
    content["training"] |= {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_steps": 2}
    run = train(parse_recipe(content))
    content["training"] |= {"max_steps": 6, "learning_rate": 1.5e-3, "weight_decay": 0.3}
    train(parse_recipe(content), resume=True)
    assert rates(run) == pytest.approx([3e-3] * 4 + [1.5e-3] * 2)
    printed = capsys.readouterr().out
    assert "learning_rate 0.003 -> 0.0015" in printed and "weight_decay 0.1 -> 0.3" in printed
    groups = torch.load(run / "checkpoint-6" / "optimizer.pt", weights_only=True)["param_groups"]
    assert max(group["weight_decay"] for group in groups) == 0.3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamv", r"unknown optimizer.name 'adamv'; did you mean 'adamw'"),
        ("adafctor", r"unknown optimizer.name 'adafctor'; did you mean 'adafactor'"),
        ("lomo", r"optimizer.name lomo: .*pip install lomo-optim"),
        ("galore_adamw", r"optimizer.name galore_adamw: .*galore_torch"),
        ("schedule_free_adamw", r"schedule_free_adamw is refused: the weights that it measures are a mean"),
    ],
)
def test_an_optimizer_that_is_not_there_is_one_clear_error_before_the_run_begins(short, name, words):
    content = short(6)
    content["optimizer"] = {"name": name}
    with pytest.raises(RecipeError, match=words):
        train(parse_recipe(content))
    assert not (Path(content["training"]["output_dir"]) / "environment.json").exists()


def test_a_wrong_training_optim_is_named_as_it_was_given():
    with pytest.raises(RecipeError, match=r"unknown training.optim 'adamw_troch'; did you mean 'adamw_torch'"):
        parse_recipe({"training": {"optim": "adamw_troch"}})
