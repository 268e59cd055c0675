"""Two processes hold a model together, split by tensor parallelism or as a pipeline, and compute what one computes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from mypt import MyPTConfig, MyPTForCausalLM
from tests.models.test_modeling_mypt import build, classic, ids, left_padded

BIASED = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True, "lm_head_bias": True}
# 129 rows do not divide by two processes.
MODELS = {
    "qwen": lambda: build(),
    "llama": lambda: build(qk_norm=False, vocab_size=129, tie_word_embeddings=False, **BIASED),
    "gpt": lambda: classic(max_position_embeddings=64),
}


@torch.no_grad()
def outputs(model) -> dict[str, torch.Tensor]:
    """Logits of a plain and of a left-padded batch, and greedy tokens."""
    padded = left_padded(2, 24, padding=5)
    real = padded["attention_mask"].bool()
    return {
        "plain": model(ids(2, 24)).logits,
        "padded": model(**padded).logits[real],
        "greedy": model.generate(ids(2, 10), max_new_tokens=10, do_sample=False, pad_token_id=0),
    }


def gradients(model) -> dict[str, torch.Tensor]:
    """The whole gradients after a step on one batch."""
    model.train()
    model(ids(2, 24), labels=ids(2, 24)).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in grads.items()}


def in_one_of_two(folder: str) -> None:
    """What each of the two processes runs; the first writes the largest differences to one process's outputs."""
    differences = {}
    for name in MODELS:
        path = f"{folder}/{name}"
        whole = AutoModelForCausalLM.from_pretrained(path).eval()
        for way in ("tp_size", "pp_size"):
            parts = AutoModelForCausalLM.from_pretrained(path, distributed_config=DistributedConfig(**{way: 2})).eval()
            expected, found = outputs(whole), outputs(parts)
            if way == "tp_size":
                expected, found = expected | gradients(whole), found | gradients(parts)
                whole.eval()
            assert expected.keys() == found.keys()
            differences[f"{name} {way}"] = max((expected[key] - found[key]).abs().max().item() for key in expected)
    if os.environ["RANK"] == "0":
        with open(f"{folder}/differences.json", "w") as file:
            json.dump(differences, file)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path):
    for name, make in MODELS.items():
        make().save_pretrained(tmp_path / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    code = "import sys\nfrom tests.models.test_parallel import in_one_of_two\nin_one_of_two(sys.argv[1])"
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=-1,
            text=True,
        )
        for rank in ("0", "1")
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert set(differences) == {f"{name} {way}" for name in MODELS for way in ("tp_size", "pp_size")}
    for run, difference in differences.items():
        print(f"{run}: largest difference {difference:.1e}")
        assert difference <= (0 if "pp" in run else 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_plans_name_modules_of_the_model(name):
    """Every matrix of a layer is split, and no rule is left without a module."""
    model = MODELS[name]()
    modules = {part.replace(".0", ".*").replace(".1", ".*") for part, _ in model.named_modules()}
    assert set(model.tp_plan) <= modules
    assert set(model.pp_plan) <= modules
    matrices = {part.replace(".0", ".*") for part, _ in model.model.layers[0].named_modules(prefix="model.layers.0")}
    assert {part for part in matrices if part.endswith("_proj")} <= set(model.tp_plan)
    assert model.tp_plan["model.embed_tokens"] == "embedding_rowwise"
    inputs, result = model.pp_plan["lm_head"]
    assert (inputs, result) == (["hidden_states"], ["logits"])


def test_the_plans_are_not_saved(tmp_path):
    MyPTForCausalLM(MyPTConfig(num_hidden_layers=1, vocab_size=64)).save_pretrained(tmp_path)
    assert "plan" not in (tmp_path / "config.json").read_text()
