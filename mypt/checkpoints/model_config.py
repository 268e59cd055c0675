"""Read a model's config.json, checked as far as this package reads it; transformers checks what it uses itself."""

from pathlib import Path
from typing import Any, Literal, TypedDict

from mypt.errors import CheckpointError
from mypt.json_files import Count, Positive, as_kind, read_json
from mypt.planning.parameters import FORMULAS

CONFIG_NAME = "config.json"
ADAPTER_CONFIG = "adapter_config.json"  # peft's
CONFIGS = (CONFIG_NAME, ADAPTER_CONFIG)


class Config(TypedDict, total=False):
    """Fields that any model may have."""

    model_type: str | None
    architectures: list[str] | None
    auto_map: dict[str, str | list[str | None] | None] | None
    vocab_size: Count | None
    max_position_embeddings: int | None


class _Dimensions(TypedDict, total=False):
    """Fields of the models whose parameters `mypt.planning.parameters` counts by formulas."""

    vocab_size: Positive | None
    unpadded_vocab_size: Positive | None
    hidden_size: Positive | None
    intermediate_size: Positive | None
    num_hidden_layers: Positive | None
    num_attention_heads: Positive | None
    num_key_value_heads: Positive | None
    head_dim: Positive | None
    max_position_embeddings: Positive | None
    n_embd: Positive | None
    n_head: Positive | None
    n_inner: Positive | None
    n_layer: Positive | None
    n_positions: Positive | None
    position_embedding_type: Literal["rope", "learned", "absolute"] | None
    norm_type: Literal["rmsnorm", "layernorm"] | None
    mlp_gated: bool | None
    qk_norm: bool | None
    attention_bias: bool | None
    attention_output_bias: bool | None
    mlp_bias: bool | None
    lm_head_bias: bool | None
    tie_word_embeddings: bool | None


def _config(content: Any) -> Config:
    config = as_kind(content, Config)
    if config.get("model_type") in FORMULAS or config.get("architectures") == ["MyPTForCausalLM"]:
        as_kind(config, _Dimensions)
    return config


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter, by its config."""
    return any((folder / name).is_file() for name in CONFIGS)


def read_config_file(folder: Path, advice: str = "restore it") -> Config:
    """Read a folder's config.json. Raises CheckpointError if it is missing or damaged."""
    return read_json(folder / CONFIG_NAME, _config, CheckpointError, advice)


def cached_file(name: str, file: str) -> Path | None:
    """Return a file of a hub id in the local cache, or None; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except (HFValidationError, ValueError):  # no hub id; no path
        return None
    return Path(found) if isinstance(found, str) else None


def cached_model(name: str) -> Path | None:
    """Return the folder of a hub id in the local cache, or None."""
    found = cached_file(name, CONFIG_NAME) or cached_file(name, ADAPTER_CONFIG)
    return found and found.parent
