"""FLOPs against torch's own counter, which watches every matrix product of a real forward and backward pass."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config, preset_dimensions
from mypt.planning.evaluation_budget import training_passes
from mypt.planning.parameters import lora_parameters
from mypt.planning.scaling import flops_per_token as planned
from mypt.training.model.flops import flops_per_token, parameter_size

BATCH, LENGTH = 2, 32
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 128, "max_position_embeddings": LENGTH,
}  # fmt: skip


def mypt(preset="modern-nano", **changes) -> MyPTForCausalLM:
    return MyPTForCausalLM(preset_config(preset, **SIZES | changes, attn_implementation="eager"))


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=96, n_embd=64, n_layer=4, n_head=4, n_positions=LENGTH, attn_implementation="eager")
    return GPT2LMHeadModel(config)


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager"))


def lora() -> torch.nn.Module:
    return get_peft_model(mypt(), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))


def frozen(layers: int, embeddings: bool = True) -> MyPTForCausalLM:
    model = mypt(tie_word_embeddings=False)
    for layer in model.model.layers[:layers]:
        layer.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(not embeddings)
    return model


def counted(model) -> float:
    """FLOPs per token that torch saw."""
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return counter.get_total_flops() / ids.numel()


MODELS = {
    "modern": mypt,
    "classic": lambda: mypt("small", num_key_value_heads=4),
    "untied": lambda: mypt(tie_word_embeddings=False),
    "gpt2": gpt2,
    "llama": llama,
    "lora": lora,
    "half frozen": lambda: frozen(2),
    "all but the head frozen": lambda: frozen(4),
    "frozen above a trained embedding": lambda: frozen(2, embeddings=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_rule_is_what_is_computed(name):
    """To 3%: norms and biases count in the rule, and the first layer's input needs no gradient."""
    model = MODELS[name]()
    assert flops_per_token(model, LENGTH) == pytest.approx(counted(model), rel=0.03)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("modern", {}),
        ("gpt2", {}),
        ("lora", {"lora": True}),
        ("half frozen", {"freeze_layers": 2, "freeze_embeddings": True}),
        ("frozen above a trained embedding", {"freeze_layers": 2}),
    ],
)
def test_an_evaluation_costs_the_share_that_its_plan_takes(name, settings):
    """One forward pass: to 2% without anything frozen; a head and adapters of a large rank weigh on a tiny model."""
    model = MODELS[name]()
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    ratio = flops_per_token(model, LENGTH) * ids.numel() / counter.get_total_flops()
    planned_ratio = training_passes(SIZES["num_hidden_layers"], **settings)
    assert ratio == pytest.approx(planned_ratio, rel=0.2 if settings else 0.02)


def test_a_trained_model_costs_what_was_planned():
    for preset in ("modern-nano", "small"):
        for tied in (True, False):
            changes = SIZES | {"tie_word_embeddings": tied}
            model = MyPTForCausalLM(preset_config(preset, **changes))
            assert flops_per_token(model, 32) == planned(preset_dimensions(preset) | changes, 32)


def test_weights_of_4_bits_count_as_the_numbers_that_they_pack():
    packed = type("Params4bit", (torch.nn.Parameter,), {})(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    assert parameter_size(packed) == 16


def test_attention_grows_with_the_length_and_nothing_else_does():
    model = mypt()
    assert flops_per_token(model, 64) - flops_per_token(model, 32) == 12 * 4 * 64 * 32


def test_a_plan_counts_adapters_as_training_does():
    model = lora()
    adapters = model.num_parameters(only_trainable=True)
    dimensions = preset_dimensions("modern-nano", **SIZES)
    assert lora_parameters(dimensions, 8) == adapters
    assert planned(dimensions, LENGTH, adapters) == flops_per_token(model, LENGTH)
