"""The same numbers in MyPT's words and in those of GPT-2, Llama, Mistral, Qwen2 and Qwen3."""

import copy
from typing import get_args

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mypt import MyPTConfig, MyPTForCausalLM, preset_config
from mypt.conversion.families import (
    ACTIVATIONS,
    TARGETS,
    added_biases,
    choose_target,
    family_fields,
    mypt_fields,
    obstacles,
    unexpressed,
)
from mypt.conversion.weights import family_weights, from_mypt, mypt_weights, to_mypt
from mypt.errors import CheckpointError

ROTARY = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
GPT2 |= {"eos_token_id": 2}
STOCK = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT2)),
    "gpt2-untied": (
        GPT2LMHeadModel,
        GPT2Config(**GPT2, n_inner=72, activation_function="relu", tie_word_embeddings=False),
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**ROTARY)),
    "llama-biases": (
        LlamaForCausalLM,
        LlamaConfig(**ROTARY, attention_bias=True, mlp_bias=True, head_dim=16, tie_word_embeddings=True),
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**ROTARY, sliding_window=None, rms_norm_eps=1e-5)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**ROTARY)),
    "qwen2-window-off": (Qwen2ForCausalLM, Qwen2Config(**ROTARY, use_sliding_window=False, sliding_window=32)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**ROTARY, head_dim=16, tie_word_embeddings=True)),
    "qwen3-biases": (Qwen3ForCausalLM, Qwen3Config(**ROTARY, head_dim=8, attention_bias=True)),
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 500.0}
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 300.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "yarn": YARN,
    "yarn-knobs": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32, "rope_theta": 1e4},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0], "factor": 2.0,
                 "long_factor": [2.0] * 6, "original_max_position_embeddings": 32, "rope_theta": 1e4},
}  # fmt: skip


