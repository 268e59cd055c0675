"""The benchmark for GPUs runs all its code on a CPU, and ends where a side fails or hangs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.py"
NANOGPT = """
import torch

class GPTConfig:
    def __init__(self, block_size, vocab_size, n_layer, n_head, n_embd, dropout, bias):
        self.vocab_size, self.n_embd = vocab_size, n_embd

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def configure_optimizers(self, decay, rate, betas, device):
        return torch.optim.AdamW(self.parameters(), lr=rate, betas=betas, weight_decay=decay)

    def forward(self, ids, targets):
        logits = self.head(self.table(ids))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", found)  # its dataclass looks for itself there
    spec.loader.exec_module(found)
    return found


def test_sides_train_for_the_same_time_and_have_all_figures(bench, corpora, tmp_path, monkeypatch):
    """In this process: ours, a class of transformers, and a model with nanoGPT's interface."""
    (tmp_path / "model.py").write_text(NANOGPT)
    for side in ("ours_adamw", "hf_gpt2", "nanogpt"):
        told = json.dumps({"side": side, "name": side, "seconds": 0.05})
        args = bench.parse(["--shape", "tiny", "--work", str(tmp_path), "--nanogpt", str(tmp_path), "--no-compile",
                            "--child", told])  # fmt: skip
        args.data = corpora / "general"
        monkeypatch.setattr(sys, "path", [*sys.path])
        found = bench.child(args)
        assert json.loads((tmp_path / f"{side}.json").read_text()) == found
        assert found["seconds"] >= 0.05 and found["tokens"] >= 11 * 4 * 32
        assert 0 < found["mfu"] < 1 and 0 < found["loss"] < 8 and found["parameters"] > 10_000
    sys.modules.pop("model", None)


def test_both_sides_of_a_shape_have_its_parameters(bench):
    """Those of Qwen3-0.6B and of GPT-2 small, by our arithmetic and by transformers' classes."""
    import torch

    from mypt.planning.parameters import count_parameters

    for shape, side, expected in (("gpt2", "hf_gpt2", 124_475_904), ("qwen3", "hf_qwen3", 596_049_920)):
        with torch.device("meta"):
            model = bench.hf_model(side, bench.SHAPES[shape])
        ours = count_parameters(bench.dimensions(bench.SHAPES[shape]))["total"]
        assert ours == model.num_parameters() == expected


def test_a_side_that_fails_or_hangs_is_one_line(bench, tmp_path):
    args = bench.parse(["--shape", "tiny", "--work", str(tmp_path), "--no-compile"])
    found = bench.measure(args, "tiny", "ours", 1.0, limit=0.01)
    assert "did not end within" in found["error"]
    args.data.mkdir()
    assert "error" in bench.measure(args, "tiny", "hf_gpt2", 1.0, limit=60)


@pytest.mark.slow
def test_the_whole_script(tmp_path):
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--sides", "ours", "hf_llama", "hf_qwen3", "--seconds", "0.2",
               "--no-compile", "--work", tmp_path, "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert {*report["shapes"]["tiny"]} == {"ours", "hf_llama", "hf_qwen3"}
    assert {*report["ratios"]["tiny"]} == {"ours / hf_llama", "ours / hf_qwen3"}
    assert report["machine"]["cpu"] and report["versions"]["torch"]
