"""A launch that was asked for several processes trains in several, or is refused in one line."""

import subprocess
import sys

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from mypt.errors import MyPTError
from mypt.training.launch import _ACCELERATE, require_processes
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
        ({"MASTER_ADDR": "10.0.0.1", "ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500",
          "ACCELERATE_MIXED_PRECISION": "no"}, "several processes and has started one"),
    ],
)  # fmt: skip
def test_what_the_environment_says_of_a_launch(environment, words, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *_ACCELERATE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if words is None:
        require_processes()
    else:
        with pytest.raises(MyPTError, match=words):
            require_processes()


@pytest.mark.parametrize("number", [1, 2])
def test_one_process_of_accelerate_where_a_cluster_exports_its_address_trains_with_a_line(number, monkeypatch):
    for name in (*_ACCELERATE, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    arguments = launch_command_parser().parse_args(["--cpu", "--num_processes", str(number), "x.py"])
    _validate_launch_command(arguments)
    environment = prepare_simple_launcher_cmd_env(arguments)[1]
    printed = subprocess.run(
        [sys.executable, "-c", "from mypt.training.launch import require_processes as r; r()"],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if number == 1:
        assert printed.returncode == 0 and "MASTER_ADDR is set, and accelerate has started one" in printed.stdout
    else:
        assert "several processes and has started one" in printed.stderr
