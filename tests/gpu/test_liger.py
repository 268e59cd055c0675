"""Liger's kernels train a Llama as transformers' own code does."""

from importlib.util import find_spec

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mypt import load_tokenizer
from tests.gpu.conftest import losses

pytestmark = pytest.mark.gpu


@pytest.fixture
def llama(corpora, tmp_path):
    """A small Llama with random weights beside the tokenizer of the data."""
    tokenizer = load_tokenizer(corpora / "general")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=128, intermediate_size=256,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=128, tie_word_embeddings=True)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_liger_kernels_train_as_transformers_code(gpu_recipe, trained, device, llama, capsys):
    content = gpu_recipe(optimizer={"name": "adamw"}) | {"model": {"init_from": str(llama)}}
    content["training"] |= {"max_steps": 10, "use_liger_kernel": False}
    plain = losses(trained(content, "plain"))
    assert plain[-1] < plain[0] - 0.2
    if find_spec("liger_kernel") is None or device.type == "cpu":
        pytest.skip("the package liger-kernel is not installed, or there is no GPU for it")
    content["training"]["use_liger_kernel"] = True
    assert losses(trained(content, "liger")) == pytest.approx(plain, abs=5e-3)
    assert "Liger kernels: on" in capsys.readouterr().out
