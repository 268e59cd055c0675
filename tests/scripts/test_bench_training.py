"""The benchmark of training runs both sides and compares them; its loss is exact, also where windows do not fit."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_training.py"


def module():
    spec = importlib.util.spec_from_file_location("bench_training", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_every_prediction_of_val_counts_once():
    """A model that is sure of the id after the one it sees: 0 nats on a text that counts, but for the ids that jump."""
    bench = module()
    val = torch.arange(150) % 10
    val[100] = 3  # two of 149 predictions: of it, and of what follows it

    def logits(inputs):
        return torch.nn.functional.one_hot((inputs + 1) % 10, 10).float() * 5

    sure, wrong = (math.log(math.exp(5) + 9) - right for right in (5, 0))
    assert math.isclose(bench.exact_loss(logits, val), (147 * sure + 2 * wrong) / 149, rel_tol=1e-6)


def test_characters_are_numbered_as_nanogpt_numbers_them():
    numbers, count = module().renumbered({"train": torch.tensor([97, 5, 98]), "val": torch.tensor([98, 7])})
    assert numbers["train"].tolist() == [2, 0, 3] and numbers["val"].tolist() == [3, 1] and count == 4


@pytest.mark.slow
def test_two_sides_and_a_short_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of a text of which a tenth is held out.\n" for i in range(300)))
    command = [sys.executable, SCRIPT, text, "--work", tmp_path / "w", "--plot", tmp_path / "plot.png", "--seeds", "1",
               "--sides", "hf_llama", "ours", "--steps", "22", "--short", "21"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert {"hf_llama", "ours"} <= rows.keys()
    assert "tokens per second, ours / hf_llama: " in done.stdout and "ours in 21 steps: " in done.stdout
    assert (tmp_path / "plot.png").stat().st_size > 1_000
    again = subprocess.run([*command, "--ours=--optimizer.momentum=0.8"], capture_output=True, text=True).stdout
    lines = [line for line in again.splitlines() if line.startswith("  seed")]
    assert [line.endswith("(done before)") for line in lines] == [True, False, False], again
