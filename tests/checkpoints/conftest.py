"""A finished run on two sources, and copies of it to spoil."""

import shutil
from pathlib import Path

import pytest

from tests.training.conftest import corpora  # noqa: F401


@pytest.fixture(scope="session")
def finished_run(corpora, tmp_path_factory) -> Path:  # noqa: F811
    """The folder of a run of 4 steps, saved and evaluated at each second one."""
    from mypt.recipe import parse_recipe
    from mypt.training.run import train

    sources = {name: str(corpora / name) for name in ("domain", "general")}
    dimensions = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    dimensions |= {"head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 64}
    steps = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "bf16": False}
    content = {
        "model": {"preset": "modern-nano"} | dimensions,
        "data": {"train": {sources["domain"]: 0.75, sources["general"]: 0.25}, "eval": sources, "block_size": 32},
        "coverage": {"confirm": False},
        "forgetting": {"eval_windows": 10},
        "training": {"output_dir": str(tmp_path_factory.mktemp("finished") / "run"), "learning_rate": 3e-3} | steps,
    }
    return train(parse_recipe(content))


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")