def scrambled(model):
    """The model with every parameter moved, biases and norms too, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def stock(name):
    model_class, config = STOCK[name]
    return scrambled(model_class(copy.deepcopy(config)))


def ids(length=40, rows=3):
    return torch.randint(101, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, given=None, **inputs):
    return model(ids() if given is None else given, **inputs).logits


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_model_and_its_mypt_form_have_equal_logits(name):
    model = stock(name)
    ours = to_mypt(model)
    assert type(ours) is MyPTForCausalLM and not ours.training
    assert torch.equal(logits(model), logits(ours))


@pytest.mark.parametrize("name", STOCK)
def test_left_padding_and_cached_chunks_agree_too(name):
    model, given = stock(name), ids()
    ours, mask = to_mypt(model), torch.ones_like(given)
    mask[1, :13] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    padded = [logits(m, attention_mask=mask, position_ids=places)[mask.bool()] for m in (model, ours)]
    assert torch.equal(*padded)
    with torch.no_grad():
        first = ours(given[:, :17], use_cache=True)
        rest = ours(given[:, 17:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", STOCK)
def test_there_and_back_gives_the_same_bits(name):
    model = stock(name)
    target = "llama" if name == "mistral" else model.config.model_type
    assert choose_target(to_mypt(model).config.to_dict()) == target
    back = from_mypt(to_mypt(model), target)
    before, after = model.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(logits(model), logits(back))
    if name not in ("mistral", "qwen2-window-off"):
        changed = {"dtype", "architectures", "transformers_version", "n_inner", "torch_dtype"}
        one, two = (m.config.to_dict() for m in (model, back))
        assert {k: v for k, v in one.items() if k not in changed} == {k: v for k, v in two.items() if k not in changed}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("length", [20, 60])
def test_every_way_of_rotating_carries_over(rope, length):
    """Within the trained length and beyond it; `dynamic` and `longrope` change their frequencies on the way."""
    sizes = ROTARY | {"max_position_embeddings": 32 if rope["rope_type"] == "dynamic" else 64}
    model = scrambled(LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=dict(rope))))
    ours = to_mypt(model)
    assert ours.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(model, ids(length)), logits(ours, ids(length)))
    assert from_mypt(ours, "llama").config.rope_parameters == model.config.rope_parameters


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MistralConfig(**ROTARY, sliding_window=16), "sliding_window 16"),
        (Qwen2Config(**ROTARY, use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_window 8"),
        (LlamaConfig(**ROTARY, partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
        (LlamaConfig(**ROTARY, hidden_act="gelu_fast"), "hidden_act gelu_fast"),
        (GPT2Config(**GPT2, activation_function="quick_gelu"), "activation_function quick_gelu"),
        (GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx True"),
        (GPT2Config(**GPT2, scale_attn_weights=False), "scale_attn_weights False"),
        (GPT2Config(**GPT2, reorder_and_upcast_attn=True), "reorder_and_upcast_attn True"),
        (GPT2Config(**GPT2, embd_pdrop=0.0), "embd_pdrop 0.0 beside resid_pdrop 0.1"),
        (GemmaConfig(), "model_type gemma"),
    ],
)  # fmt: skip
def test_what_mypt_cannot_compute_is_named(config, named):
    assert obstacles(config.to_dict()) == [named]
    with pytest.raises(CheckpointError, match=named.replace("(", r"\(")):
        mypt_fields(config.to_dict())


def test_the_activations_are_the_model_s():
    assert get_args(MyPTConfig.__annotations__["hidden_act"]) == ACTIVATIONS


def test_a_quantized_model_is_left_alone():
    assert obstacles(LlamaConfig(**ROTARY).to_dict() | {"quantization_config": {"bits": 4}}) == ["quantization_config"]


def test_a_family_s_dropouts_carry_over():
    fields = mypt_fields(GPT2Config(**GPT2, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.3).to_dict())
    assert (fields["hidden_dropout"], fields["attention_dropout"]) == (0.2, 0.3)
    back = family_fields(MyPTConfig(**fields).to_dict(), "gpt2")
    assert (back["resid_pdrop"], back["embd_pdrop"], back["attn_pdrop"]) == (0.2, 0.2, 0.3)


@pytest.mark.parametrize(
    ("preset", "changes", "lacks"),
    [
        ("modern-nano", {}, {"llama": ["qk_norm True"], "qwen3": []}),
        ("modern-nano", {"qk_norm": False}, {"llama": [], "qwen3": ["qk_norm False"]}),
        ("modern-nano", {"qk_norm": False, "norm_type": "layernorm"}, {"llama": ["norm_type layernorm"]}),
        ("modern-nano", {"mlp_gated": False, "hidden_act": "relu2"}, {"qwen3": ["mlp_gated False"]}),
        ("modern-nano", {"lm_head_bias": True}, {"qwen3": ["lm_head_bias True"]}),
        ("modern-nano", {"mlp_bias": True}, {"qwen3": ["mlp_bias true"]}),
        ("tiny", {}, {"gpt2": [], "llama": ["position_embedding_type learned", "norm_type layernorm",
                                            "mlp_gated False"]}),
        ("tiny", {"lm_head_bias": True}, {"gpt2": ["lm_head_bias True"]}),
        ("tiny", {"num_key_value_heads": 2}, {"gpt2": ["num_key_value_heads 2 beside 4 num_attention_heads"]}),
        ("tiny", {"head_dim": 32}, {"gpt2": ["head_dim 32, 4 of which are not hidden_size 192"]}),
    ],
)  # fmt: skip
def test_what_a_target_cannot_express_is_named(preset, changes, lacks):
    config = preset_config(preset, **changes).to_dict()
    assert {target: unexpressed(config, target) for target in lacks} == lacks
    for target, fields in lacks.items():
        if fields:
            others = [other for other in TARGETS if not unexpressed(config, other)]
            advice = f"--to {others[0]} can" if others else "no other target can"
            with pytest.raises(CheckpointError, match=f"{target} cannot express {fields[0]}.*{advice}"):
                family_fields(config, target)


def test_auto_takes_the_target_that_adds_least():
    for preset, target in (("tiny", "gpt2"), ("modern-nano", "qwen3")):
        assert choose_target(preset_config(preset).to_dict()) == target
    plain = preset_config("modern-nano", qk_norm=False).to_dict()
    assert choose_target(plain) == "llama"
    assert choose_target(plain | {"attention_bias": True}) == "qwen2"  # a Llama would need one on the output, too
    with pytest.raises(CheckpointError, match=r"no stock architecture.*gpt2: .*llama: lm_head_bias True"):
        choose_target(plain | {"lm_head_bias": True})


@pytest.mark.parametrize(("preset", "target"), [("tiny", "gpt2"), ("modern-nano", "llama")])
def test_biases_that_only_the_target_has_are_zeros(preset, target):
    has = {"attention_bias": True, "attention_output_bias": False, "mlp_bias": False, "qk_norm": False}
    ours = scrambled(MyPTForCausalLM(preset_config(preset, vocab_size=101, num_hidden_layers=2, **has)))
    theirs = from_mypt(ours, target)
    assert "attention_output_bias" in added_biases(ours.config.to_dict(), target)
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-6, rtol=1e-6)


def test_weights_are_renamed_without_being_held_or_changed():
    """On the meta device there is nothing to hold; on a real one a Llama's tensors stay where they are."""
    config = GPT2Config(**GPT2)
    with torch.device("meta"):
        weights = GPT2LMHeadModel(config).state_dict()
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    ours = MyPTConfig(**mypt_fields(config.to_dict()))
    renamed = mypt_weights(weights, "gpt2")
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in MyPTForCausalLM(ours).state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
    back = family_weights(renamed, ours.to_dict(), "gpt2")
    assert {name: tensor.shape for name, tensor in back.items()} == shapes
    assert all(tensor.is_meta for tensor in (*renamed.values(), *back.values()))

    llama = stock("llama")
    assert to_mypt(llama).model.norm.weight.data_ptr() == llama.model.norm.weight.data_ptr()


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(CheckpointError, match=r"gpt2 has no tensor transformer\.h\.0\.attn\.q_norm\.weight"):
        mypt_weights({"transformer.h.0.attn.q_norm.weight": torch.ones(4)}, "gpt2")


def test_how_a_model_generates_stays_with_it(tmp_path):
    model = stock("llama")
    model.generation_config.update(eos_token_id=[2, 5], temperature=0.7, do_sample=True)
    ours = to_mypt(model)
    ours.generation_config.suppress_tokens = [99, 100]
    from_mypt(ours, "llama").save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (loaded.eos_token_id, loaded.temperature, loaded.suppress_tokens) == ([2, 5], 0.7, [99, 100])
