"""The model class has what vLLM's transformers backend asks for (its docs, "Writing custom models", v0.32).

vLLM itself needs a GPU build; these tests run the model as its backend does: `AutoModel.from_config` with an attention
function of its own, all sequences of a batch side by side in one row, no cache, no mask.
"""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoModel

from mypt import MyPTForCausalLM, preset_config

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 32}
MODELS = {"tiny": {}, "modern-nano": {"num_key_value_heads": 1, "head_dim": 16}}
LENGTHS = (5, 9)


def attend_side_by_side(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
    """vLLM's attention in torch: each sequence of the row by itself, causal; by the instance of this layer."""
    assert attention_mask is None
    attention_instances[module.layer_idx].append(scaling)
    parts = [
        nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in zip(*(states.split(LENGTHS, dim=2) for states in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


@pytest.mark.parametrize("preset", MODELS)
def test_the_base_model_computes_with_the_attention_of_vllm(preset):
    AttentionInterface.register("side_by_side", attend_side_by_side)
    config = preset_config(preset, vocab_size=64, **SIZES | MODELS[preset])
    torch.manual_seed(0)
    whole = AutoModel.from_config(config).eval()
    config = copy.deepcopy(config)
    config._attn_implementation = "side_by_side"
    base = AutoModel.from_config(config).eval()
    base.load_state_dict(whole.state_dict())
    ids = torch.randint(64, (1, sum(LENGTHS)))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    instances = {index: [] for index in range(config.num_hidden_layers)}
    with torch.no_grad():
        found = base(
            input_ids=ids, use_cache=False, position_ids=positions, attention_instances=instances, return_dict=False
        )[0]
        expected = [whole(part).last_hidden_state for part in ids.split(LENGTHS, dim=1)]
    assert torch.allclose(found, torch.cat(expected, 1), atol=1e-5)
    assert set(map(tuple, instances.values())) == {(config.head_dim**-0.5,)}  # every layer, once


@pytest.mark.parametrize("preset", MODELS)
def test_a_saved_model_has_what_vllm_reads(preset, tmp_path):
    model = MyPTForCausalLM(preset_config(preset, vocab_size=64, **SIZES | MODELS[preset]))
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["auto_map"]["AutoModel"] == "modeling_mypt.MyPTModel"
    base = model.model
    assert base.is_backend_compatible() and base.base_model_prefix == "model"
    # Every linear layer of the plan is split by columns or by rows; the names of a pipeline are children in order.
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    styles = {name: style for name, style in base.config.base_model_tp_plan.items() if "norm" not in name}
    assert {name.replace(".0.", ".*.") for name in linear if ".0." in name} == styles.keys()
    assert set(styles.values()) == {"colwise", "rowwise"}
    children = [name for name, _ in base.named_children()]
    planned = [name for name in children if name in base.config.base_model_pp_plan]
    assert planned == list(base.config.base_model_pp_plan) == ["embed_tokens", "layers", "norm"]
