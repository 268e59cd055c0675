"""`model.init_from`: an existing model, as MyPT's own class where that computes the same, and extended as asked."""

from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from mypt.checkpoints.load import load_model
from mypt.checkpoints.probes import require_causal
from mypt.conversion.extend import changed, grow_vocabulary, longer_context
from mypt.conversion.families import obstacles
from mypt.conversion.weights import cast, to_mypt
from mypt.errors import RecipeError
from mypt.hardware.processes import is_main_process
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.recipe import ModelSection
from mypt.terminal import say
from mypt.tokenization.add_tokens import added_pieces
from mypt.tokenization.load import largest_id, model_tokenizer, require_model_tokenizer
from mypt.training.data.run_data import RunData

DROPOUTS = ("attention_dropout", "hidden_dropout")
CHANGEABLE = (*DROPOUTS, "max_position_embeddings", "rope_parameters")  # fields of MyPTConfig beside init_from


def existing_model(
    section: ModelSection,
    data: RunData,
    block_size: int | None,
    *,
    adapter: bool = False,
    quantization=None,
    report: Callable[..., object] = say,
) -> PreTrainedModel:
    """The model of `section.init_from` for the data's tokenizer; `report` gets lines about what was done to it.

    A GPT-2, Llama, Mistral, Qwen2 or Qwen3 becomes a MyPTForCausalLM of equal logits; any other stays as it is, and so
    does every base of an adapter, which has to fit what others will load. Raises RecipeError for a change that cannot
    be made, TokenizerError for a tokenizer that does not belong to the data, CheckpointError as `load_model` does.
    """
    source = section.init_from
    if refused := [name for name in section.config if name not in CHANGEABLE]:
        raise RecipeError(
            f"model.{refused[0]} cannot be changed together with model.init_from: {source} decides; what may stand "
            f"beside it: {', '.join(CHANGEABLE)}"
        )
    if quantization:
        model = load_model(source, device=str(PartialState().device), quantization=quantization)
    else:
        # Trainer places it: each process has a device of its own.
        model = cast(load_model(source, device="cpu"), section.dtype or "float32")
    require_causal(model, source)
    known, texts, pieces = _added_tokens(source, model, data)
    model, words = _as_mypt(model, adapter)
    model, stretched = _extended(model, section, block_size, words)
    if adapter and (texts or stretched):
        raise RecipeError(
            f"an adapter leaves its base as it is, and this recipe changes it ({stretched or 'added tokens'}): do "
            "that in a run without the section lora first, and name its folder as init_from"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if texts or (isinstance(model, MyPTForCausalLM) and model.config.unpadded_vocab_size is None and not adapter):
        grow_vocabulary(model, known, pieces)
    if is_main_process():
        report(f"init_from {source}: {words}")
        if stretched:
            report(stretched)
        if texts:
            report(
                f"added {len(texts)} tokens to {rows:,} rows ({known:,} in use), {model.config.vocab_size:,} now: each "
                "starts as the mean of the pieces that it was spelled in (2109.04607)"
            )
    return model


def continued_model(section: ModelSection, checkpoint: Path, block_size: int | None) -> PreTrainedModel:
    """The model in a checkpoint of a run that began from `section.init_from`, which need not be there any more.

    The changes that the recipe asks for are made again; they change nothing if it asks for the same as then.
    """
    model = cast(load_model(checkpoint, device="cpu"), section.dtype or "float32")
    return _extended(model, section, block_size, f"stays {type(model).__name__}")[0]


def _added_tokens(source: str, model: PreTrainedModel, data: RunData) -> tuple[int, list[str], list[list[int]]]:
    """Ids that the model knows, the tokens that the data has beyond them, and the old ids of each one's text."""
    base = model_tokenizer(source)
    added = base and added_pieces(base, data.tokenizer)
    if added and added[0]:
        return largest_id(base) + 1, *added
    size = largest_id(data.tokenizer) + 1
    require_model_tokenizer(source, model.config.vocab_size, "the data", data.tokenizer_hash, size)
    return size, [], []


def _as_mypt(model: PreTrainedModel, adapter: bool) -> tuple[PreTrainedModel, str]:
    """The model as a MyPTForCausalLM if that computes the same, and what was done in words."""
    name = type(model).__name__
    if isinstance(model, MyPTForCausalLM):
        return model, name
    if adapter:
        return model, f"stays {name}, the base that its adapter will be loaded beside"
    if found := obstacles(model.config.to_dict()):
        return model, f"stays {name}: MyPT does not have {', '.join(found)}"
    return to_mypt(model), f"{name} as MyPTForCausalLM, which computes the same"


def _extended(
    model: PreTrainedModel, section: ModelSection, block_size: int | None, words: str
) -> tuple[PreTrainedModel, str]:
    """The model with the dropouts and the context that the recipe asks for, and a line about a changed context."""
    asked, known = section.config, getattr(model.config, "max_position_embeddings", None)
    if not isinstance(model, MyPTForCausalLM):
        if asked:
            raise RecipeError(f"model.{next(iter(asked))} cannot be changed: {section.init_from} {words}")
        return model, ""
    limit = asked.get("max_position_embeddings")
    if limit is not None and limit < max(known, block_size or 0):
        raise RecipeError(
            f"model.max_position_embeddings {limit} is below "
            + (f"the model's {known}" if limit < known else f"data.block_size {block_size}")
            + ": leave it out; a shorter data.block_size needs no other model"
        )
    changes, line = longer_context(model.config, max(known, limit or 0, block_size or 0), asked.get("rope_parameters"))
    changes |= {name: asked[name] for name in DROPOUTS if name in asked}
    try:
        return (changed(model, changes) if changes else model), line
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"model: {' '.join(str(error.__cause__ or error).split())}") from None
