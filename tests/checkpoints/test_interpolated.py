"""W(alpha) is the sum by hand, in the adapted model's files; what cannot be paired is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mypt.checkpoints.adapter import save_base
from mypt.checkpoints.interpolated import interpolated_weights
from mypt.checkpoints.load import load_model
from mypt.errors import CheckpointError, TokenizerError
from mypt.tokenization.train import build_char_tokenizer
from tests.checkpoints.test_adapter import save_adapter, save_mypt

LLAMA = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}


def save_llama(folder, seed=0, dtype=torch.float32, **changed):
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**LLAMA | changed)).to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture
def pair(tmp_path):
    return save_llama(tmp_path / "base"), save_llama(tmp_path / "adapted", seed=1)


def written(base, adapted, alpha, out):
    out.mkdir(exist_ok=True)
    weights = interpolated_weights(base, adapted)
    weights.write(alpha, out)
    return weights


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0, 1.5])
def test_by_hand(alpha, pair, tmp_path):
    base, adapted = pair
    written(base, adapted, alpha, tmp_path / "out")
    first, second, between = map(tensors, (base, adapted, tmp_path / "out"))
    assert between.keys() == second.keys()
    for name in second:
        expected = first[name].double() + alpha * (second[name].double() - first[name].double())
        torch.testing.assert_close(between[name].double(), expected, rtol=0, atol=1e-7)
    if alpha == 1:
        files = [folder / "model.safetensors" for folder in (adapted, tmp_path / "out")]
        assert files[0].read_bytes() == files[1].read_bytes()
    if alpha == 0:
        assert all(torch.equal(between[name], first[name]) for name in second)


def test_files_of_a_large_model_stay_as_they_are_cut(pair, tmp_path):
    base, adapted = pair
    load_model(adapted).save_pretrained(tmp_path / "cut", max_shard_size="10KB")
    assert len(names := {path.name for path in (tmp_path / "cut").glob("model-*.safetensors")}) > 2
    written(base, adapted, 0.5, tmp_path / "whole")
    written(base, tmp_path / "cut", 0.5, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    whole, cut = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_sum_is_made_in_float32_and_rounded_once(pair, tmp_path):
    base = pair[0]
    half = save_llama(tmp_path / "half", seed=1, dtype=torch.bfloat16)
    written(base, half, 0.25, tmp_path / "out")
    for name, value in tensors(tmp_path / "out").items():
        first, second = tensors(base)[name], tensors(half)[name].float()
        assert torch.equal(value, torch.lerp(first, second, 0.25).bfloat16())


def test_rows_of_added_tokens_stay(pair, tmp_path):
    base, _ = pair
    adapted = save_llama(tmp_path / "larger", seed=1, vocab_size=48)
    weights = written(base, adapted, 0.5, tmp_path / "out")
    assert (weights.vocabulary, weights.shared_ids) == (48, 40)
    first, second, between = map(tensors, (base, adapted, tmp_path / "out"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(between[name][40:], second[name][40:])
        assert torch.allclose(between[name][:40], (first[name] + second[name][:40]) / 2)


def test_tokens_added_into_the_padding_stay_too(tmp_path):
    base = save_llama(tmp_path / "base", vocab_size=300)
    adapted = save_llama(tmp_path / "adapted", seed=1, vocab_size=300)
    build_char_tokenizer("abcdefg").save_pretrained(base)
    larger = build_char_tokenizer("abcdefg")
    known = len(larger)
    larger.add_tokens(["new"])
    larger.save_pretrained(adapted)
    assert known < 300 and interpolated_weights(base, adapted).shared_ids == known
    content = json.loads((adapted / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (adapted / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"different tokenizers: token .* is 0 in the base and 1 in the other"):
        interpolated_weights(base, adapted)


def test_a_base_whose_files_lack_the_first_part_of_the_names(tmp_path):
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "adapted")
    expected = written(tmp_path / "base", tmp_path / "adapted", 0.5, tmp_path / "out") and tensors(tmp_path / "out")
    plain = {name.removeprefix("transformer."): value for name, value in tensors(tmp_path / "base").items()}
    save_file(plain, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert all(name.startswith(("h.", "wte", "wpe", "ln_f")) for name in plain)
    written(tmp_path / "base", tmp_path / "adapted", 0.5, tmp_path / "out")
    assert all(torch.equal(value, expected[name]) for name, value in tensors(tmp_path / "out").items())


def test_an_adapter_is_scaled(tmp_path):
    base = tmp_path / "base"
    save_mypt(base)
    save_adapter(base, tmp_path / "adapter")
    weights = written(base, tmp_path / "adapter", 0.25, tmp_path / "out")
    before, after = tensors(tmp_path / "adapter"), tensors(tmp_path / "out")
    assert weights.partners and before.keys() == after.keys()
    for name in before:
        assert torch.equal(after[name], before[name] * (0.25 if ".lora_B." in name else 1))
        assert before[name].abs().max() > 0


def test_a_folder_that_is_not_the_base_is_named(pair, tmp_path):
    base, adapted = pair
    with pytest.raises(CheckpointError, match=r"was not trained from .*wide: .* is \[40, 16\] there and \[40, 32\]"):
        interpolated_weights(save_llama(tmp_path / "wide", hidden_size=32), adapted)
    with pytest.raises(CheckpointError, match=r"9 of 21 tensors are not there, model\.layers\.1"):
        interpolated_weights(save_llama(tmp_path / "short", num_hidden_layers=1), adapted)
    shutil.copytree(base, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="does not have the length"):
        interpolated_weights(tmp_path / "cut", adapted)
    with pytest.raises(CheckpointError, match="neither a folder nor in the hub's cache"):
        interpolated_weights(tmp_path / "nowhere", adapted)


def test_adapters_without_a_scale_and_of_another_base_are_refused(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_mypt(base)
    save_adapter(base, adapter)
    with pytest.raises(CheckpointError, match="is an adapter; merge it first"):
        interpolated_weights(adapter, base)
    save_base(adapter, str(base), "0" * 32)
    with pytest.raises(CheckpointError, match="was trained beside other weights"):
        interpolated_weights(base, adapter)
    (adapter / "adapter_base.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="is DoRA, whose change has no scale; merge it"):
        interpolated_weights(base, adapter)
