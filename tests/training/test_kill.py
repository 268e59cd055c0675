"""kill -9 at any moment, then the same command again: the final weights are those of an uninterrupted run."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from mypt.checkpoints.complete import what_is_missing


def start(recipe: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "mypt", "train", str(recipe), "--resume"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def wait_for(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has logged `step`, or has ended."""
    began = time.time()
    while process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and path.stat().st_mtime > began:  # written by this session
            lines = path.read_text().splitlines()
            if lines and lines[-1].endswith("}") and json.loads(lines[-1])["step"] >= step:
                return
        time.sleep(0.005)


def test_three_kills_and_one_after_the_last_save(recipe_for, weights, tmp_path):
    content = recipe_for()
    content["training"] |= {"max_steps": 240, "save_steps": 20, "eval_steps": 20, "logging_steps": 1}
    recipes = {}
    for name in ("whole", "killed"):
        content["training"]["output_dir"] = str(tmp_path / name)
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(content))
    whole = start(recipes["whole"])
    assert whole.wait() == 0, whole.stdout.read().decode()

    moments = sorted(random.SystemRandom().sample(range(5, 200), 3))
    for moment in moments:
        process = start(recipes["killed"])
        wait_for(tmp_path / "killed", moment, process)
        process.kill()
        process.wait()
    process = start(recipes["killed"])
    while process.poll() is None and what_is_missing(tmp_path / "killed" / "checkpoint-240"):
        time.sleep(0.002)
    process.kill()  # after the last save, before or while the final model is written
    process.wait()
    final = start(recipes["killed"])
    output = final.communicate()[0].decode()
    assert final.returncode == 0, f"killed at {moments}: {output}"

    left, right = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(left[name], right[name]) for name in left), f"killed at {moments}"
    ledgers = [json.loads((tmp_path / name / "coverage.json").read_text()) for name in ("whole", "killed")]
    assert ledgers[0] == ledgers[1] and ledgers[0]["next_sample"] == 240 * 4
    histories = [
        json.loads((tmp_path / name / "forgetting.json").read_text())["history"] for name in ("whole", "killed")
    ]
    assert histories[0] == histories[1]
    assert "already complete: step 240 of 240" in start(recipes["killed"]).communicate()[0].decode()
