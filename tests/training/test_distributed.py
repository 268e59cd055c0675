"""Two real processes (gloo, through accelerate launch and the shipped config) are one process with the same batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]


def launch(config: str, recipe: Path, *options: str) -> str:
    config_file = str(ROOT / "recipes" / "accelerate" / config)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file,
        "--main_process_port", "0", str(ROOT / "scripts" / "train.py"), str(recipe), *options,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluations(run: Path) -> list[dict]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: entry[key] for key in entry if key.endswith("_loss") or key == "loss"} for entry in entries[:-1]]


def test_two_processes_equal_one(recipe_for, weights, corpora, tmp_path):
    content = recipe_for(model={"hidden_dropout": 0.0})
    recipes = {}
    for name, batch in (("one", 4), ("two", 2), ("mixed", 4)):
        content["training"] |= {"output_dir": str(tmp_path / name), "per_device_train_batch_size": batch}
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(content))
    launch("cpu.yaml", recipes["one"], "--training.max_steps=8")
    launch("cpu_2.yaml", recipes["two"], "--training.max_steps=8")
    # begun by two processes, gone on with by one that takes the whole batch
    shutil.copytree(tmp_path / "two", tmp_path / "mixed")
    sources = f"--data.train={{{corpora / 'domain'}: 0.3, {corpora / 'general'}: 0.7}}"  # other weights: an event
    for name, config in (("one", "cpu.yaml"), ("two", "cpu_2.yaml"), ("mixed", "cpu.yaml")):
        printed = launch(config, recipes[name], "--resume", sources)
        assert ("world_size 2 -> 1" in printed) == (name == "mixed")
        assert "changed from step 8 on: weights" in printed

    one = weights(tmp_path / "one")
    for name in ("two", "mixed"):
        other = weights(tmp_path / name)
        assert max((one[key] - other[key]).abs().max().item() for key in one) < 1e-5
        for left, right in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / name), strict=True):
            assert left == pytest.approx(right, abs=1e-5)
        ledgers = [json.loads((tmp_path / run / "coverage.json").read_text()) for run in ("one", name)]
        assert ledgers[0]["seen"] == ledgers[1]["seen"]
        assert [seen["samples"] for seen in ledgers[1]["seen"]] == [24 + 5, 8 + 11]
        assert ledgers[0]["next_sample"] == ledgers[1]["next_sample"] == 48
    assert not torch.equal(one["model.norm.weight"], torch.ones_like(one["model.norm.weight"])), "nothing was trained"
