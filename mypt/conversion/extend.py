"""A longer context and added tokens for an existing model: what it knew stays, what is new starts from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mypt.conversion.weights import assemble
from mypt.errors import RecipeError
from mypt.planning.step import VOCABULARY_MULTIPLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mypt.models.configuration_mypt import MyPTConfig
    from mypt.models.modeling_mypt import MyPTForCausalLM

# How rotary positions reach beyond the trained length, and the paper.
ROPE_TYPES = {
    "yarn": "Peng 2023, 2309.00071",
    "linear": "Chen 2023, 2306.15595",
    "dynamic": "NTK-aware by length, Peng 2023, 2309.00071",
    "llama3": "Grattafiori 2024, 2407.21783",
    "longrope": "Ding 2024, 2402.13753",
    "default": "a larger theta, Xiong 2023, 2309.16039",
}


def changed(model: MyPTForCausalLM, changes: Mapping[str, Any]) -> MyPTForCausalLM:
    """The model with other dropouts, rope_parameters or a larger max_position_embeddings; the weights are shared.

    A table of learned positions is repeated to the new length, as Longformer's was (Beltagy 2020, 2004.05150): the
    trained rows stay, and every row knows its neighbours, but for the seams.
    """
    from mypt.models.configuration_mypt import MyPTConfig

    config = MyPTConfig.from_dict(model.config.to_dict() | dict(changes))
    weights, name = model.state_dict(), "model.embed_positions.weight"
    if name in weights:
        length, known = config.max_position_embeddings, len(weights[name])
        weights[name] = weights[name].repeat(math.ceil(length / known), 1)[:length]
    return assemble(type(model), config, weights, model)


def longer_context(config: MyPTConfig, length: int, rope: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The changes that let a model read `length` tokens, and one line about them; none and "" if it does already.

    rope: rope_parameters as a recipe names them, whole or in part; what is left out follows from the model and the
    length. None: YaRN for a model that is not stretched yet, or by YaRN. Raises RecipeError for a method that does not
    reach so far, learned positions that are to be rotated, and a model that is stretched in another way.
    """
    known = config.max_position_embeddings
    if config.position_embedding_type == "learned":
        if rope is not None:
            raise RecipeError("model.rope_parameters: this model has learned positions; leave it out")
        if length <= known:
            return {}, ""
        words = f"context {known:,} -> {length:,} tokens: the table of learned positions is repeated (2004.05150)"
        return {"max_position_embeddings": length}, words
    parameters = _rope(config, length, rope)
    # The frequencies of `dynamic` start to change at max_position_embeddings: it is the trained length there.
    reach = known if parameters["rope_type"] == "dynamic" else length
    changes = {"rope_parameters": parameters, "max_position_embeddings": reach}
    if all(getattr(config, name) == value for name, value in changes.items()):
        return {}, ""
    kind, details = parameters["rope_type"], f"theta {parameters['rope_theta']:g}"
    if "factor" in parameters:
        details = f"factor {parameters['factor']:g}, {details}"
    return changes, f"context {known:,} -> {length:,} tokens: rope_type {kind}, {details} ({ROPE_TYPES[kind]})"


def _rope(config: MyPTConfig, length: int, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """rope_parameters for `length` tokens: what is asked for, completed."""
    now, known = config.rope_parameters, config.max_position_embeddings
    if length <= known and (asked is None or dict(asked) == now):
        return dict(now)
    if asked is None:
        if now["rope_type"] not in ("default", "yarn"):
            raise RecipeError(
                f"{length:,} tokens are more than the model's {known:,}, which rope_type {now['rope_type']} reaches "
                "already: name model.rope_parameters, for example {rope_type: yarn}, or a smaller data.block_size"
            )
        asked = {name: value for name, value in now.items() if name != "factor"} | {"rope_type": "yarn"}
    kind = asked.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise RecipeError(f"model.rope_parameters: rope_type {kind!r}, expected one of {', '.join(ROPE_TYPES)}")
    trained = now.get("original_max_position_embeddings") or known
    if now["rope_type"] == "linear":
        trained = round(known / now["factor"])
    stretch = max(1.0, length / trained)
    completed = {"rope_theta": now["rope_theta"]}
    if kind in ("yarn", "linear", "dynamic", "llama3"):
        completed["factor"] = stretch
    if kind in ("yarn", "llama3", "longrope"):
        completed["original_max_position_embeddings"] = trained
    if kind == "llama3":
        completed |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # Llama 3.1's
    parameters = completed | dict(asked) | {"rope_type": kind}
    if kind == "default" and length > known and parameters["rope_theta"] <= now["rope_theta"]:
        raise RecipeError(
            f"model.rope_parameters: rope_type default with theta {parameters['rope_theta']:g} leaves positions from "
            f"{known:,} on as they never occurred in training; raise rope_theta, or name rope_type yarn"
        )
    if kind in ("yarn", "linear") and parameters["factor"] < stretch:
        raise RecipeError(
            f"model.rope_parameters: factor {parameters['factor']:g} stretches {trained:,} tokens to "
            f"{round(trained * parameters['factor']):,}, expected {length:,}; leave factor out, it is {stretch:g} then"
        )
    return parameters


def grow_vocabulary(model: PreTrainedModel, known: int, pieces: Sequence[Sequence[int]]) -> None:
    """Give ids from `known` on a row in the embedding and in the head, in place.

    Rows that the model has beyond its tokenizer are used first; new ones fill up to a multiple of 64 and are never
    generated. They are the mean of all old rows, which takes little probability from any (Hewitt 2021, "Initializing
    New Word Embeddings").

    Args:
        known: Ids that the model was trained with.
        pieces: For each new id the old ones that its text was spelled in: the new row is the mean of theirs (Koto 2021,
            2109.04607), of all old rows where there are none.
    """
    import torch

    size = known + len(pieces)
    rows = model.get_input_embeddings().weight.shape[0]
    if size > rows:
        model.resize_token_embeddings(size, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
    total = model.get_input_embeddings().weight.shape[0]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding.weight]  # everything that has a row for each id
    if head is not None and head.weight is not embedding.weight:
        tables.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    with torch.no_grad():
        for table in tables:
            mean = table[:known].float().mean(0)
            if total > rows:
                table[rows:] = mean.to(table.dtype)
            for new, old in enumerate(pieces, start=known):
                table[new] = (table[list(old)].float().mean(0) if len(old) else mean).to(table.dtype)
    if hasattr(model.config, "unpadded_vocab_size"):
        model.config.unpadded_vocab_size = size
    suppressed = {*(model.generation_config.suppress_tokens or ())} - {*range(known, size)} | {*range(size, total)}
    model.generation_config.suppress_tokens = sorted(suppressed) or None
