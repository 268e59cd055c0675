"""A plan names the choices that training then makes."""

import re

import pytest
import yaml

from mypt.errors import RecipeError
from mypt.hardware.machine import Machine, this_machine
from mypt.recipe import load_recipe
from mypt.training.run import train
from mypt.training.target import read_target


def test_the_plan_says_what_the_run_then_prints(recipe_for, tmp_path, capsys):
    content = recipe_for(data=recipe_for()["data"] | {"tokens_per_step": 512, "eval": {}})
    content["training"] |= {"max_steps": 1, "save_steps": 1}
    for key in ("bf16", "per_device_train_batch_size"):
        del content["training"][key]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    target = read_target(str(path), [], this_machine())
    assert set(target.choices) == {"dtype", "attention", "batch", "optimizer"}
    train(load_recipe(path))
    printed = dict(re.findall(r"^(dtype|attention|batch|optimizer): (.*)$", capsys.readouterr().out, re.MULTILINE))
    for name in ("attention", "batch", "optimizer"):
        choice = target.choices[name]
        assert printed[name] == f"{choice.value} ({choice.reason})"
    assert target.choices["dtype"].reason in printed["dtype"]
    assert target.settings["micro_batch_size"] * target.settings["accumulation"] * 32 == 512
    assert target.settings["attention"] == target.choices["attention"].value == "eager"


def test_processes_share_the_global_batch(recipe_for, tmp_path):
    path = tmp_path / "recipe.yaml"
    content = recipe_for(data=recipe_for()["data"] | {"tokens_per_step": 512})
    path.write_text(yaml.safe_dump(content))
    for processes in (1, 2, 4):
        settings = read_target(str(path), [], this_machine(), processes=processes).settings
        assert settings["micro_batch_size"] * settings["accumulation"] * processes * 32 == 512
    with pytest.raises(RecipeError, match="3 processes cannot share evenly"):
        read_target(str(path), [], this_machine(), processes=3)


@pytest.mark.parametrize(
    ("device", "length", "attention"), [("cpu", 64, "eager"), ("cpu", 2048, "sdpa"), ("gpu", 64, "sdpa")]
)
def test_a_preset_gets_the_attention_of_its_length_and_device(device, length, attention):
    target = read_target("modern-nano", [], Machine(device, 2**33, "bfloat16", "it can"), given={"block_size": length})
    assert target.choices["attention"].value == target.settings["attention"] == attention
    assert target.choices["dtype"] == ("bfloat16", "it can")


def test_options_take_the_place_of_a_recipes_values_before_the_choices_are_made(recipe_for, tmp_path):
    path = tmp_path / "recipe.yaml"
    content = recipe_for(data=recipe_for()["data"] | {"tokens_per_step": 512})
    path.write_text(yaml.safe_dump(content))
    given = {"compute_dtype": "float32", "block_size": 256, "micro_batch_size": 1, "accumulation": None}
    target = read_target(str(path), [], Machine("cpu", 2**33, "bfloat16", "it can"), given=given)
    assert target.choices["dtype"] == ("float32", "as the option says")
    assert target.choices["attention"].value == "sdpa", "in bfloat16 it would be eager"
    assert target.choices["batch"].value == "512 tokens per step = 1 sequences of 256 x 2 passes"
    assert {name: target.settings[name] for name in ("compute_dtype", "micro_batch_size", "accumulation")} == {
        "compute_dtype": "float32", "micro_batch_size": 1, "accumulation": 2}  # fmt: skip
