"""bfloat16 and float16 learn what float32 learns on a CPU, from the same samples in the same order."""

import math
from pathlib import Path
from statistics import fmean

import pytest
import torch

from tests.gpu.conftest import losses

pytestmark = pytest.mark.gpu

LAST = 8  # steps whose mean loss is compared
FALL = 0.8  # nats per token that 40 steps must gain at least; float32 gains about 1.2
# Nats per token by which the mean of the last steps may differ from float32's on a CPU. float16's first steps may have
# no update, until its loss scale fits.
BOUNDS = {"float32": 0.005, "bf16": 0.03, "fp16": 0.15}


def in_precision(content: dict, name: str) -> dict:
    given = {"bf16": name == "bf16"} | ({"fp16": True} if name == "fp16" else {})
    return content | {"training": content["training"] | given}


@pytest.mark.parametrize("name", BOUNDS)
def test_training_learns_what_float32_learns_on_a_cpu(gpu_recipe, trained, device, name):
    if name == "fp16" and device.type == "cpu":
        pytest.skip("float16 needs a GPU")
    content = gpu_recipe()
    exact = content | {"hardware": {"attention": "eager", "matmul_precision": "highest"}}
    exact["training"] = content["training"] | {"use_cpu": True}
    expected = losses(trained(exact, "cpu"))
    trainer = trained(in_precision(content, name), name)
    found = losses(trainer)
    assert trainer.args.device.type == device.type
    assert len(found) == len(expected) == 40 and all(map(math.isfinite, found))
    assert fmean(found[:2]) - fmean(found[-LAST:]) >= FALL
    difference = fmean(found[-LAST:]) - fmean(expected[-LAST:])
    assert abs(difference) <= BOUNDS[name], f"{name} differs by {difference:+.4f} nats"
    if device.type == "cuda":
        assert next(trainer.model.parameters()).dtype == torch.float32, "weights stay float32"
        assert any(entry.get("throughput/memory_gib", 0) > 0 for entry in trainer.state.log_history)


def test_a_scaled_loss_saves_its_scale_and_goes_on_with_it(gpu_recipe, trained, written, device):
    if device.type == "cpu":
        pytest.skip("float16 needs a GPU")
    from mypt import build_trainer, load_recipe

    content = in_precision(gpu_recipe(training=gpu_recipe()["training"] | {"max_steps": 12, "save_steps": 6}), "fp16")
    trainer = trained(content, "scaled")
    scale = trainer.accelerator.scaler.get_scale()
    assert math.isfinite(scale) and scale >= 1
    saved = torch.load(Path(trainer.args.output_dir, "checkpoint-12", "scaler.pt"), weights_only=True)
    assert saved["scale"] == scale
    content["training"]["max_steps"] = 16
    again = build_trainer(load_recipe(written(content, "scaled")), resume=True)
    again.train(resume_from_checkpoint=again.checkpoint)
    again.give_back()
    assert again.state.global_step == 16
    assert again.accelerator.scaler.get_scale() <= scale, "a new scaler begins at 65,536"
