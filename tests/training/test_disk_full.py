"""A disk that fills up during a save: one clear error, earlier checkpoints whole, the run goes on where it was."""

import subprocess

import pytest
import torch

from mypt.checkpoints.complete import last_complete_checkpoint
from mypt.cli.main import main
from mypt.recipe import parse_recipe
from mypt.training.run import train
from mypt.yaml12 import dump_yaml


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB that can be resized: small_disk("8m")."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_loses_nothing(recipe_for, weights, small_disk, tmp_path, capsys):
    disk, resize = small_disk
    content = recipe_for()
    whole = train(parse_recipe(content))
    content["training"]["output_dir"] = str(disk / "run")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(content))
    assert main(["train", str(recipe), "--resume"]) == 2
    error = capsys.readouterr().err
    assert "no room on the disk" in error or "the disk is full" in error
    checkpoint, skipped = last_complete_checkpoint(disk / "run")
    assert checkpoint is not None and not skipped
    resize("16m")
    assert main(["train", str(recipe), "--resume"]) == 0
    left, right = weights(whole), weights(disk / "run")
    assert all(torch.equal(left[name], right[name]) for name in left)
