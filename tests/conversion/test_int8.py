"""A folder of int8 weights loads by `from_pretrained` and computes with exactly the rounded weights."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from mypt.conversion.export import export_model
from mypt.errors import CheckpointError
from tests.conversion.models import TEXT, bpe_tokenizer, save_model

pytest.importorskip("torchao", reason="pip install 'mypt[int8]'")


def test_the_folder_loads_with_rounded_weights(tmp_path):
    tokenizer = bpe_tokenizer()
    folder = save_model(tmp_path / "model", tokenizer, "modern-nano", hidden_size=64, head_dim=32)
    report = export_model(folder, tmp_path / "out", format="int8", max_shard_size=60_000)
    assert max(report["differences"].values()) <= report["tolerance"] < 1e-4 * report["largest_logit"] + 1e-9
    assert report["greedy_equal"] and 0 < report["rounding"] < 1
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1  # in shards
    loaded, source = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    matrix, whole = loaded.model.layers[0].mlp.up_proj.weight, source.model.layers[0].mlp.up_proj.weight
    assert matrix.qdata.dtype == torch.int8
    # Each row has a scale of its own: 127 steps to its largest value.
    step = whole.abs().amax(1, keepdim=True) / 127
    assert ((matrix.dequantize() - whole).abs() <= 0.51 * step).all()
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    text = loaded.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
    assert text.shape[1] == ids.shape[1] + 8
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "torchao"
    )


def test_layers_that_torchao_leaves_alone_are_refused(tmp_path):
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "tiny")
    with pytest.raises(CheckpointError, match=r"int8 cannot express gpt2: .*--format gguf --dtype q8_0 can"):
        export_model(folder, tmp_path / "out", format="int8")
    assert not (tmp_path / "out").exists()
