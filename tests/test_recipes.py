"""Every shipped recipe loads, can be planned and really trains; every launcher config is one that accelerate reads."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from mypt.cli.main import main
from mypt.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = [path.name for path in sorted(RECIPES.glob("*.yaml"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_planned_and_trained(run_command, name, capsys):
    recipe = load_recipe(RECIPES / name)
    run = Path(recipe.training["output_dir"])
    run_command(f"mypt plan recipes/{name}")
    planned = capsys.readouterr().out
    assert "Dataset coverage" in planned and "Memory to train" in planned, planned
    if recipe.lora and recipe.lora.load_in_4bit and not torch.cuda.is_available():
        assert main(["train", f"recipes/{name}"]) == 2
        assert "needs a CUDA GPU" in capsys.readouterr().err
        return
    run_command(f"mypt train recipes/{name}")
    assert "trained to step 2" in capsys.readouterr().out
    assert (run / ("adapter_model.safetensors" if recipe.lora else "model.safetensors")).is_file()


def test_no_two_recipes_share_a_run_folder():
    folders = [load_recipe(RECIPES / name).training["output_dir"] for name in NAMES]
    assert len(set(folders)) == len(folders), folders


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_launcher_config_is_one_that_accelerate_reads(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1


def test_a_run_on_a_text_file_is_repeated_from_its_folder(run_command):
    run_command("mypt train runs/first --training.output_dir=runs/again")
    weights = [Path(run, "model.safetensors").read_bytes() for run in ("runs/first", "runs/again")]
    assert weights[0] == weights[1]


def test_two_processes_prepare_a_text_file_once(run_command, capsys):
    run_command(
        "accelerate launch --config_file recipes/accelerate/cpu_2.yaml scripts/train.py recipes/pretrain.yaml"
        " --training.output_dir=runs/two"
    )
    assert capsys.readouterr().out.count("val is the tail of the text") == 1
