"""The original MyPT's weights under today's names, and the configuration that they mean.

Its model is GPT-2's decoder with switches. The original's code (github.com/chberclaz/MyPT) decides what no checkpoint
records: LayerNorm's epsilon is 1e-5 and RMSNorm's 1e-6, GELU is the exact one, SwiGLU's gate is SiLU, scores are
divided by sqrt(head width), rotary positions turn the pairs (i, i + D/2), and `rope_scale` divides positions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mypt.errors import CheckpointError
from mypt.legacy.checkpoint import Original

if TYPE_CHECKING:
    import torch


def config_fields(original: Original) -> dict[str, Any]:
    """MyPTConfig fields of the original's model, from its weights where they determine them, else from its config.

    Raises CheckpointError that names every field in which the two contradict each other.
    """
    found, names = _agreed(original), original.tensors
    stated = {name: value for name, value in original.config.items() if value is not None}
    width, gated, learned = found["n_embd"], found.get("mlp_type") == "swiglu", found["pos_encoding"] == "learned"
    up = names.get("blocks.0.fwd.w_up.weight", names.get("blocks.0.fwd.net.0.weight"))
    attention = "blocks.0.sa.heads.0.query.bias" if original.per_head else "blocks.0.sa.qkv.bias"
    return {
        "vocab_size": found["vocab_size"],
        "hidden_size": width,
        "intermediate_size": 4 * width if up is None else len(up),
        "num_hidden_layers": found["n_layer"],
        "num_attention_heads": found["n_head"],
        "hidden_act": _activation(original, gated),
        "max_position_embeddings": found["block_size"],
        "position_embedding_type": found["pos_encoding"],
        "rope_parameters": None if learned else _rope(stated),
        "norm_type": found["norm_type"],
        "norm_eps": 1e-5 if found["norm_type"] == "layernorm" else 1e-6,
        "mlp_gated": gated,
        "qk_norm": False,
        "attention_bias": attention in names,
        "attention_output_bias": "blocks.0.sa.proj.bias" in names,
        "mlp_bias": any(f"blocks.0.fwd.{name}.bias" in names for name in ("net.0", "w_up")),
        "lm_head_bias": "lm_head.bias" in names,
        "tie_word_embeddings": stated.get("tie_weights", "lm_head.weight" not in names),
        "attention_dropout": stated.get("dropout", 0.0),
        "hidden_dropout": stated.get("dropout", 0.0),
    }


def rename(original: Original, fields: dict[str, Any], rotary: str = "halves") -> dict[str, torch.Tensor]:
    """The same tensors under MyPTForCausalLM's names; a tied head is left out.

    rotary: how the model that made them turns queries and keys; rows of `interleaved` ones, which turn the pairs
    (2i, 2i + 1), are put in the order of `halves`. Raises CheckpointError for a tensor that is missing or left over.
    """
    tensors, heads = dict(original.tensors), fields["num_attention_heads"]
    turned = fields["position_embedding_type"] == "rope" and rotary == "interleaved"
    renamed = {}
    try:
        renamed["model.embed_tokens.weight"] = tensors.pop("token_embedding_table.weight")
        if fields["position_embedding_type"] == "learned":
            renamed["model.embed_positions.weight"] = tensors.pop("position_embedding_table.weight")
        for layer in range(fields["num_hidden_layers"]):
            for name, tensor in _attention(tensors, f"blocks.{layer}.sa", heads):
                if turned and name[0] in "qk":
                    tensor = _halves(tensor, heads)
                renamed[f"model.layers.{layer}.self_attn.{name}"] = tensor
        if "lm_head.weight" in tensors:
            head = tensors.pop("lm_head.weight")
            # A tied checkpoint names one tensor twice; the original's loading leaves the head's in both places.
            renamed["model.embed_tokens.weight" if fields["tie_word_embeddings"] else "lm_head.weight"] = head
    except KeyError as missing:
        raise CheckpointError(f"the weights of {original.path} lack {missing}; restore the file") from None
    for old in list(tensors):
        if new := _new_name(old):
            renamed[new] = tensors.pop(old)
    if tensors:
        raise CheckpointError(
            f"the weights of {original.path} hold {len(tensors)} tensors that no model of the original has, "
            f"{next(iter(tensors))} first"
        )
    return renamed


def _agreed(original: Original) -> dict[str, Any]:
    """Fields of the original's config as the weights mean them, and as stated where they do not determine it."""
    names, stated = original.tensors, original.config
    table, positions = names["token_embedding_table.weight"], names.get("position_embedding_table.weight")
    found = {
        "n_embd": table.shape[-1],
        "n_layer": len({name.split(".")[1] for name in names if name.startswith("blocks.")}),
        "vocab_size": len(table),
        "pos_encoding": "rope" if positions is None else "learned",
        "norm_type": "layernorm" if "ln_f.bias" in names else "rmsnorm",
    }
    if positions is not None:
        found["block_size"] = len(positions)
    if original.per_head:
        found["n_head"] = len({name.split(".")[4] for name in names if name.startswith("blocks.0.sa.heads.")})
    gated = "blocks.0.fwd.w_gate.weight" in names
    if gated or stated.get("mlp_type") == "swiglu":
        found["mlp_type"] = "swiglu" if gated else "not gated"
    if wrong := [
        f"{name} {stated[name]} but the weights mean {value}"
        for name, value in found.items()
        if stated.get(name) not in (None, value)
    ]:
        raise CheckpointError(
            f"the config of {original.path} says {'; '.join(wrong)}: these files do not belong together"
        )
    for name in ("n_head", "block_size"):
        value = found.setdefault(name, stated.get(name))
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"the config of {original.path} says {name} {value!r}; a number of at least 1 is needed"
            )
    if found["n_embd"] % found["n_head"]:
        raise CheckpointError(
            f"the config of {original.path} says n_head {found['n_head']}, which does not divide n_embd "
            f"{found['n_embd']}"
        )
    return found


