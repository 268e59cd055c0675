"""The attention of a run works with every kind of model and data, and a saved model does not remember it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mypt.checkpoints.probes import leaks_between_documents
from mypt.errors import RecipeError
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.planning.optimizer import Choice
from mypt.training.model.attention import choose_working_attention

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
         "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip


def mypt(**changes):
    return MyPTForCausalLM(preset_config("modern-nano", **(SIZES | changes)))


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes)))


def settle(model, *names, masked=False, automatic=True, compute="float32"):
    return choose_working_attention(model, [Choice(name, "why") for name in names], compute, masked, automatic)


@pytest.mark.parametrize("build", [mypt, llama])
@pytest.mark.parametrize("masked", [False, True])
def test_both_choices_of_a_cpu_compute_the_same(build, masked):
    torch.manual_seed(0)
    model = build().train()
    ids = torch.randint(0, 96, (2, 32))
    positions = torch.tensor([[*range(10), *range(22)], [*range(25), *range(7)]]) if masked else None
    losses, gradients = [], []
    for name in ("eager", "sdpa"):
        assert settle(model, name, masked=masked).value == model.config._attn_implementation == name
        assert not (masked and leaks_between_documents(model))
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, position_ids=positions, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_dropout_of_the_attention_weights_is_applied(name):
    torch.manual_seed(0)
    model = mypt(attention_dropout=0.5).train()
    settle(model, name, compute="bfloat16")
    ids = torch.arange(32)[None]
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (model(input_ids=ids, labels=ids).loss.item() for _ in range(2))
        model.eval()
        without = [model(input_ids=ids, labels=ids).loss.item() for _ in range(2)]
    assert first != second and without[0] == without[1]


def test_what_does_not_work_here_is_passed_over_with_the_reason(tmp_path):
    model = mypt()
    choice = settle(model, "flex_attention", "sdpa", "eager")
    assert choice.value == model.config._attn_implementation == "sdpa"
    assert "flex_attention does not work here: FlexAttention does not support backward on CPU" in choice.reason
    with pytest.raises(RecipeError, match=r"hardware.attention flash_attention_2 does not .*--hardware.attention=sdpa"):
        settle(model, "flash_attention_2", automatic=False)
    with pytest.raises(RecipeError, match="sees across the documents"):
        settle(model, "flash_attention_2", masked=True, automatic=False)


def test_a_model_that_cannot_keep_documents_apart_is_refused_with_every_attention():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    assert settle(gpt2, "eager").value == "eager"
    blind = mypt()
    blind.forward = lambda *args, position_ids=None, **kwargs: MyPTForCausalLM.forward(blind, *args, **kwargs)
    with pytest.raises(RecipeError, match=r"no attention of MyPTForCausalLM works; eager.*across.*; sdpa.*across"):
        settle(blind, "eager", "sdpa", masked=True)


def test_trying_leaves_no_gradient(tmp_path):
    model = mypt()
    settle(model, "flex_attention", "eager")
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("build", [mypt, llama])
def test_a_saved_model_does_not_remember_how_it_was_trained(build, tmp_path):
    model = build()
    settle(model, "eager")
    model.save_pretrained(tmp_path)
    assert not [key for key in json.loads((tmp_path / "config.json").read_text()) if "attn" in key]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
