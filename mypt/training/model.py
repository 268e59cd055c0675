"""The model that a recipe asks for: a preset with random weights, or an existing checkpoint."""

import torch
from transformers import PreTrainedModel, set_seed

from mypt.errors import RecipeError
from mypt.generation.load import load_model
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config, preset_dimensions
from mypt.recipe import ModelSection
from mypt.tokenization.load import largest_id, require_model_tokenizer
from mypt.training.data import RunData

VOCABULARY_MULTIPLE = 64


def default_block_size(section: ModelSection) -> int | None:
    """The preset's context length; None for an existing model, whose config decides."""
    if section.init_from:
        return None
    return section.config.get("max_position_embeddings") or _preset(section)["max_position_embeddings"]


def build_model(section: ModelSection, data: RunData, block_size: int | None, seed: int) -> PreTrainedModel:
    """A model for the data's tokenizer.

    Raises RecipeError for fields that do not fit together, TokenizerError for a checkpoint of another tokenizer and
    CheckpointError for one that cannot be loaded.
    """
    if section.init_from:
        model = _load(section, data)
    else:
        set_seed(seed)
        model = _cast(MyPTForCausalLM(_config(section, data, block_size)), section.dtype or "float32")
    limit = getattr(model.config, "max_position_embeddings", None)
    if block_size and limit and block_size > limit:
        raise RecipeError(f"data.block_size {block_size} is longer than the model's {limit} positions; lower it")
    return model


def _preset(section: ModelSection) -> dict:
    try:
        return preset_dimensions(section.preset)
    except ValueError as error:
        raise RecipeError(f"model.preset: {error}") from None


def _config(section: ModelSection, data: RunData, block_size: int | None):
    vocabulary = largest_id(data.tokenizer) + 1
    padded = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    overrides = {"vocab_size": padded, "unpadded_vocab_size": vocabulary} | section.config
    if overrides["vocab_size"] < vocabulary:
        raise RecipeError(
            f"model.vocab_size {overrides['vocab_size']} is below the tokenizer's {vocabulary}; remove it"
        )
    if block_size and block_size > _preset(section)["max_position_embeddings"]:
        overrides.setdefault("max_position_embeddings", block_size)
    eos = data.tokenizer.eos_token_id
    overrides |= {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    try:
        return preset_config(section.preset, **overrides)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model: {' '.join(str(error).split())}") from None


def _load(section: ModelSection, data: RunData) -> PreTrainedModel:
    source = section.init_from
    if section.config:
        raise RecipeError(
            f"model.{next(iter(section.config))} cannot be changed together with model.init_from: {source} decides"
        )
    # Trainer places it: each process has a device of its own.
    model = _cast(load_model(source, device="cpu"), section.dtype or "float32")
    require_model_tokenizer(
        source, model.config.vocab_size, "the data", data.tokenizer_hash, largest_id(data.tokenizer) + 1
    )
    return model


def _cast(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Parameters only: buffers such as rotary frequencies keep the precision in which `from_pretrained` makes them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model
