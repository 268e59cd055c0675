"""MyPT's decoder as one of transformers' own, and theirs as MyPT's: the same numbers by other names.

Weights are state dicts; nothing is changed in place, and tensors are shared where no transposition is needed: only
GPT-2's matrices are turned.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

from mypt.conversion.families import FAMILIES, added_biases, family_fields, mypt_fields
from mypt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from mypt.models.modeling_mypt import MyPTForCausalLM


def mypt_weights(weights: dict[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """A family's state dict by MyPT's names. Raises CheckpointError for a tensor that the family does not have."""
    table = {theirs: (ours, transposed) for theirs, ours, transposed in FAMILIES[model_type].tensors}
    if not table:
        return dict(weights)
    renamed = {}
    for name, tensor in weights.items():
        module, layer, kind = _split(name)
        if module not in table:
            raise CheckpointError(f"{model_type} has no tensor {name}; the weights are of another architecture")
        ours, transposed = table[module]
        pieces = (_transpose(tensor) if transposed else tensor).chunk(len(ours))
        renamed |= {
            f"{part.format(layer)}.{kind}": piece.contiguous() for part, piece in zip(ours, pieces, strict=True)
        }
    return renamed


def family_weights(weights: dict[str, Tensor], config: dict, target: str) -> dict[str, Tensor]:
    """The state dict of a MyPT model with this config by a target's names; biases that MyPT lacks are zeros."""
    weights = _with_biases(weights, config, target)
    # A fused tensor is made where the first of its parts comes.
    table = {ours[0]: (theirs, ours, transposed) for theirs, ours, transposed in FAMILIES[target].tensors}
    if not table:
        return weights
    import torch

    renamed = {}
    for name in weights:
        module, layer, kind = _split(name)
        if module in table:
            theirs, ours, transposed = table[module]
            parts = [weights[f"{part.format(layer)}.{kind}"] for part in ours]
            tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
            renamed[f"{theirs.format(layer)}.{kind}"] = _transpose(tensor) if transposed else tensor
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


def _transpose(tensor: Tensor) -> Tensor:
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
