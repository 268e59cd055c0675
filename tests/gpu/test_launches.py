"""One process under DDP and under FSDP2, by the shipped configs and NCCL, is a process without a launcher."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import ROOT, fresh_state

pytestmark = pytest.mark.gpu

# config on a GPU, on a CPU; what the script must have met
LAUNCHES = {"ddp": ("ddp.yaml", "cpu_2.yaml"), "fsdp2": ("fsdp2.yaml", "fsdp2_cpu_2.yaml")}
CLOSE = 2e-5  # of a weight after 12 steps in float32, whose sums may be taken in another order

SCRIPT = """
import sys
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from mypt import build_trainer, load_recipe
from mypt.training.run import finish

class Tell(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        print(f"backend {torch.distributed.get_backend()}, {args.world_size} process, sharded {sharded}", flush=True)

trainer = build_trainer(load_recipe(sys.argv[1], sys.argv[2:]), resume=True)
trainer.add_callback(Tell())
finish(trainer)
"""


def launch(config: str, script: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
               str(ROOT / "recipes" / "accelerate" / config), "--num_processes", "1", "--main_process_port", "0",
               str(script), *arguments]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", LAUNCHES)
def test_one_launched_process_is_one_process_and_either_resumes_the_other(
    gpu_recipe, written, trained, weights, device, tmp_path, kind
):  # fmt: skip
    from mypt import load_recipe
    from mypt.training.run import train

    content = gpu_recipe(hardware={"attention": "eager", "matmul_precision": "highest"})
    content["training"] |= {"max_steps": 12, "save_steps": 6, "eval_strategy": "steps", "eval_steps": 6}
    recipes = {name: written(content, name) for name in ("alone", "launched")}
    train(load_recipe(recipes["alone"]))
    fresh_state()
    script = tmp_path / "tell.py"
    script.write_text(SCRIPT)
    config = LAUNCHES[kind][device.type == "cpu"]
    printed = launch(config, script, str(recipes["launched"]), "--training.max_steps=6")
    backend = {"cuda": "nccl", "cpu": "gloo"}[device.type]
    assert re.search(rf"backend \S*{backend}\S*, 1 process, sharded {kind == 'fsdp2'}", printed), printed
    printed = launch(config, script, str(recipes["launched"]))
    assert "resuming from" in printed
    left, right = weights(tmp_path / "alone"), weights(tmp_path / "launched")
    assert left.keys() == right.keys()
    furthest = max((left[name] - right[name]).abs().max().item() for name in left)
    assert furthest <= CLOSE, furthest
    readings = [
        {e["step"]: e["eval_domain_loss"] for e in map(json.loads, (tmp_path / name / "metrics.jsonl").open())
         if "eval_domain_loss" in e}
        for name in ("alone", "launched")
    ]  # fmt: skip
    assert readings[0] == pytest.approx(readings[1], abs=1e-4)
    assert (tmp_path / "launched" / "checkpoint-6" / "optimizer.pt").is_file()
    content["training"]["max_steps"] = 14
    train(load_recipe(written(content, "launched")), resume=True)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "launched").values())
