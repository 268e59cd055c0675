"""Model sizes by name, as plain dicts of MyPTConfig fields: readable without torch."""

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_mypt import MyPTConfig

# GPT-2's block, so that `GPT2LMHeadModel` holds the same weights; 50,304 is its vocabulary of 50,257 padded to 64.
CLASSIC = {
    "vocab_size": 50304,
    "position_embedding_type": "learned",
    "norm_type": "layernorm",
    "norm_eps": 1e-5,
    "mlp_gated": False,
    "hidden_act": "gelu_new",
    "qk_norm": False,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "lm_head_bias": False,
    "tie_word_embeddings": True,
}

# Qwen3's block, so that `Qwen3ForCausalLM` holds the same weights.
MODERN = {
    "vocab_size": 16000,
    "position_embedding_type": "rope",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "norm_type": "rmsnorm",
    "norm_eps": 1e-6,
    "mlp_gated": True,
    "hidden_act": "silu",
    "qk_norm": True,
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "tie_word_embeddings": True,
}

# layers, query heads, key-value heads, width, block (tokens). Classic: the original MyPT's sizes. Modern: heads of 64,
# and the depth that brings the parameter count near the name.
_SHAPES = {
    "tiny": (CLASSIC, 4, 4, 4, 192, 128),
    "small": (CLASSIC, 6, 6, 6, 384, 256),
    "150M": (CLASSIC, 16, 12, 12, 768, 256),
    "150M_1024": (CLASSIC, 16, 12, 12, 768, 1024),
    "200M": (CLASSIC, 16, 14, 14, 896, 256),
    "200M_1024": (CLASSIC, 16, 14, 14, 896, 1024),
    "250M": (CLASSIC, 16, 16, 16, 1024, 256),
    "250M_1024": (CLASSIC, 16, 16, 16, 1024, 1024),
    "350M_1024": (CLASSIC, 24, 16, 16, 1024, 1024),
    "500M_1024": (CLASSIC, 24, 16, 16, 1280, 1024),
    "750M_1024": (CLASSIC, 24, 24, 24, 1536, 1024),
    "modern-nano": (MODERN, 4, 3, 3, 192, 1024),
    "modern-tiny": (MODERN, 6, 6, 3, 384, 1024),
    "modern-small": (MODERN, 14, 8, 4, 512, 1024),
    "modern-medium": (MODERN, 22, 12, 4, 768, 1024),
    "modern-large": (MODERN, 32, 16, 8, 1024, 1024),
    "modern-xlarge": (MODERN, 22, 32, 8, 2048, 1024),
}

# Fields that follow from others when a preset is changed and they are not given.
_FOLLOWS = {
    "num_key_value_heads": ("num_attention_heads",),
    "head_dim": ("hidden_size", "num_attention_heads"),
    "intermediate_size": ("hidden_size", "mlp_gated"),
}


def _complete(dimensions: dict[str, Any]) -> dict[str, Any]:
    """Fill in the fields of `_FOLLOWS` that are missing."""
    width, heads = dimensions["hidden_size"], dimensions["num_attention_heads"]
    if "head_dim" not in dimensions and (heads < 1 or width % heads):
        even = dimensions["position_embedding_type"] == "rope" and width % 2 == 0  # so must be the width of a head
        fits = _nearest_divisors(width // 2 if even else width, heads)
        raise ValueError(
            f"hidden_size {width} is not a multiple of num_attention_heads {heads}; give "
            f"{' or '.join(f'num_attention_heads={number}' for number in fits)}, or head_dim"
        )
    # Two thirds of 4 x width keep the parameters of a plain MLP when a gate adds the third matrix (Shazeer 2020).
    gated = max(64, round(width * 8 / 3 / 64) * 64)
    derived = {
        "num_key_value_heads": heads,
        "head_dim": width // max(1, heads),
        "intermediate_size": gated if dimensions["mlp_gated"] else 4 * width,
    }
    dimensions = dimensions | {field: value for field, value in derived.items() if field not in dimensions}
    shared, head = dimensions["num_key_value_heads"], dimensions["head_dim"]
    if isinstance(shared, int) and shared > 0 and heads % shared:
        fits = " or ".join(f"num_key_value_heads={number}" for number in _nearest_divisors(heads, shared))
        raise ValueError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {shared}: every key-value head "
            f"serves a group of equal size; give {fits}"
        )
    if dimensions["position_embedding_type"] == "rope" and isinstance(head, int) and head % 2:
        raise ValueError(f"head_dim {head} is odd; rotary positions turn pairs of numbers: give head_dim={head + 1}")
    return dimensions


def _nearest_divisors(number: int, wanted: int) -> list[int]:
    """The nearest divisors of `number` that are not above and not below `wanted`, as far as there are any."""
    if number < 1:
        return [1]
    below = next((size for size in range(min(wanted, number), 0, -1) if number % size == 0), None)
    above = next((size for size in range(max(wanted, 1), number + 1) if number % size == 0), None)
    return [size for size in dict.fromkeys((below, above)) if size]


_FIELDS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "max_position_embeddings")
PRESETS: dict[str, dict[str, Any]] = {
    name: _complete(dict(zip(_FIELDS, sizes, strict=True)) | family) for name, (family, *sizes) in _SHAPES.items()
}


def preset_dimensions(name: str, **overrides: Any) -> dict[str, Any]:
    """The MyPTConfig fields of preset `name`, with `overrides` applied.

    Heads, head width and the MLP's width that are not given follow from what is: `hidden_size=512` also changes
    `intermediate_size`.

    Raises:
        ValueError: no preset has this name (the message holds the nearest one), or heads that do not divide the width.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no preset {name!r}; {hint}presets: {', '.join(PRESETS)}")
    base = {
        field: dict(value) if isinstance(value, dict) else value
        for field, value in PRESETS[name].items()
        if not any(source in overrides for source in _FOLLOWS.get(field, ()))
    }
    return _complete(base | overrides)


def preset_config(name: str, **overrides: Any) -> "MyPTConfig":
    """The configuration of preset `name`; overrides: any MyPTConfig field, `attn_implementation`, `num_labels`.

    Raises:
        ValueError: an unknown preset or field (with the nearest name), or values that do not fit together.
    """
    from huggingface_hub.errors import StrictDataclassError

    from .configuration_mypt import MyPTConfig

    # The class itself would accept and keep any name.
    known = {*MyPTConfig.__dataclass_fields__, "attn_implementation", "num_labels"}
    for field in overrides.keys() - known:
        near = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "help(mypt.MyPTConfig) lists them"
        raise ValueError(f"MyPTConfig has no field {field!r}; {hint}")
    try:
        return MyPTConfig(**preset_dimensions(name, **overrides))
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    except KeyError as error:  # of rope_parameters that lack one
        raise ValueError(error.args[0]) from error
