"""Two real processes (gloo) decide as one: ignored labels, a NaN step, a signal, a damaged checkpoint, a full disk."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mypt.checkpoints.complete import what_is_missing
from mypt.recipe import parse_recipe
from mypt.training.build import build_trainer
from mypt.training.run import train
from tests.processes import launch

SCRIPT = Path(__file__).with_name("two_processes.py")
specification = importlib.util.spec_from_file_location("two_processes", SCRIPT)
two_processes = importlib.util.module_from_spec(specification)
specification.loader.exec_module(two_processes)


def largest_difference(left: dict, right: dict) -> float:
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_two_processes_decide_as_one(recipe_for, weights, rewind, tmp_path):
    content = recipe_for(model={"hidden_dropout": 0.0})
    content["training"]["logging_steps"] = 1
    whole = train(parse_recipe(content))
    flip_a_bit(rewind(whole, tmp_path / "resumed", 8) / "checkpoint-8" / "optimizer.pt")  # both go back to step 4
    for name in ("resumed", "skipped", "stopped"):
        content["training"] |= {"output_dir": str(tmp_path / name), "per_device_train_batch_size": 2}
        content["safety"] = {"on_nan": "skip" if name == "skipped" else "stop"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    launch("cpu_2.yaml", tmp_path, script=SCRIPT)

    # Ranks with 15 + 3 and 0 + 9 targets weigh by targets, not by rank.
    losses, gradients = two_processes.ignored_labels(tmp_path / "alone")
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(losses, abs=1e-6)
    assert largest_difference(gradients, load_file(tmp_path / "gradients.safetensors")) < 1e-6

    # Begun by one process, gone on with by two.
    assert largest_difference(weights(whole), weights(tmp_path / "resumed" / "checkpoint-12")) < 1e-5
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole, tmp_path / "resumed")]
    steps = [[entry["loss"] for entry in map(json.loads, lines) if "loss" in entry] for lines in logs]
    assert len(steps[0]) == 12 and steps[0] == pytest.approx(steps[1], abs=1e-5)

    # The sample that is no number was rank 1's; both left that step out.
    content["training"] |= {"output_dir": str(tmp_path / "alone"), "per_device_train_batch_size": 4}
    content["safety"] = {"on_nan": "skip"}
    trainer = build_trainer(parse_recipe(content))
    two_processes.poison(trainer)
    trainer.train()
    assert largest_difference(weights(tmp_path / "alone" / "checkpoint-12"),
                              weights(tmp_path / "skipped" / "checkpoint-12")) < 1e-5  # fmt: skip
    ledgers = [json.loads((tmp_path / name / "coverage.json").read_text()) for name in ("alone", "skipped")]
    assert ledgers[0]["events"] == ledgers[1]["events"] and len(ledgers[0]["events"]) == 1

    # The full disk was rank 0's; both say so, and what was begun is gone.
    for rank in range(2):
        for told in json.loads((tmp_path / f"full_{rank}.json").read_text()):
            assert "no room on the disk to save step 13" in told
    assert not (tmp_path / "skipped" / "checkpoint-13").exists()

    # The signal was rank 1's; both stopped after the same step, one of them said so.
    exits = [json.loads((tmp_path / f"exit_{rank}.json").read_text()) for rank in range(2)]
    assert [code for code, _ in exits] == [128 + 15] * 2
    assert "stopped by SIGTERM after step 6 of 12" in exits[0][1] and exits[1][1] == "143"
    checkpoint = tmp_path / "stopped" / "checkpoint-6"
    assert what_is_missing(checkpoint) is None
    (checkpoint / "rng_state_1.pth").unlink()
    assert "rng_state_1.pth" in what_is_missing(checkpoint)
    assert not torch.equal(weights(whole)["model.norm.weight"], weights(checkpoint)["model.norm.weight"])
