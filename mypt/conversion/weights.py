"""MyPT's decoder as one of transformers' own, and theirs as MyPT's: the same numbers by other names.

Weights are state dicts; nothing is changed in place, and tensors are shared where no transposition is needed: only
GPT-2's matrices are turned.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

from mypt.conversion.families import added_biases, family_fields, mypt_fields
from mypt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from mypt.models.modeling_mypt import MyPTForCausalLM

# Where GPT-2 keeps what MyPT names after Llama; the last column: matrices are stored (in, out).
_GPT2_NAMES = (
    ("transformer.wte", "model.embed_tokens", False),
    ("transformer.wpe", "model.embed_positions", False),
    ("transformer.ln_f", "model.norm", False),
    ("transformer.h.{}.ln_1", "model.layers.{}.input_layernorm", False),
    ("transformer.h.{}.ln_2", "model.layers.{}.post_attention_layernorm", False),
    ("transformer.h.{}.attn.c_proj", "model.layers.{}.self_attn.o_proj", True),
    ("transformer.h.{}.mlp.c_fc", "model.layers.{}.mlp.up_proj", True),
    ("transformer.h.{}.mlp.c_proj", "model.layers.{}.mlp.down_proj", True),
    ("lm_head", "lm_head", False),
)
_FUSED, _PARTS = "transformer.h.{}.attn.c_attn", "model.layers.{}.self_attn.{}_proj"


def mypt_weights(weights: dict[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """A family's state dict by MyPT's names. Raises CheckpointError for a tensor that the family does not have."""
    if model_type != "gpt2":
        return dict(weights)  # MyPT's names are Llama's
    table, renamed = {theirs: (ours, turned) for theirs, ours, turned in _GPT2_NAMES}, {}
    for name, tensor in weights.items():
        module, layer, kind = _split(name)
        if module == _FUSED:
            for part, piece in zip("qkv", _turned(tensor).chunk(3), strict=True):
                renamed[f"{_PARTS.format(layer, part)}.{kind}"] = piece.contiguous()
            continue
        if module not in table:
            raise CheckpointError(f"GPT-2 has no tensor {name}; the weights are of another architecture")
        ours, turned = table[module]
        renamed[f"{ours.format(layer)}.{kind}"] = _turned(tensor) if turned else tensor
    return renamed


def family_weights(weights: dict[str, Tensor], config: dict, target: str) -> dict[str, Tensor]:
    """The state dict of a MyPT model with this config by a target's names; biases that MyPT lacks are zeros."""
    weights = _with_biases(weights, config, target)
    if target != "gpt2":
        return weights
    import torch

    table, renamed = {ours: (theirs, turned) for theirs, ours, turned in _GPT2_NAMES}, {}
    for name, tensor in weights.items():
        module, layer, kind = _split(name)
        if module == _PARTS.format("{}", "q"):
            parts = [weights[f"{_PARTS.format(layer, part)}.{kind}"] for part in "qkv"]
            renamed[f"{_FUSED.format(layer)}.{kind}"] = _turned(torch.cat(parts))
        elif module in table:
            theirs, turned = table[module]
            renamed[f"{theirs.format(layer)}.{kind}"] = _turned(tensor) if turned else tensor
    return renamed


def _with_biases(weights: dict[str, Tensor], config: dict, target: str) -> dict[str, Tensor]:
    modules = {
        "attention_bias": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_output_bias": ("self_attn.o_proj",),
        "mlp_bias": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    }
    added, completed = added_biases(config, target), dict(weights)
    for name, tensor in weights.items():
        if name.endswith(tuple(f".{module}.weight" for bias in added for module in modules[bias])):
            completed[name.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    return completed


def _turned(tensor: Tensor) -> Tensor:
    """A matrix transposed; a vector as it is."""
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _split(name: str) -> tuple[str, str, str]:
    """transformer.h.3.ln_1.weight -> transformer.h.{}.ln_1, 3, weight."""
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    return (module.replace(layer[0], ".{}.", 1), layer[1], kind) if layer else (module, "", kind)


def to_mypt(model: PreTrainedModel) -> MyPTForCausalLM:
    """The same function as a MyPTForCausalLM, in eval mode; all tensors but GPT-2's matrices are shared with `model`.

    Raises CheckpointError that names what MyPT does not have.
    """
    from mypt.models.configuration_mypt import MyPTConfig
    from mypt.models.modeling_mypt import MyPTForCausalLM

    config = MyPTConfig(**mypt_fields(model.config.to_dict()))
    return assemble(MyPTForCausalLM, config, mypt_weights(model.state_dict(), model.config.model_type), model)


def from_mypt(model: MyPTForCausalLM, target: str) -> PreTrainedModel:
    """The same function as one of transformers' own classes, in eval mode; see `to_mypt`.

    Raises CheckpointError that names what the target does not have.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    ours = model.config.to_dict()
    config = CONFIG_MAPPING[target](**family_fields(ours, target))
    weights = family_weights(model.state_dict(), ours, target)
    return assemble(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, weights, model)


def assemble(
    model_class: type, config: PreTrainedConfig, weights: dict[str, Tensor], source: PreTrainedModel
) -> PreTrainedModel:
    """A model of ready tensors, with the generation config of `source`, in its dtype and mode.

    The class is filled without weights of its own, which takes neither time nor memory. Raises CheckpointError for
    tensors that do not fit.
    """
    config.dtype = source.dtype
    model, report = model_class.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    wrong = sorted([*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]])
    if wrong:
        raise CheckpointError(f"{wrong[0]} of the weights does not fit the config; save or download the model again")
    model.generation_config = copy.deepcopy(source.generation_config)
    model.generation_config._from_model_config = False  # it may say more than the config does
    model.name_or_path = model.config._name_or_path = source.name_or_path
    return model.train(source.training)


def cast(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Parameters only: buffers such as rotary frequencies keep the precision in which `from_pretrained` makes them."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model
