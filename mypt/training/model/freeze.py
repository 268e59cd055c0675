"""Parts of a model that are not trained: its first decoder layers, its embeddings; for any causal LM."""

import itertools

from torch import nn
from transformers import PreTrainedModel

from mypt.errors import RecipeError
from mypt.recipe import ModelSection


def freeze(model: PreTrainedModel, section: ModelSection, training: dict) -> str | None:
    """Take the first `section.freeze_layers` decoder layers and, if asked, the embeddings out of the training.

    Gradients still flow through frozen layers if something below them is trained. training: a recipe's section, for
    its activation checkpointing. Returns a line for people, None if nothing was asked for. Raises RecipeError for more
    layers than there are, for a model whose list of layers is not clear, and if nothing would be left to train.
    """
    words, layers = [], section.freeze_layers
    if layers:
        found = _layers_to_freeze(model)
        if layers > len(found):
            raise RecipeError(f"model.freeze_layers is {layers}, expected 0 to {len(found)}: the model has no more")
        for layer in found[:layers]:
            layer.requires_grad_(False)
        words.append(f"the first {layers} of {len(found)} layers" if layers < len(found) else f"all {layers} layers")
    if section.freeze_embeddings:
        for table in embedding_tables(model):
            table.requires_grad_(False)
        head = model.get_output_embeddings()
        shared = head is not None and not head.weight.requires_grad
        words.append("the embeddings" + (" (and the head, which is the same tensor)" if shared else ""))
        if _reenters(training):  # such a layer is differentiated only if its input asks for a gradient
            model.enable_input_require_grads()
    if not words:
        return None
    total, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    if not trained:
        raise RecipeError("model.freeze_layers and model.freeze_embeddings leave nothing to train: freeze less")
    return f"frozen: {' and '.join(words)}; {trained:,} of {total:,} parameters are trained ({trained / total:.1%})"


def _layers_to_freeze(model: PreTrainedModel) -> nn.ModuleList:
    try:
        return decoder_layers(model)
    except RecipeError as error:
        words = f"model.freeze_layers: {error}; leave it out, or freeze model.freeze_embeddings alone"
        raise RecipeError(words) from None


def _reenters(training: dict) -> bool:
    """Whether activation checkpointing uses torch's reentrant way: not HF's default, but torch's."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    options = next((training[f"{name}_kwargs"] for name in names if training.get(f"{name}_kwargs")), {})
    own = {key: value for key, value in options.items() if key not in ("every_n_layers", "offload")}  # HF's own
    return any(training.get(name) for name in names) and bool(own) and own.get("use_reentrant", True)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, first to last: the one outermost list of `num_hidden_layers` modules.

    Raises RecipeError if there is none, or more than one.
    """
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        seen = f"candidates: {', '.join(outermost)}" if outermost else "no list of num_hidden_layers modules"
        raise RecipeError(f"it is not clear which are the decoder layers of {type(model).__name__} ({seen})")
    return lists[outermost[0]]


def embedding_tables(model: PreTrainedModel) -> list[nn.Parameter]:
    """The tables of tokens and, where they are learned, of positions."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return [*tables, *model.get_input_embeddings().parameters()]


def forward_only_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The first decoder layers that the backward pass never reaches: nothing below or in them is trained.

    Below is what the model registers before its layers, as well as the embeddings.
    """
    try:
        layers = decoder_layers(model)
    except RecipeError:
        return []
    inside = {id(parameter) for parameter in layers.parameters()}
    below = [*itertools.takewhile(lambda parameter: id(parameter) not in inside, model.parameters())]
    if any(parameter.requires_grad for parameter in [*below, *embedding_tables(model)]):
        return []
    return [*itertools.takewhile(lambda layer: not any(p.requires_grad for p in layer.parameters()), layers)]
