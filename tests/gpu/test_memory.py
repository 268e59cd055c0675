"""What `mypt estimate` says of a step is what a GPU needs for it, and what a run out of memory advises then fits."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mypt.cli.main import main
from tests.gpu.conftest import ROOT

pytestmark = pytest.mark.gpu

# The peak may be so many times the estimate: docs/estimate.md has the same bounds, from steps on CPUs.
LEAST, MOST = 0.6, 1.2
# preset, sequences x tokens, and what else a recipe says. On a CPU only the commands run, with two layers of the first.
STEPS = {
    "modern-small, muon, bf16": ("modern-small", 8, 1024, {"optimizer": {"name": "muon"}, "training": {"bf16": True}}),
    "modern-small, adamw, float32": ("modern-small", 8, 1024, {"optimizer": {"name": "adamw"}}),
    "modern-small, adamw, bf16, checkpointing": (
        "modern-small", 16, 1024,
        {"optimizer": {"name": "adamw"}, "training": {"bf16": True, "activation_checkpointing": True}}),
    "modern-small, eager, bf16": (
        "modern-small", 8, 512, {"hardware": {"attention": "eager"}, "training": {"bf16": True}}),
    "classic 150M, adamw, bf16": ("150M_1024", 8, 1024, {"optimizer": {"name": "adamw"}, "training": {"bf16": True}}),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_the_estimate_is_near_the_peak(gpu_recipe, written, trained, device, capsys, name):
    preset, batch, length, sections = STEPS[name]
    content = gpu_recipe() | {"model": {"preset": preset, "vocab_size": 16_000}} | {"hardware": {"attention": "sdpa"}}
    if device.type == "cpu":
        batch, length = 2, 64
        content["model"] |= {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
        content["model"] |= {"num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128}
    for section, values in sections.items():
        content[section] = content.get(section, {}) | values
    content["data"] = content["data"] | {"block_size": length}
    content["training"] |= {"per_device_train_batch_size": batch, "max_steps": 3, "save_steps": 3}
    assert main(["estimate", str(written(content, "step")), "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    kind = {"cuda": "gpu", "cpu": "cpu"}[device.type]
    assert estimate["step"]["device"] == kind and estimate["step"]["micro_batch_size"] == batch
    before = start_measuring(device)
    trained(content, "step")
    if device.type == "cpu":
        pytest.skip("the commands ran; the peak of a CPU is measured by scripts/bench_memory.py")
    parts = estimate["memory"]["training"]
    measured, estimated = torch.cuda.max_memory_allocated() - before, parts["total"] - parts["framework"]
    words = f"{measured / 2**20:,.0f} MiB at the peak, {estimated / 2**20:,.0f} estimated ({parts['phase']})"
    print(f"{name}: {words}")
    assert LEAST <= measured / estimated <= MOST, words


def start_measuring(device) -> int:
    """A new high-water mark; the bytes that are allocated now."""
    if device.type == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def limited(recipe: Path, size: int, *options: str) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "limited.py"), str(recipe), str(size), *options]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=_environment(environment))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _environment(changes: dict) -> dict:
    import os

    return os.environ | changes


def test_what_a_run_out_of_memory_advises_then_fits(gpu_recipe, written, device):
    """The memory is nine tenths of what the step takes, so that the advice has to be a smaller micro-batch."""
    content = gpu_recipe()
    content["model"] |= {"vocab_size": 8_192}  # logits are most of what it needs
    batch = 256 if device.type == "cuda" else 64
    content["training"] |= {"max_steps": 1, "per_device_train_batch_size": batch, "save_steps": 1}
    whole = limited(written(content, "whole"), 0)["allocated"] if device.type == "cuda" else 1.2 * 2**30
    recipe = written(content, "little")
    size = int(0.9 * whole)
    refused = limited(recipe, size)["refused"]
    assert refused and refused.startswith("out of memory at step 0; a step needs"), refused
    pattern = r"--training\.per_device_train_batch_size=(\d+) --training\.gradient_accumulation_steps=(\d+)"
    advised = re.search(pattern, refused)
    assert advised, refused
    assert int(advised[1]) * int(advised[2]) == batch and int(advised[1]) < batch
    again = limited(recipe, size, *advised[0].split())
    assert again["refused"] is None, f"{size / 2**20:,.0f} MiB; {refused}; then: {again['refused']}"
