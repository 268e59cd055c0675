"""The optimizer that a run takes where its recipe leaves it open: chosen once, printed once, kept by a resume."""

import pytest

from mypt.hardware.machine import machine_of
from mypt.recipe import load_recipe, parse_recipe, save_recipe
from mypt.training.build import build_trainer
from mypt.training.run import train
from mypt.training.target import read_target

FEW, MANY = 1, 64  # sequences of 8 tokens in a step


@pytest.fixture
def small_steps(recipe_for):
    def build(sequences: int, **optimizer) -> dict:
        content = recipe_for(data={"block_size": 8}, optimizer=optimizer, forgetting={"eval_windows": 2})
        sizes = {"per_device_train_batch_size": sequences, "max_steps": 2, "save_steps": 1}
        content["training"] = {**content["training"], **sizes}
        return content

    return build


def lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("optimizer: ")]


def test_auto_is_chosen_once_and_a_resume_keeps_it(small_steps, capsys):
    run = train(parse_recipe(small_steps(FEW)))
    (line,) = lines(capsys.readouterr().out)
    assert line.startswith("optimizer: adamw (auto: Muon's Newton-Schulz products would be ")
    assert "of a step of 8 tokens; bound" in line
    assert load_recipe(run).optimizer.name == "adamw"

    content = small_steps(MANY)  # a new run would take Muon
    content["training"]["max_steps"] = 3
    train(parse_recipe(content), resume=True)
    assert lines(capsys.readouterr().out) == ["optimizer: adamw (as when the run began)"]
    assert load_recipe(run).optimizer.name == "adamw"


@pytest.mark.parametrize(("sequences", "name"), [(FEW, "adamw"), (MANY, "muon")])
def test_a_plan_chooses_as_the_run_does(small_steps, capsys, tmp_path, sequences, name):
    content = small_steps(sequences)
    trainer = build_trainer(parse_recipe(content))
    (line,) = lines(capsys.readouterr().out)
    trainer.create_optimizer()
    assert any(group["muon"] for group in trainer.optimizer.param_groups) == (name == "muon")
    save_recipe(parse_recipe(content), tmp_path / "planned.yaml")
    planned = read_target(str(tmp_path / "planned.yaml"), [], machine_of(trainer.args.device)).choices["optimizer"]
    assert line == f"optimizer: {planned.value} ({planned.reason})"
    assert planned.value == name


@pytest.mark.parametrize(
    ("section", "training", "expected"),
    [
        ({"name": "muon"}, {}, "muon (as the recipe says)"),
        ({"name": "adafactor"}, {}, "adafactor (as the recipe says)"),
        ({}, {"optim": "adamw_torch"}, "adamw_torch (as the recipe says)"),
        ({"name": None}, {}, "adamw (auto: "),
    ],
)
def test_what_is_given_wins(small_steps, capsys, section, training, expected):
    content = small_steps(FEW, **section)
    content["training"] |= training
    build_trainer(parse_recipe(content))
    (line,) = lines(capsys.readouterr().out)
    assert line.startswith(f"optimizer: {expected}")
