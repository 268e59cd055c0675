"""kill -9 on one GPU, then the same command again: losses and weights are those of a run that was not interrupted."""

import json
import random

import pytest
import torch

from tests.gpu.conftest import ROOT
from tests.training.test_kill import start, wait_for

pytestmark = pytest.mark.gpu

STEPS, EVERY = {"cuda": 300, "cpu": 120}, 20  # a GPU takes a few milliseconds for each
# Plain products are deterministic as they are; the backward pass of fused attention adds up in an order that changes,
# unless torch is asked for deterministic algorithms.
WAYS = {
    "eager": ({"attention": "eager"}, {}),
    "sdpa": ({"attention": "sdpa"}, {"full_determinism": True}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_ends_with_the_same_losses_and_weights(gpu_recipe, written, weights, device, tmp_path, way):
    (hardware, settings), steps = WAYS[way], STEPS[device.type]
    content = gpu_recipe(hardware=hardware)
    content["training"] |= {"max_steps": steps, "save_steps": EVERY, "bf16": device.type == "cuda", **settings}
    content["model"]["hidden_dropout"] = 0.1  # the random state of the GPU is part of what is resumed
    options = {"env": {"PYTHONPATH": str(ROOT)}, "fresh": True}
    processes = [start(written(content, name), **options) for name in ("whole", "killed")]
    seed = random.randrange(2**32)
    moment = random.Random(seed).randrange(EVERY + 5, steps * 2 // 3)
    wait_for(tmp_path / "killed", moment, processes[1])
    processes[1].kill()
    assert processes[0].wait() == 0, processes[0].output()
    again = start(tmp_path / "killed.yaml", **options)
    assert again.wait() == 0, again.output()
    assert "resuming from" in again.output(), f"seed {seed}: it began anew"
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    unequal = [name for name in left if not torch.equal(left[name], right[name])]
    assert not unequal, f"seed {seed}, killed at step {moment}: {unequal}"
    assert logged(tmp_path / "whole") == logged(tmp_path / "killed"), f"seed {seed}"


def logged(run) -> dict[int, float]:
    """The loss of each step; of steps that were trained twice, the last."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
