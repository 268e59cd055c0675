"""Parameter counts against numbers worked by hand and against the models themselves."""

import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mypt.conversion.families import FAMILIES
from mypt.errors import MyPTError
from mypt.models.configuration_mypt import MyPTConfig
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import PRESETS, preset_dimensions
from mypt.planning.parameters import (
    FIELDS,
    FORMULAS,
    adapted,
    complete,
    count_parameters,
    dimensions_of,
    hidden_matrices,
    lora_parameters,
    parameters_per_layer,
)

SMALL = {"num_hidden_layers": 2, "vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4}


def test_gpt2_by_hand():
    gpt2 = preset_dimensions("150M_1024", vocab_size=50_257, num_hidden_layers=12)
    counts = count_parameters(gpt2)
    assert counts["embedding"] == 50_257 * 768
    assert counts["positions"] == 1_024 * 768
    assert counts["attention"] == 12 * (4 * 768 * 768 + 4 * 768)
    assert counts["mlp"] == 12 * (2 * 768 * 3_072 + 3_072 + 768)
    assert counts["norms"] == 25 * 2 * 768
    assert (counts["head"], counts["total"]) == (0, 124_439_808)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"num_key_value_heads": 2, "head_dim": 32},
        {"qk_norm": False, "tie_word_embeddings": False, "lm_head_bias": True},
        {"mlp_gated": False, "mlp_bias": True, "attention_bias": True, "num_key_value_heads": 1},
        {"mlp_bias": True, "attention_output_bias": True, "tie_word_embeddings": True, "lm_head_bias": True},
        {"position_embedding_type": "learned", "norm_type": "layernorm", "max_position_embeddings": 48},
    ],
)
def test_counts_are_those_of_the_model(switches):
    config = MyPTConfig(**SMALL, **switches)
    with torch.device("meta"):
        model = MyPTForCausalLM(config)
    counts = count_parameters(config.to_dict())
    assert counts["total"] == model.num_parameters()
    assert counts["non_embedding"] == model.num_parameters(exclude_embeddings=True)
    layers = [p.numel() for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    assert hidden_matrices(config.to_dict()) == sum(layers)
    parts = sum(count for name, count in counts.items() if name not in ("total", "non_embedding"))
    assert parts == counts["total"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_counted(name):
    assert count_parameters(PRESETS[name])["total"] > 1_000_000


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (GPT2Config(n_embd=64, n_head=4, n_layer=2, n_positions=32, vocab_size=96), GPT2LMHeadModel),
        (LlamaConfig(**SMALL, intermediate_size=80, num_key_value_heads=2), LlamaForCausalLM),
        (LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True), LlamaForCausalLM),
        (Qwen3Config(**SMALL, head_dim=32, num_key_value_heads=1), Qwen3ForCausalLM),
        (MyPTConfig(**SMALL, tie_word_embeddings=False), MyPTForCausalLM),
    ],
)
def test_a_saved_config_has_the_parameters_of_its_model(config, model_class):
    with torch.device("meta"):
        model = model_class(config)
    assert count_parameters(dimensions_of(config.to_diff_dict()))["total"] == model.num_parameters()


def test_missing_fields_are_named():
    for name in FIELDS:
        incomplete = {key: value for key, value in PRESETS["tiny"].items() if key != name}
        with pytest.raises(MyPTError, match=name):
            count_parameters(incomplete)


def test_every_family_that_mypt_can_be_converted_to_has_formulas():
    assert {*FORMULAS} == {"mypt", *FAMILIES}


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"model_type": "gpt2"}, {"model_type": "llama"}, {}])
def test_other_configs_are_refused(config):
    with pytest.raises(MyPTError):
        dimensions_of(config)


def test_random_configs_of_all_switches_have_the_parameters_of_their_models():
    draw = random.Random(4)
    switches = ("mlp_gated", "qk_norm", "attention_bias", "attention_output_bias", "mlp_bias", "lm_head_bias",
                "tie_word_embeddings")  # fmt: skip
    for _ in range(30):
        heads = draw.choice([2, 4])
        fields = {name: draw.random() < 0.5 for name in switches} | {
            "position_embedding_type": draw.choice(["rope", "learned"]),
            "norm_type": draw.choice(["rmsnorm", "layernorm"]),
            "num_key_value_heads": draw.choice([1, 2, heads]),
            "head_dim": draw.choice([8, 20]),
            "intermediate_size": draw.randrange(50, 90),
        }
        config = MyPTConfig(**SMALL | {"num_attention_heads": heads}, **fields)
        with torch.device("meta"):
            model = MyPTForCausalLM(config)
        assert count_parameters(config.to_dict())["total"] == model.num_parameters(), fields
        layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
        assert parameters_per_layer(config.to_dict())["total"] == layer


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("all-linear", None),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (["mlp.up_proj"], {"up_proj"}),
        (r".*\.(gate|down)_proj", {"gate_proj", "down_proj"}),
    ],
)
def test_adapters_are_those_that_peft_makes(targets, names):
    from peft import LoraConfig, get_peft_model

    config = MyPTConfig(**SMALL)
    model = get_peft_model(MyPTForCausalLM(config), LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"))
    assert lora_parameters(config.to_dict(), 3, targets) == model.num_parameters(only_trainable=True)
    if names:
        assert set(adapted(complete(config.to_dict()), targets)) == names


def test_a_target_that_finds_nothing_is_named():
    with pytest.raises(MyPTError, match="did you mean q_proj"):
        lora_parameters(MyPTConfig(**SMALL).to_dict(), 3, ["q_porj"])
