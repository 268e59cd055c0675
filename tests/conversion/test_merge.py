"""A merged checkpoint computes what base and adapter compute, is an ordinary model, and appears whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from mypt import MyPTForCausalLM
from mypt.checkpoints.load import load_adapter, load_model
from mypt.conversion.merge import merge_adapter
from mypt.errors import CheckFailed, CheckpointError
from tests.checkpoints.test_adapter import IDS, adapter, base, save_adapter, save_mypt  # noqa: F401


@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_model_is_base_and_adapter(tied, tmp_path):
    save_mypt(tmp_path / "base", tie_word_embeddings=tied)
    save_adapter(tmp_path / "base", tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert 0 < report["difference"] <= 1e-5 * report["largest_logit"] and report["dtype"] == "float32"
    merged = load_model(tmp_path / "merged", device="cpu")
    assert type(merged) is MyPTForCausalLM
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")) != tied
    assert merged.num_parameters() == report["parameters"] == load_model(tmp_path / "base").num_parameters()
    with torch.no_grad():
        expected = load_adapter(tmp_path / "adapter", device="cpu")(input_ids=IDS).logits
        assert (merged(IDS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_by_hand(base, adapter, tmp_path):  # noqa: F811
    merge_adapter(adapter, tmp_path / "merged")
    before, after, small = (
        load_file(path) for path in (base / "model.safetensors", tmp_path / "merged" / "model.safetensors",
                                     adapter / "adapter_model.safetensors")
    )  # fmt: skip
    name = "model.layers.1.mlp.down_proj"
    a, b = (small[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    assert a.shape == (8, 32) and b.shape == (16, 8)
    assert torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 16 / 8 * b @ a, atol=1e-6)
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(after[name], before[name])


def test_transposed_matrices_of_gpt2(tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert type(load_model(tmp_path / "merged")) is GPT2LMHeadModel


def test_half_precision_stays_and_costs_what_rounding_costs(tmp_path):
    save_mypt(tmp_path / "float32")
    load_model(tmp_path / "float32", device="cpu").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert report["dtype"] == "bfloat16" and 1e-5 < report["difference"] < 0.05 * report["largest_logit"]
    assert load_model(tmp_path / "merged").dtype == torch.bfloat16


def test_tokenizer_and_provenance_go_along(base, adapter, tmp_path):  # noqa: F811
    from mypt.tokenization.load import load_tokenizer, tokenizer_hash
    from mypt.tokenization.train import build_char_tokenizer

    tokenizer = build_char_tokenizer("some text")
    tokenizer.save_pretrained(adapter)
    (adapter / "recipe.yaml").write_text("lora: {}\n")
    (adapter / "coverage.json").write_text("{}")
    (adapter / "optimizer.pt").write_text("no part of a model")
    merge_adapter(adapter, tmp_path / "merged")
    assert tokenizer_hash(load_tokenizer(tmp_path / "merged")) == tokenizer_hash(tokenizer)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "recipe.yaml", "coverage.json"} <= names
    assert not names & {"optimizer.pt", "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"}


def test_what_is_no_adapter_and_what_is_not_empty_is_refused(base, adapter, tmp_path):  # noqa: F811
    with pytest.raises(CheckpointError, match=r"holds no adapter \(adapter_config\.json\)"):
        merge_adapter(base, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="is not empty"):
        merge_adapter(adapter, base)
    (tmp_path / "merged").mkdir()
    merge_adapter(adapter, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="is not empty"):
        merge_adapter(adapter, tmp_path / "merged")


def test_what_overflows_is_not_kept(tmp_path):
    save_mypt(tmp_path / "float32")
    load_model(tmp_path / "float32", device="cpu").to(torch.float16).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "adapter", alpha=1e8)
    with pytest.raises(CheckFailed, match=r"merged, a logit differs by .*nothing is kept"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"float32", "base", "adapter"}


def test_embeddings_that_an_adapter_of_others_unties_are_saved_untied(base, tmp_path):  # noqa: F811
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = get_peft_model(load_model(base, device="cpu"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(2)
        expected = model.eval()(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "untied")
    merge_adapter(tmp_path / "untied", tmp_path / "merged")
    merged = load_model(tmp_path / "merged", device="cpu")
    assert not merged.config.tie_word_embeddings and merged.lm_head.weight is not merged.model.embed_tokens.weight
    with torch.no_grad():
        assert (merged(IDS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_moved_base_can_be_named(base, adapter, tmp_path):  # noqa: F811
    base.rename(tmp_path / "moved")
    report = merge_adapter(adapter, tmp_path / "merged", base=str(tmp_path / "moved"))
    assert json.loads(json.dumps(report))["base"] == str(tmp_path / "moved")
