"""Every shipped recipe loads, is planned and trained (the large one planned); accelerate reads the launcher configs."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from mypt.cli.main import main
from mypt.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = [path.name for path in sorted(RECIPES.glob("*.yaml"))]
# Planned, never trained: a step of this size takes 16 GiB and minutes on a CPU.
LARGE = "domain_adapt_750M.yaml"


@pytest.mark.parametrize("name", [name for name in NAMES if name != LARGE])
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


def test_the_large_recipe_is_planned_with_its_parameters_counted(run_command, capsys):
    run_command(f"mypt plan recipes/{LARGE} --tokens 2e9 --memory 80G --json")
    planned = json.loads(capsys.readouterr().out)
    rows, context, layers, width = 50_304, 1_024, 32, 1_280
    block = 12 * width**2 + 13 * width  # GPT-2's: four projections, an MLP four times as wide, biases, two norms
    assert planned["parameters"]["total"] == (rows + context) * width + layers * block + 2 * width == 695_380_480
    assert planned["choices"]["batch"]["value"].startswith("524,288 tokens per step")
    assert planned["coverage"]["coverage"] == pytest.approx(2, abs=1e-3)


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
