"""The model that a recipe asks for: a preset with random weights, or an existing checkpoint."""

from pathlib import Path

from transformers import PreTrainedModel, set_seed

from mypt.checkpoints.complete import holds_model
from mypt.conversion.weights import cast
from mypt.errors import CheckpointError, RecipeError, UnreadableCheckpoint
from mypt.formatting import gibibytes
from mypt.hardware.main_memory import main_memory
from mypt.models.configuration_mypt import MyPTConfig
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config, preset_dimensions
from mypt.planning.parameters import count_parameters
from mypt.planning.step import BYTES, VOCABULARY_MULTIPLE
from mypt.recipe import ModelSection, model_fault, too_few_rows
from mypt.tokenization.load import largest_id
from mypt.training.data.run_data import RunData
from mypt.training.model.init_from import continued_model, existing_model
from mypt.training.model.loading import is_of_machine


def build_model(
    section: ModelSection,
    data: RunData,
    block_size: int | None,
    seed: int,
    *,
    adapter: bool = False,
    quantization=None,
    checkpoint: Path | None = None,
) -> PreTrainedModel:
    """A model for the data's tokenizer.

    adapter, quantization: an existing one is to be kept frozen, in 4 bits. checkpoint: of the run that is resumed; it
    holds the existing model as it was extended and trained, and is read instead of `section.init_from`.

    Raises RecipeError for fields that do not fit together, TokenizerError for a checkpoint of another tokenizer and
    CheckpointError for one that cannot be loaded.
    """
    if section.init_from and checkpoint and not adapter and holds_model(checkpoint):
        try:
            model = continued_model(section, checkpoint, block_size)
        except CheckpointError as error:
            if is_of_machine(error):
                raise
            raise UnreadableCheckpoint(str(checkpoint), str(error)) from error
    elif section.init_from:
        model = existing_model(section, data, block_size, adapter=adapter, quantization=quantization)
    else:
        set_seed(seed)
        config = _config(section, data, block_size)
        _require_memory(config)
        try:
            model = cast(MyPTForCausalLM(config), section.dtype or "float32")
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            words = f"{type(error).__name__} {' '.join(str(error).split())}"
            raise RecipeError(f"model: no model can be made with these fields: {words}") from error
    limit = getattr(model.config, "max_position_embeddings", None)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if block_size and limit and block_size > limit and rope.get("rope_type") != "dynamic":
        raise RecipeError(f"data.block_size {block_size} is longer than the model's {limit} positions; lower it")
    return model


def _require_memory(config: MyPTConfig) -> None:
    """Refuse weights that this machine cannot hold, before it tries for minutes or the system ends the process."""
    parameters, (memory, _) = count_parameters(config.to_dict())["total"], main_memory()
    if memory and BYTES["float32"] * parameters > memory:  # in which all are made
        raise RecipeError(
            f"model: these dimensions make {parameters:,} parameters, {gibibytes(4 * parameters)} GiB of weights, and "
            f"this machine has {gibibytes(memory)} GiB of memory; lower the sizes in the section model"
        )


def _config(section: ModelSection, data: RunData, block_size: int | None):
    vocabulary = largest_id(data.tokenizer) + 1
    padded = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    overrides = {"vocab_size": padded, "unpadded_vocab_size": vocabulary} | section.config
    if overrides["vocab_size"] < vocabulary:
        raise too_few_rows(overrides["vocab_size"], vocabulary)
    try:
        longest = preset_dimensions(section.preset)["max_position_embeddings"]
    except ValueError as error:
        raise RecipeError(f"model.preset: {error}") from None
    if block_size and block_size > longest:
        overrides.setdefault("max_position_embeddings", block_size)
    eos = data.tokenizer.eos_token_id
    overrides |= {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    try:
        return preset_config(section.preset, **overrides)
    except (TypeError, ValueError) as error:
        raise model_fault(error) from None
