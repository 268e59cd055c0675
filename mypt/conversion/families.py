"""GPT-2, Llama, Mistral, Qwen2 and Qwen3 as corners of MyPT's configuration: the fields that each can express.

A config is the content of config.json here (`config.to_dict()`); nothing is changed in place, nothing heavy imported.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mypt.errors import CheckpointError

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2")  # MyPTConfig.hidden_act
BIASES = ("attention_bias", "attention_output_bias", "mlp_bias")
# Fields with one name and one meaning in MyPT and in transformers' own classes.
SHARED = ("vocab_size", "tie_word_embeddings", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Family:
    """One of transformers' architectures as a corner of MyPT's; a new one is an entry of FAMILIES.

    Attributes:
        names: MyPT's field -> the family's.
        fixed: Switches that the family cannot turn.
        biases: For each of BIASES the family's field, or what it always is.
        needs: Fields of its own, with the one value that MyPT knows.
        same: Fields of its own that must equal others of its own.
        tensors: Its modules, MyPT's that each holds (several: side by side), whether matrices are stored (in, out).
            Empty where the names are MyPT's, which are Llama's.
        windowed: A config that names a sliding window uses it, without a switch.
        whole_heads: Its config refuses a width that the heads do not divide, whatever head_dim is.
        is_target: An export can choose it.
    """

    names: dict[str, str]
    fixed: dict[str, Any]
    biases: tuple[str | bool, str | bool, str | bool]
    needs: dict[str, Any] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    tensors: tuple[tuple[str, tuple[str, ...], bool], ...] = ()
    windowed: bool = False
    whole_heads: bool = False
    is_target: bool = True


_NAMES = {
    "hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head", "max_position_embeddings": "n_positions", "hidden_act": "activation_function",
    "norm_eps": "layer_norm_epsilon", "attention_dropout": "attn_pdrop", "hidden_dropout": "resid_pdrop",
}  # fmt: skip
_ROTARY_NAMES = {
    name: name
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                 "num_key_value_heads", "max_position_embeddings", "rope_parameters", "attention_dropout")
} | {"norm_eps": "rms_norm_eps"}  # fmt: skip
_WIDE_NAMES = _ROTARY_NAMES | {"head_dim": "head_dim"}
_ROTARY = {"position_embedding_type": "rope", "norm_type": "rmsnorm", "mlp_gated": True, "lm_head_bias": False}
_LLAMA, _QWEN3 = _ROTARY | {"qk_norm": False}, _ROTARY | {"qk_norm": True}
_LAYER = "model.layers.{}."

FAMILIES = {
    "gpt2": Family(
        names=_NAMES,
        fixed={"position_embedding_type": "learned", "norm_type": "layernorm", "mlp_gated": False, "qk_norm": False,
               "lm_head_bias": False},
        biases=(True, True, True),
        needs={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
               "add_cross_attention": False},
        same={"embd_pdrop": "resid_pdrop"},
        tensors=(
            ("transformer.wte", ("model.embed_tokens",), False),
            ("transformer.wpe", ("model.embed_positions",), False),
            ("transformer.ln_f", ("model.norm",), False),
            ("transformer.h.{}.ln_1", (_LAYER + "input_layernorm",), False),
            ("transformer.h.{}.ln_2", (_LAYER + "post_attention_layernorm",), False),
            ("transformer.h.{}.attn.c_attn", tuple(f"{_LAYER}self_attn.{part}_proj" for part in "qkv"), True),
            ("transformer.h.{}.attn.c_proj", (_LAYER + "self_attn.o_proj",), True),
            ("transformer.h.{}.mlp.c_fc", (_LAYER + "mlp.up_proj",), True),
            ("transformer.h.{}.mlp.c_proj", (_LAYER + "mlp.down_proj",), True),
            ("lm_head", ("lm_head",), False),
        ),
    ),
    "llama": Family(_WIDE_NAMES, _LLAMA, ("attention_bias", "attention_bias", "mlp_bias"), whole_heads=True),
    # Its decoder is a Llama's, so nothing is exported to it.
    "mistral": Family(_WIDE_NAMES, _LLAMA, (False, False, False), windowed=True, is_target=False),
    "qwen2": Family(_ROTARY_NAMES, _LLAMA, (True, False, False)),
    "qwen3": Family(_WIDE_NAMES, _QWEN3, ("attention_bias", "attention_bias", False)),
}  # fmt: skip
TARGETS = tuple(name for name, family in FAMILIES.items() if family.is_target)


def obstacles(config: dict) -> list[str]:
    """List the fields of a model's config that MyPT cannot compute exactly; empty: it can be a MyPT model."""
    family = FAMILIES.get(config.get("model_type"))
    if family is None:
        return [f"model_type {config.get('model_type')}"]
    found = [
        f"{name} {config[name]}" for name, value in family.needs.items() if config.get(name, value) not in (value, None)
    ]
    activation = config.get(family.names["hidden_act"]) or "gelu_new"
    if activation not in ACTIVATIONS:
        found.append(f"{family.names['hidden_act']} {activation}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    partial = config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
    if partial != 1:
        found.append(f"partial_rotary_factor {partial:g}")
    if config.get("layer_types"):
        windows = set(config["layer_types"]) != {"full_attention"}
    else:
        windows = config.get("use_sliding_window", family.windowed) and config.get("sliding_window")
    if windows:
        found.append(f"sliding_window {config.get('sliding_window')}")
    for name, other in family.same.items():
        if config.get(name, 0.1) != config.get(other, 0.1):  # GPT-2's default
            found.append(f"{name} {config.get(name)} beside {other} {config.get(other)}")
    if config.get("quantization_config"):
        found.append("quantization_config")
    return found


def mypt_fields(config: dict) -> dict[str, Any]:
    """The MyPTConfig fields of a family's config. Raises CheckpointError that names what MyPT does not have."""
    if found := obstacles(config):
        raise CheckpointError(f"MyPT cannot express {', '.join(found)}; the model can only be used as it is")
    family = FAMILIES[config["model_type"]]
    fields = {name: config[name] for name in SHARED} | {ours: config[own] for ours, own in family.names.items()}
    fields |= family.fixed | {ours: config[rule] if isinstance(rule, str) else rule for ours, rule in _rules(family)}
    if fields["intermediate_size"] is None:  # GPT-2's default
        fields["intermediate_size"] = 4 * fields["hidden_size"]
    return copy.deepcopy(fields)


def unexpressed(config: dict, target: str) -> list[str]:
    """List the fields of a MyPT config that a target cannot express; empty: the target computes the same."""
    family = FAMILIES[target]
    found = [f"{name} {config[name]}" for name, value in family.fixed.items() if config[name] != value]
    found += [f"{name} true" for name, rule in _rules(family) if rule is False and config[name]]
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if "num_key_value_heads" not in family.names and config["num_key_value_heads"] != heads:
        found.append(f"num_key_value_heads {config['num_key_value_heads']} beside {heads} num_attention_heads")
    if "head_dim" not in family.names and config["head_dim"] * heads != width:
        found.append(f"head_dim {config['head_dim']}, {heads} of which are not hidden_size {width}")
    elif family.whole_heads and width % heads:
        found.append(f"hidden_size {width}, no multiple of num_attention_heads {heads}")
    return found


def added_biases(config: dict, target: str) -> list[str]:
    """BIASES that a target has and this MyPT config does not: they are written as zeros."""
    has = _target_biases(config, FAMILIES[target])
    return [name for name in BIASES if has[name] and not config[name]]


def choose_target(config: dict, targets: Sequence[str] = TARGETS) -> str:
    """The one of `targets` that computes the same as a MyPT config, with the fewest parameters added.

    Raises CheckpointError that names, for each target, what it does not have.
    """
    able = [target for target in targets if not unexpressed(config, target)]
    if not able:
        reasons = "; ".join(f"{target}: {', '.join(unexpressed(config, target))}" for target in targets)
        raise CheckpointError(
            f"no stock architecture computes what this model does ({reasons}); load it with "
            "trust_remote_code=True instead, its code is in its folder"
        )
    return min(able, key=lambda target: len(added_biases(config, target)))


def family_fields(config: dict, target: str) -> dict[str, Any]:
    """The fields of a target's config for a MyPT config. Raises CheckpointError that names what the target lacks."""
    if found := unexpressed(config, target):
        others = [name for name in TARGETS if not unexpressed(config, name)]
        advice = f"--to {others[0]} can" if others else "no other target can"
        raise CheckpointError(f"{target} cannot express {', '.join(found)}; {advice}")
    family = FAMILIES[target]
    fields = {name: config[name] for name in SHARED} | {own: config[ours] for ours, own in family.names.items()}
    has = _target_biases(config, family)
    fields |= {rule: has[ours] for ours, rule in _rules(family) if isinstance(rule, str)}
    fields |= {name: fields[other] for name, other in family.same.items()}
    return copy.deepcopy(fields)


def _rules(family: Family) -> Iterator[tuple[str, str | bool]]:
    return zip(BIASES, family.biases, strict=True)


def _target_biases(config: dict, family: Family) -> dict[str, bool]:
    """BIASES as the target will have them: fields that share a switch are on together."""
    wanted = {rule: any(config[ours] for ours, r in _rules(family) if r == rule) for rule in family.biases}
    return {ours: wanted[rule] if isinstance(rule, str) else rule for ours, rule in _rules(family)}
