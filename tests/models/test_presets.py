"""Presets have the promised shapes and sizes, and changing one field keeps the others consistent."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from mypt import preset_config
from mypt.models.presets import PRESETS, preset_dimensions
from mypt.planning.parameters import count_parameters

CLASSIC = {
    "tiny": (4, 4, 192, 128),
    "small": (6, 6, 384, 256),
    "150M": (16, 12, 768, 256),
    "150M_1024": (16, 12, 768, 1024),
    "200M": (16, 14, 896, 256),
    "200M_1024": (16, 14, 896, 1024),
    "250M": (16, 16, 1024, 256),
    "250M_1024": (16, 16, 1024, 1024),
    "350M_1024": (24, 16, 1024, 1024),
    "500M_1024": (24, 16, 1280, 1024),
    "750M_1024": (24, 24, 1536, 1024),
}
MODERN = {
    "modern-nano": 5e6,
    "modern-tiny": 15e6,
    "modern-small": 50e6,
    "modern-medium": 150e6,
    "modern-large": 400e6,
    "modern-xlarge": 1e9,
}


def model_of(name: str):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(preset_config(name))


def test_the_classic_presets_are_the_originals():
    fields = ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")
    classic = {name: dims for name, dims in PRESETS.items() if dims["position_embedding_type"] == "learned"}
    assert {name: tuple(dims[field] for field in fields) for name, dims in classic.items()} == CLASSIC
    for dims in classic.values():
        assert (dims["vocab_size"], dims["intermediate_size"]) == (50304, 4 * dims["hidden_size"])
        assert dims["num_key_value_heads"] * dims["head_dim"] == dims["hidden_size"]
    assert model_of("small").num_parameters() == 30_062_592


@pytest.mark.parametrize("name", MODERN)
def test_a_modern_preset_is_as_large_as_it_says(name):
    assert model_of(name).num_parameters() == pytest.approx(MODERN[name], rel=0.1)
    dims = PRESETS[name]
    assert (dims["vocab_size"], dims["max_position_embeddings"], dims["head_dim"]) == (16000, 1024, 64)
    assert dims["hidden_size"] % 64 == dims["intermediate_size"] % 64 == 0
    assert dims["intermediate_size"] / dims["hidden_size"] == pytest.approx(8 / 3, rel=0.02)


def test_every_preset_is_classic_or_modern():
    assert list(PRESETS) == [*CLASSIC, *MODERN]


@pytest.mark.parametrize("name", PRESETS)
def test_the_planner_counts_what_the_model_has(name):
    model, counted = model_of(name), count_parameters(preset_dimensions(name))
    assert counted["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counted["embedding"] == model.model.embed_tokens.weight.numel()
    assert counted["mlp"] == sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n)
    assert counted["norms"] == sum(p.numel() for n, p in model.named_parameters() if "norm" in n)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete(name):
    dimensions, config = preset_dimensions(name), preset_config(name)
    assert {field: getattr(config, field) for field in dimensions} == dimensions
    assert config.rope_parameters == dimensions.get("rope_parameters")


def test_the_stock_classes_hold_the_weights_of_a_preset():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    dims = preset_dimensions("modern-medium")
    with torch.device("meta"):
        stock = Qwen3ForCausalLM(Qwen3Config(**dims, rms_norm_eps=dims["norm_eps"]))
    ours = model_of("modern-medium").state_dict()
    assert {name: weight.shape for name, weight in stock.state_dict().items()} == {
        name: weight.shape for name, weight in ours.items()
    }


def test_what_follows_from_a_changed_field_changes_with_it():
    wide = preset_dimensions("modern-tiny", hidden_size=768)
    assert (wide["head_dim"], wide["intermediate_size"], wide["num_key_value_heads"]) == (128, 2048, 3)
    more_heads = preset_dimensions("modern-tiny", num_attention_heads=8)
    assert (more_heads["head_dim"], more_heads["intermediate_size"], more_heads["num_key_value_heads"]) == (48, 1024, 8)
    explicit = preset_dimensions("modern-tiny", hidden_size=768, intermediate_size=100, head_dim=64)
    assert (explicit["head_dim"], explicit["intermediate_size"]) == (64, 100)
    assert preset_dimensions("small", mlp_gated=True)["intermediate_size"] == 1024
    assert preset_config("tiny", vocab_size=320, eos_token_id=3).eos_token_id == 3


def test_a_preset_is_not_changed_through_what_it_returned():
    preset_dimensions("modern-tiny")["rope_parameters"]["rope_theta"] = 1.0
    preset_config("modern-tiny").rope_parameters["rope_theta"] = 1.0
    assert PRESETS["modern-tiny"]["rope_parameters"]["rope_theta"] == 10_000.0


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean modern-tiny"):
        preset_dimensions("modern-tny")
    with pytest.raises(ValueError, match="presets: tiny, small"):
        preset_dimensions("zzz")
    with pytest.raises(ValueError, match="no field 'hiden_size'; did you mean hidden_size"):
        preset_config("tiny", hiden_size=3)


def test_values_that_do_not_fit_are_a_value_error_of_one_line():
    for overrides in ({"hidden_size": 100}, {"num_hidden_layers": 0}, {"hidden_act": "swish"},
                      {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            preset_config("modern-tiny", **overrides)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_attention_heads": 5},
        {"num_attention_heads": 500},
        {"hidden_size": 100, "num_attention_heads": 6},
        {"num_attention_heads": 6, "num_key_value_heads": 4},
        {"num_attention_heads": 6, "num_key_value_heads": 9},
        {"head_dim": 33},
    ],
)
def test_the_values_that_are_proposed_fit(overrides):
    with pytest.raises(ValueError) as caught:
        preset_dimensions("modern-tiny", **overrides)
    proposed = re.findall(r"(\w+)=(\d+)", str(caught.value))
    assert 1 <= len(proposed) <= 2
    for name, value in proposed:
        preset_config("modern-tiny", **overrides | {name: int(value)})
