"""A launch that was asked for several processes trains in several, or is refused in one line."""

import subprocess

import pytest
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser

from mypt.errors import MyPTError
from mypt.training.launch import require_processes
from tests.processes import ROOT


def test_accelerate_that_starts_one_process_of_two_is_refused(recipe_for, tmp_path, monkeypatch, capfd):
    recipe = recipe_for()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # without anyone's own config
    words = ["--cpu", "--num_processes", "2", str(ROOT / "scripts" / "train.py"), str(tmp_path / "recipe.yaml")]
    with pytest.raises(subprocess.CalledProcessError) as left:
        launch_command(launch_command_parser().parse_args(words))
    assert left.value.returncode == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed and "--config_file recipes/accelerate/cpu_2.yaml" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, None),
        ({"MASTER_ADDR": "10.0.0.1"}, None),  # a cluster's, without a launch
        ({"ACCELERATE_MIXED_PRECISION": "no"}, None),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "::1", "RANK": "0", "WORLD_SIZE": "2"}, None),
        ({"MASTER_ADDR": "::1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "2"}, "names 2 processes and not which of them"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number"),
        ({"RANK": ""}, "RANK is ''"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", "MASTER_ADDR": "127.0.0.1"}, "several processes and has started one"),
    ],
)
def test_what_the_environment_says_of_a_launch(environment, words, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if words is None:
        require_processes()
    else:
        with pytest.raises(MyPTError, match=words):
            require_processes()
