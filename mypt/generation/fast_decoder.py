"""Fast decoding of MyPT models: one position per step, without transformers' `generate`.

The prompts go through the model's own `forward`; then each step computes one position of every row with a cache that is
allocated once. The ids are those of transformers' `generate` on the same model, but for ties within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mypt.errors import MyPTError
from mypt.generation.layers import LARGEST, FusedLayers, Head, PlainLayers, prepare, prepare_int8
from mypt.models.modeling_mypt import MyPTForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GUESSES = 4  # tokens at most that are guessed before a check

# Rotary types whose cosines depend on the position alone; `dynamic` and `longrope` change with the text's length.
FIXED_ROPE_TYPES = ("default", "linear", "yarn", "llama3")


def is_covered(model: PreTrainedModel) -> bool:
    """Whether FastDecoder can stand in for the model: a MyPTForCausalLM in eval mode whose parts are as they were made.

    Not covered are other architectures, adapters, quantised weights, hooks, models over several devices, and rotary
    positions that change with the length of the text.
    """
    if type(model) is not MyPTForCausalLM or model.training:
        return False
    if model.config.position_embedding_type == "rope" and (
        model.config.rope_parameters["rope_type"] not in FIXED_ROPE_TYPES
    ):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in model.modules()):
        return False
    matrices = [m for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    plain = all(type(matrix) is nn.Linear for matrix in matrices)
    kinds = {(type(weight), weight.device, weight.dtype) for weight in model.parameters()}
    return plain and len(kinds) == 1 and kinds.pop()[0] is nn.Parameter


@dataclass(slots=True)
class _Rows:
    """The texts of one `extend`: what the steps so far have left."""

    cache: torch.Tensor  # (layers, 2, B, K, capacity, D)
    length: int  # columns of the cache that are filled
    padding: torch.Tensor | None  # (B, 1), the columns before each row; None if all rows are equally long
    cosines: torch.Tensor | None  # (capacity, D)
    sines: torch.Tensor | None
    mask: torch.Tensor | None  # (B, 1, 1, capacity), -inf where a row has no token


class FastDecoder:
    """Decodes with a model that `is_covered`, whose weights must not change meanwhile; threads may share it.

    Memory beyond the model: the cache of each call, layers x 2 x rows x key-value heads x capacity x head_dim numbers;
    for float32 models a copy of layers and head (`mypt.generation.layers.prepare`).

    Args:
        int8: With weights in 8 bits: faster, and slightly other logits; prompts are read in full precision.
        speculate: Guess the next likeliest tokens of a single text with weights in 8 bits, and check all of them in
            one pass over the full ones (Leviathan 2023, 2211.17192): the same ids, in less time where most are right.

    Raises:
        MyPTError: The model's weights are not float32 on a CPU, or its copies do not fit, for int8 or speculate.
    """

    @torch.inference_mode()
    def __init__(self, model: MyPTForCausalLM, int8: bool = False, speculate: bool = False):
        self.model, self.path = model, "int8" if int8 else "fast"
        self.layers, self.head = prepare_int8(model) if int8 else prepare(model)
        self.draft = prepare_int8(model) if speculate else None
        if speculate and not isinstance(self.layers, FusedLayers):
            raise MyPTError(
                f"speculation needs copies of the weights, which are made up to {LARGEST / 2**30:g} GiB and where four "
                "times as much memory is free; leave it out"
            )

    @torch.inference_mode()
    def extend(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """Give `choose` the logits (B, V) after each row of ids, feed back the ids (B,) that it returns, and so on.

        It ends after `budget` calls, or when `choose` returns None.
        """
        logits, rows = self._start(windows, budget)
        for remaining in range(budget - 1, -1, -1):
            chosen = choose(logits)
            if chosen is None or not remaining:
                return
            logits = self._step(rows, chosen, self.layers, self.head)

    @torch.inference_mode()
    def speculate(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """As `extend`, by guesses if it is one row. `choose` is to take the likeliest id: others are guessed wrong.

        Keys and values of guesses are in the cache until the check writes the right ones over them.
        """
        if len(windows) > 1:
            self.extend(windows, budget, choose)
            return
        logits, rows = self._start(windows, budget)
        chosen, made, count = choose(logits), 1, GUESSES
        while chosen is not None and made < budget:
            index, ids = rows.length, [chosen]
            for _ in range(min(count, budget - made - 1)):
                ids.append(self._step(rows, ids[-1], *self.draft).argmax(-1))
            logits = self._read(rows, index, torch.cat(ids))
            for place in range(len(ids)):
                chosen, made, rows.length = choose(logits[place : place + 1]), made + 1, index + place + 1
                right = place + 1 < len(ids) and chosen is not None and torch.equal(chosen, ids[place + 1])
                if not right:
                    break
            count = min(GUESSES, place + 1)  # one more than were right: bad guesses cost time

    def _read(self, rows: _Rows, index: int, ids: torch.Tensor) -> torch.Tensor:
        """Logits (T, V) after each of T ids of one row, the first of which goes to `index`."""
        states, places = self.model.model.embed_tokens(ids), slice(index, index + len(ids))
        cosine = sine = None
        if rows.cosines is None:
            states = states + self.model.model.embed_positions.weight[places]
        else:
            cosine, sine = rows.cosines[places, None], rows.sines[places, None]  # (T, 1, D)
        return self.head(self.layers.read(states, rows.cache, index, cosine, sine))

    def _start(self, windows: Sequence[Sequence[int]], room: int) -> tuple[torch.Tensor, _Rows]:
        """Read the rows, padded on the left, with room for so many tokens more; logits (B, V) of their last ids."""
        length = max(map(len, windows))
        device = self.model.device
        ids = torch.tensor([[0] * (length - len(window)) + list(window) for window in windows], device=device)
        padding, places = None, {}
        if len(set(map(len, windows))) > 1:
            padding = torch.tensor([[length - len(window)] for window in windows], device=device)
            columns = torch.arange(length, device=device)
            places["attention_mask"] = (columns >= padding).long()
            places["position_ids"] = (columns - padding).clamp(min=0)
        outputs = self.model(ids, use_cache=True, logits_to_keep=1, **places)
        return outputs.logits[:, -1], self._rows(outputs.past_key_values, length, length + room, padding)

    def _rows(self, prompt_cache, length: int, capacity: int, padding: torch.Tensor | None) -> _Rows:
        """Cache, positions and mask for `capacity` columns; the prompt's keys and values move in."""
        layers = prompt_cache.layers
        batch, heads, _, width = layers[0].keys.shape
        cache = layers[0].keys.new_zeros(len(layers), 2, batch, heads, capacity, width)
        for mine, theirs in zip(cache, layers, strict=True):
            mine[0, :, :, :length], mine[1, :, :, :length] = theirs.keys, theirs.values
            theirs.keys = theirs.values = None
        columns = torch.arange(capacity, device=cache.device)
        cosines = sines = mask = None
        if self.model.config.position_embedding_type == "rope":
            tables = self.model.model.rotary_emb(cache, columns[None])  # (1, capacity, D) each
            cosines, sines = (table[0] for table in tables)
        if padding is not None:
            hidden = (columns < padding)[:, None, None]  # (B, 1, 1, capacity)
            mask = torch.zeros(hidden.shape, dtype=cache.dtype, device=hidden.device)
            mask.masked_fill_(hidden, -torch.inf)
        return _Rows(cache, length, padding, cosines, sines, mask)

    def _step(self, rows: _Rows, ids: torch.Tensor, layers: PlainLayers | FusedLayers, head: Head) -> torch.Tensor:
        """Logits (B, V) after one more id for each row, int64 (B,)."""
        base, index = self.model.model, rows.length
        states = base.embed_tokens(ids)  # (B, C)
        # One view while all rows are equally long; a row of the table for each otherwise.
        places = slice(index, index + 1) if rows.padding is None else index - rows.padding[:, 0]
        cosine = sine = mask = None
        if rows.cosines is None:
            states = states + base.embed_positions.weight[places]
        else:
            cosine, sine = rows.cosines[places, None], rows.sines[places, None]  # (B or 1, 1, D)
        if rows.mask is not None:
            mask = rows.mask[..., : index + 1]
        states = layers(states, rows.cache, index, cosine, sine, mask)
        rows.length += 1
        return head(states)
