"""Today's tokenizer for a checkpoint of the original MyPT, and the model's rows for ids that it did not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mypt.errors import CheckpointError
from mypt.legacy.checkpoint import Original
from mypt.legacy.tokenizer import TokenizerState, parse_state
from mypt.tokenization.load import largest_id, load_tokenizer, state_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

_GPT2_SIZES = (50_257, 50_304)  # GPT-2's ids, and padded as the original does
_STOP = "<myPT_eot>"  # where the original's generation stops, beside the end of a text
_NEVER = -30.0  # added to an id's logit: e**-30 of the probability of any other


def find_tokenizer(
    original: Original, name: str | None, vocab_size: int, add_bytes: bool
) -> tuple[PreTrainedTokenizerFast | None, list[str]]:
    """Return the tokenizer (None: there is none), and notes about it, a line each.

    It has no id beyond the model's; with `add_bytes` one of characters has EOS and the 256 bytes behind them.
    Raises CheckpointError if it gives ids that the model does not have, TokenizerError if it cannot be had.
    """
    notes, state = [], _state(original, vocab_size)
    if name:
        tokenizer = load_tokenizer(name)
    elif state is None:
        return None, ["it names no tokenizer: none was written; give --tokenizer"]
    elif state.chars is None:
        tokenizer = state_tokenizer(state)
        if not state.special_tokens and vocab_size > largest_id(tokenizer) + 1:
            first, last = largest_id(tokenizer) + 1, vocab_size - 1
            notes.append(f"ids {first:,} to {last:,} have no text: its tokenizer names no special tokens")
    else:
        if state.size < vocab_size:
            notes.append(
                f"its tokenizer has {state.size:,} ids and the model {vocab_size:,}: if a character is missing, all "
                "after it stand for another; look at a text that the model writes"
            )
        if add_bytes:
            return state_tokenizer(state), notes
        tokenizer = state_tokenizer(state, exact=True)
        notes.append(
            f"its {len(state.chars)} characters are all it knows, others are left out of a text, and no id ends one: "
            "to evaluate or train it on prepared data, convert it with --add-bytes"
        )
    if (largest := largest_id(tokenizer)) >= vocab_size:
        raise CheckpointError(
            f"the tokenizer {name or f'of {original.path}'} gives ids up to {largest}, the model has {vocab_size}; "
            "they do not belong together"
        )
    return tokenizer, notes


def token_fields(tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    """MyPTConfig fields that follow from the tokenizer."""
    if tokenizer is None:
        return {}
    eos, vocabulary = tokenizer.eos_token_id, tokenizer.get_vocab()
    stops = [id for id in (eos, vocabulary.get(_STOP)) if id is not None]
    return {
        "unpadded_vocab_size": largest_id(tokenizer) + 1,
        "bos_token_id": eos,
        "pad_token_id": eos,
        "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None),
    }


def add_rows(tensors: dict[str, torch.Tensor], fields: dict[str, Any], size: int) -> None:
    """Rows up to `size` ids, in place: they enter as the mean of the others and practically never come out.

    The logits of the ids that were there stay what they are.
    """
    import torch

    new = size - fields["vocab_size"]
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat((table, table.mean(0, keepdim=True).expand(new, -1)))
    bias = tensors.get("lm_head.bias", table.new_zeros(len(table)))
    tensors["lm_head.bias"] = torch.cat((bias, bias.new_full((new,), _NEVER)))
    if "lm_head.weight" in tensors:
        head = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = torch.cat((head, head.new_zeros(new, head.shape[1])))
    fields |= {"vocab_size": size, "lm_head_bias": True}


def _state(original: Original, vocab_size: int) -> TokenizerState | None:
    """The tokenizer that the checkpoint names; the original takes GPT-2's where none is named."""
    content = original.tokenizer
    if content:
        return parse_state(content, f"the tokenizer of {original.path}", str(content.get("token_kind")))
    return TokenizerState(None) if vocab_size in _GPT2_SIZES else None
