"""Runs on one GPU, with bodies that know no device: MYPT_GPU_TESTS_ON=cpu tries them where there is none."""

import gc
import os
from pathlib import Path

# cuBLAS reads it once, before its first product; deterministic algorithms need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
import yaml

from tests.training.conftest import without_plots  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; a test that asks for it is skipped where there is none."""
    kind = os.environ.get("MYPT_GPU_TESTS_ON", "cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA GPU, and torch {torch.__version__} sees none here")
    return torch.device(kind)


@pytest.fixture(autouse=True)
def nothing_left(device):
    """Each test begins with the GPU's memory free and accelerate's state new."""
    yield
    fresh_state()


def fresh_state() -> None:
    """As at the start of a process: the first `PartialState` decides for a device, and trainers are full of cycles."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def gpu_recipe(recipe_for, device):
    """gpu_recipe(section={key: value}): as `recipe_for`, of a model that is worth a GPU's kernels, without dropout."""

    def build(**sections) -> dict:
        model = {
            "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "intermediate_size": 256, "max_position_embeddings": 128, "hidden_dropout": 0.0,
        }  # fmt: skip
        content = recipe_for(model=model, data={"block_size": 128})
        content["training"] |= {
            "max_steps": 40, "logging_steps": 1, "save_steps": 40, "eval_strategy": "no",
            "per_device_train_batch_size": 8, "use_cpu": device.type == "cpu",
        }  # fmt: skip
        for name, values in sections.items():
            content[name] = content.get(name, {}) | values
        return content

    return build


@pytest.fixture
def written(tmp_path):
    """written(content, "name"): the recipe as a file whose run goes into a folder of that name."""

    def write(content: dict, name: str) -> Path:
        content = content | {"training": content["training"] | {"output_dir": str(tmp_path / name)}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def trained(written):
    """trained(content, "name"): its trainer after training."""

    def run(content: dict, name: str):
        from mypt import build_trainer, load_recipe

        fresh_state()
        trainer = build_trainer(load_recipe(written(content, name)))
        try:
            trainer.train()
        finally:
            trainer.give_back()
        return trainer

    return run


def losses(trainer) -> list[float]:
    """The training loss of every step, nats per token."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