def _activation(original: Original, gated: bool) -> str:
    if gated:
        return "silu"
    stated = original.config.get("mlp_type")
    if stated not in (None, "relu", "gelu"):
        raise CheckpointError(f"the config of {original.path} says mlp_type {stated!r}; gelu, relu or swiglu is known")
    return stated or ("relu" if original.per_head else "gelu")


def _rope(stated: dict[str, Any]) -> dict[str, Any]:
    theta, scale = stated.get("rope_theta") or 10_000.0, stated.get("rope_scale") or 1.0
    if scale == 1:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": scale}


def _attention(tensors: dict, prefix: str, heads: int):
    """(name, tensor) of the queries', keys' and values' projections of one layer, taken out of `tensors`."""
    for kind in ("weight", "bias"):
        if f"{prefix}.qkv.{kind}" in tensors:
            qkv = tensors.pop(f"{prefix}.qkv.{kind}")
            if len(qkv) % 3:
                raise CheckpointError(f"{prefix}.qkv.{kind} has {len(qkv)} rows, no multiple of 3; restore the file")
            yield from zip((f"{name}_proj.{kind}" for name in "qkv"), qkv.chunk(3), strict=True)
        elif kind == "weight" or f"{prefix}.heads.0.query.bias" in tensors:
            import torch

            for name in ("query", "key", "value"):
                rows = [tensors.pop(f"{prefix}.heads.{head}.{name}.{kind}") for head in range(heads)]
                yield f"{name[0]}_proj.{kind}", torch.cat(rows)


def _halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows 0, 1, 2, 3, ... of every head in the order 0, 2, ..., 1, 3, ..."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


_NEW_NAMES = (
    (r"blocks\.(\d+)\.sa\.proj", r"model.layers.\1.self_attn.o_proj"),
    (r"blocks\.(\d+)\.fwd\.(?:net\.0|w_up)", r"model.layers.\1.mlp.up_proj"),
    (r"blocks\.(\d+)\.fwd\.(?:net\.2|w_down)", r"model.layers.\1.mlp.down_proj"),
    (r"blocks\.(\d+)\.fwd\.w_gate", r"model.layers.\1.mlp.gate_proj"),
    (r"blocks\.(\d+)\.ln1", r"model.layers.\1.input_layernorm"),
    (r"blocks\.(\d+)\.ln2", r"model.layers.\1.post_attention_layernorm"),
    (r"ln_f", "model.norm"),
    (r"lm_head", "lm_head"),
)


def _new_name(old: str) -> str | None:
    for pattern, new in _NEW_NAMES:
        if match := re.fullmatch(pattern + r"\.(weight|bias)", old):
            return f"{match.expand(new)}.{match[match.lastindex]}"
    return None
